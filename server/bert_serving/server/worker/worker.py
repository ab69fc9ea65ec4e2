"""The worker process: one model on one device, fed through one socket.

    main thread     socket, heartbeats, tokenizing of the batch that is next
    compute thread  forward pass of the batch that is now

The two meet in a queue that holds one batch and in an inproc pair of sockets, so that the device never
waits for the tokenizer. Neither catches what it cannot name: an exception of a batch is the answer to
that batch, everything else ends the process and the supervisor starts another.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import queue
import shutil
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import zmq
from bert_serving.protocol import (
    Batch,
    Failed,
    Heartbeat,
    Ready,
    Refused,
    Result,
    Stop,
    WorkerMessage,
    worker_message_from_frames,
    worker_message_to_frames,
)

from ..model_files import ModelError
from .device import allowed_cpus
from .encoder import Encoder
from .tokenizer import TokenizedText

log = logging.getLogger(__name__)

_HEARTBEAT_S = 1.0
_CANARY_S = 15.0  # an idle worker proves this often that its model still works
_WARM_UP_TOKENS = 1024
_WARM_UP_RUNS = 3
_INPROC = "inproc://results"


def main(*, name: str, endpoint: str, num_sharing_cpu: int, encoder: dict[str, Any]) -> None:
    """Serve until the broker says Stop or the server process is gone.

    num_sharing_cpu: workers among which the CPU's threads are divided. encoder: Encoder's arguments.
    """
    # The server decides when its workers end; Ctrl-C reaches the whole process group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    torch.set_num_threads(max(1, allowed_cpus() // num_sharing_cpu))
    context = zmq.Context()
    try:
        Worker(context, name, endpoint).run(encoder)
    finally:
        context.destroy(linger=500)


class Worker:
    """Encodes the batches that arrive, in order."""

    def __init__(self, context: zmq.Context[Any], name: str, endpoint: str) -> None:
        self._endpoint = endpoint
        self._socket = context.socket(zmq.DEALER)
        # A replaced worker must not be taken for its successor, so the process id is part of the name.
        self._socket.routing_id = f"{name}#{os.getpid()}".encode()
        self._socket.connect(endpoint)
        self._results = context.socket(zmq.PULL)
        self._results.bind(_INPROC)
        self._context = context
        self._tokenized: queue.Queue[_Work | None] = queue.Queue(maxsize=2)
        self._forward_at = time.monotonic()
        self._busy_since: float | None = None

    def run(self, options: dict[str, Any]) -> None:
        """Load, warm up, say so, and serve."""
        try:
            encoder = Encoder(**options)
        except ModelError as exc:
            self._send(Refused(str(exc)))
            return
        compute = threading.Thread(target=self._compute, args=(encoder,), name="compute", daemon=True)
        compute.start()
        self._send(Ready(self._warm_up(encoder) | {"max_batch_tokens": options["max_batch_tokens"]}))
        self._serve(encoder, compute)
        self._tokenized.put(None)
        compute.join()

    def _warm_up(self, encoder: Encoder) -> dict[str, Any]:
        """Run a full micro-batch a few times; return the facts that the broker plans with."""
        length = min(encoder.max_seq_len, 32)
        text = "word " * (length - 2)
        tokenized = encoder.tokenize([text] * (_WARM_UP_TOKENS // length))
        num_tokens = sum(len(t.ids) for t in tokenized)
        seconds = []
        for _ in range(_WARM_UP_RUNS):
            start = time.perf_counter()
            encoder.forward(tokenized)
            seconds.append(time.perf_counter() - start)
        self._forward_at = time.monotonic()
        return {
            "pid": os.getpid(),
            "device": str(encoder.device),
            "dtype": str(encoder.dtype).removeprefix("torch."),
            "dimension": encoder.dimension,
            "max_seq_len": encoder.max_seq_len,
            "tokens_per_s": round(num_tokens / min(seconds)),
        }

    # -- main thread -----------------------------------------------------------------------------------

    def _serve(self, encoder: Encoder, compute: threading.Thread) -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._results, zmq.POLLIN)
        poller.register(parent.sentinel, zmq.POLLIN)
        next_heartbeat = 0.0
        while compute.is_alive():
            ready = dict(poller.poll(max(0, round((next_heartbeat - time.monotonic()) * 1000))))
            if self._results in ready:
                self._socket.send_multipart(self._results.recv_multipart(copy=False), copy=False)
            if self._socket in ready:
                message = worker_message_from_frames([f.buffer for f in self._socket.recv_multipart(copy=False)])
                if isinstance(message, Stop):
                    return
                assert isinstance(message, Batch)
                self._tokenize(encoder, message)
            if parent.sentinel in ready:
                # Killed, it could not clean up; the last one out does.
                shutil.rmtree(Path(self._endpoint.removeprefix("ipc://")).parent, ignore_errors=True)
                return
            if time.monotonic() >= next_heartbeat:
                self._send(self._heartbeat())
                next_heartbeat = time.monotonic() + _HEARTBEAT_S
        raise RuntimeError("the compute thread ended")

    def _tokenize(self, encoder: Encoder, batch: Batch) -> None:
        start = time.perf_counter()
        try:
            tokenized = encoder.tokenize(batch.texts)
        except Exception as exc:  # the answer to this batch, whatever it is
            log.exception("cannot tokenize batch id=%d", batch.batch_id)
            self._send(Failed(batch.batch_id, _one_line(exc)))
            return
        self._tokenized.put(_Work(batch, tokenized, (time.perf_counter() - start) * 1000))

    def _heartbeat(self) -> Heartbeat:
        now = time.monotonic()
        busy_since = self._busy_since
        return Heartbeat(now - self._forward_at, 0.0 if busy_since is None else now - busy_since)

    def _send(self, message: WorkerMessage) -> None:
        self._socket.send_multipart(worker_message_to_frames(message), copy=False)

    # -- compute thread --------------------------------------------------------------------------------

    def _compute(self, encoder: Encoder) -> None:
        results = self._context.socket(zmq.PUSH)
        results.connect(_INPROC)
        canary = encoder.tokenize(["a"])
        with results:
            while True:
                try:
                    work = self._tokenized.get(timeout=_CANARY_S)
                except queue.Empty:
                    encoder.forward(canary)
                    self._forward_at = time.monotonic()
                    continue
                if work is None:
                    return
                self._busy_since = time.monotonic()
                results.send_multipart(worker_message_to_frames(_encode(encoder, work)), copy=False)
                self._forward_at = time.monotonic()
                self._busy_since = None


@dataclass(frozen=True, slots=True)
class _Work:
    batch: Batch
    tokenized: list[TokenizedText]
    tokenize_ms: float


def _encode(encoder: Encoder, work: _Work) -> Result | Failed:
    start = time.perf_counter()
    try:
        rows = encoder.forward(work.tokenized)
    except Exception as exc:  # the answer to this batch, whatever it is
        log.exception("cannot encode batch id=%d", work.batch.batch_id)
        return Failed(work.batch.batch_id, _one_line(exc))
    return Result(
        work.batch.batch_id,
        rows,
        num_tokens=[len(t.ids) for t in work.tokenized],
        truncated=[i for i, t in enumerate(work.tokenized) if t.truncated],
        tokens=[encoder.tokens(t) for t in work.tokenized] if work.batch.show_tokens else None,
        tokenize_ms=work.tokenize_ms,
        compute_ms=(time.perf_counter() - start) * 1000,
    )


def _one_line(exc: Exception) -> str:
    return f"{type(exc).__name__}: {str(exc).strip().splitlines()[0] if str(exc).strip() else 'no message'}"
