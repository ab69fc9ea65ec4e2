"""The worker process: one model on one device, fed through one socket.

    main thread    forward pass of the batch that is now
    io thread    socket, heartbeats, tokenizing of the batch that is next

The forward pass runs in the main thread because OpenMP serves it best: in any other thread a short sentence
takes markedly longer. An exception of a batch is the answer to that
batch; any other ends the process, and the supervisor starts another.
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

import numpy as np
import torch
import zmq
from bert_serving.protocol import (
    Batch,
    Failed,
    Heartbeat,
    ModelFacts,
    Ready,
    Refused,
    Rejected,
    Result,
    Stop,
    WorkerMessage,
    worker_message_from_frames,
    worker_message_to_frames,
)

from ..model.errors import ModelError, one_line
from .batch import TokenizedPart, encode_parts, prepare_parts
from .device import allowed_cpus
from .encoder import Encoder

log = logging.getLogger(__name__)

_HEARTBEAT_S = 1.0
_CANARY_S = 15.0  # an idle worker proves this often that its model still works
_WARM_UP_TOKENS = 1024
_WARM_UP_RUNS = 3
_INPROC = "inproc://results"


def main(
    *,
    name: str,
    endpoint: str,
    num_sharing_cpu: int,
    encoder: dict[str, Any],
    float16: bool = False,
    tokenizer_path: str | None = None,
) -> None:
    """Serve until the broker says Stop or the server process is gone.

    num_sharing_cpu: workers among which the CPU's threads are divided. encoder: Encoder's arguments. float16:
    vectors leave in this format. tokenizer_path: where the tokenizer is written, for the gateways.
    """
    # The server decides when its workers end; Ctrl-C reaches the whole process group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    num_threads = max(1, allowed_cpus() // num_sharing_cpu)
    torch.set_num_threads(num_threads)
    os.environ.setdefault("RAYON_NUM_THREADS", str(num_threads))  # the tokenizer's
    context = zmq.Context()
    try:
        Worker(context, name, endpoint, np.dtype(np.float16 if float16 else np.float32)).run(
            encoder, None if tokenizer_path is None else Path(tokenizer_path)
        )
    finally:
        context.destroy(linger=500)
    logging.shutdown()
    os._exit(0)  # there is nothing left to do, and what the interpreter would take down takes seconds


class Worker:
    """Encodes the batches that arrive, in order. Made and run in the main thread."""

    def __init__(
        self, context: zmq.Context[Any], name: str, endpoint: str, dtype: np.dtype[np.floating[Any]]
    ) -> None:
        self._dtype = dtype
        # A replaced worker must not be taken for its successor, so the process id is part of the name.
        self._io = _IoThread(context, f"{name}#{os.getpid()}".encode(), endpoint)
        self._results = context.socket(zmq.PUSH)
        self._results.connect(_INPROC)

    def run(self, options: dict[str, Any], tokenizer_path: Path | None) -> None:
        """Load, warm up, say so, and serve."""
        try:
            encoder = Encoder(**options)
            if tokenizer_path is not None:
                part = tokenizer_path.with_suffix(f".{os.getpid()}")
                encoder.save_tokenizer(part)
                part.rename(tokenizer_path)  # nobody is to read half of it
            facts = warm_up(encoder, max_batch_tokens=options["max_batch_tokens"])
        except ModelError as exc:
            self._io.send(Refused(str(exc)))
            return
        except Exception as exc:
            log.debug("cannot start", exc_info=True)
            self._io.send(Refused(f"cannot start the model in {options['model_dir']}: {one_line(exc)}"))
            return
        self._io.forward_at = time.monotonic()
        self._io.send(Ready(facts))
        thread = threading.Thread(target=self._io.run, args=(encoder,), name="io")
        thread.start()
        try:
            self._compute(encoder)
        finally:
            self._io.is_closing = True
            thread.join()

    def _compute(self, encoder: Encoder) -> None:
        io = self._io
        while True:
            try:
                work = io.inbox.get(timeout=_CANARY_S)
            except queue.Empty:
                encoder.encode(["a"])
                io.forward_at = time.monotonic()
                continue
            if work is None:
                return
            result = _encode(encoder, work, self._dtype)
            if isinstance(result, Result):
                io.forward_at = time.monotonic()
            self._results.send_multipart(worker_message_to_frames(result), copy=False)


class _IoThread:
    """The worker's socket and the thread that serves it.

    inbox: tokenized batches for the main thread; None: there is no more. forward_at: when the main thread's last
    forward pass succeeded. is_closing: the main thread has left.
    """

    def __init__(self, context: zmq.Context[Any], routing_id: bytes, endpoint: str) -> None:
        self.inbox: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()  # two at most: the broker sees to it
        self.forward_at = time.monotonic()
        self.is_closing = False
        self._runtime_dir = Path(endpoint.removeprefix("ipc://")).parent
        self._socket = context.socket(zmq.DEALER)
        self._socket.routing_id = routing_id
        self._socket.connect(endpoint)
        self._results = context.socket(zmq.PULL)
        self._results.bind(_INPROC)

    def send(self, message: WorkerMessage) -> None:
        """Send a message; by the main thread only before `run`."""
        self._socket.send_multipart(worker_message_to_frames(message), copy=False)

    def run(self, encoder: Encoder) -> None:
        """Serve the socket until the main thread leaves; whatever ends this one ends that one too."""
        try:
            self._serve(encoder)
        finally:
            self.inbox.put(None)

    def _serve(self, encoder: Encoder) -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        poller = zmq.Poller()
        for source in (self._socket, self._results, parent.sentinel):
            poller.register(source, zmq.POLLIN)
        next_heartbeat = 0.0
        while not self.is_closing:
            ready = dict(poller.poll(max(0, round((next_heartbeat - time.monotonic()) * 1000))))
            if self._results in ready:
                self._socket.send_multipart(self._results.recv_multipart(copy=False), copy=False)
            if self._socket in ready:
                frames = self._socket.recv_multipart(copy=False)
                message = worker_message_from_frames([frame.buffer for frame in frames])
                if isinstance(message, Stop):
                    os._exit(0)  # all is answered: nobody waits for the batches that are here
                assert isinstance(message, Batch)
                self._prepare(encoder, message)
            if parent.sentinel in ready:
                # Killed, the server could not clean up; and nobody waits for the batch in work.
                shutil.rmtree(self._runtime_dir, ignore_errors=True)
                os._exit(1)
            if time.monotonic() >= next_heartbeat:
                self.send(self._heartbeat())
                next_heartbeat = time.monotonic() + _HEARTBEAT_S

    def _prepare(self, encoder: Encoder, batch: Batch) -> None:
        start = time.perf_counter()
        try:
            prepared = prepare_parts(encoder, batch.parts)
        except Exception as exc:  # the answer to this batch, whatever it is
            log.exception("cannot tokenize batch id=%d", batch.batch_id)
            self.send(Failed(batch.batch_id, one_line(exc)))
            return
        self.inbox.put(_Work(batch.batch_id, prepared, (time.perf_counter() - start) * 1000))

    def _heartbeat(self) -> Heartbeat:
        return Heartbeat(time.monotonic() - self.forward_at)


def warm_up(encoder: Encoder, *, max_batch_tokens: int) -> ModelFacts:
    """Run a full micro-batch a few times; return what the broker needs to know about the model."""
    length = min(encoder.max_seq_len, 32)
    texts = ["word " * (length - 2)] * (_WARM_UP_TOKENS // length)
    seconds = []
    for _ in range(_WARM_UP_RUNS):
        start = time.perf_counter()
        encoder.encode(texts)
        seconds.append(time.perf_counter() - start)
    return ModelFacts(
        pid=os.getpid(),
        device=str(encoder.device),
        dtype=str(encoder.dtype).removeprefix("torch."),
        dimension=encoder.dimension,
        kind=encoder.kind,
        poolings=encoder.poolings,
        splits_specials=encoder.splits_specials,
        prompts=encoder.prompts,
        labels=encoder.labels,
        max_seq_len=encoder.max_seq_len,
        forward="packed" if encoder.padded_because is None else "padded",
        parity=round(encoder.parity, 6),
        tokens_per_s=round(length * len(texts) / min(seconds)),
        max_batch_tokens=max_batch_tokens,
    )


@dataclass(frozen=True, slots=True)
class _Work:
    batch_id: int
    prepared: list[TokenizedPart | Rejected]
    tokenize_ms: float


def _encode(encoder: Encoder, work: _Work, dtype: np.dtype[np.floating[Any]]) -> Result | Failed:
    start, padding = time.perf_counter(), encoder.num_padding
    try:
        outcomes = encode_parts(encoder, work.prepared, dtype)
    except torch.AcceleratorError:
        raise  # the GPU's context is lost: only another process can go on
    except Exception as exc:  # the answer to this batch, whatever it is
        log.exception("cannot encode batch id=%d", work.batch_id)
        return Failed(work.batch_id, one_line(exc))
    compute_ms = (time.perf_counter() - start) * 1000
    return Result(work.batch_id, outcomes, work.tokenize_ms, compute_ms, encoder.num_padding - padding)
