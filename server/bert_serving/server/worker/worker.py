"""The worker process: one model on one device, connected to the broker by two sockets, in and out.

    main thread          forward passes, one micro-batch at a time, and results (batch_loop.py)
    lanes                small compiled passes beside those of the main thread (lanes.py)
    compiler thread      waits while another process compiles the forward pass (compiled/)
    io thread            batches, heartbeats
    tokenizer threads    tokenization of the next large batches (tokenization.py)

Forward passes run in the main thread because OpenMP is fastest there: in any other thread a short sentence takes
markedly longer. An exception while a batch is computed fails that batch only. Any other exception ends the
process, and the supervisor starts a new one.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import numpy as np
import torch
import zmq
from bert_serving.protocol.workers import (
    RESULTS,
    Batch,
    Changed,
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

from ..model.errors import ModelError, one_line
from ..model.spec import ModelSpec
from .batch_loop import BatchLoop, warm_up
from .device import allowed_cpus, device_bytes
from .encoder import Encoder
from .lanes import Compiled, Work
from .tokenization import TokenizerThreads

log = logging.getLogger(__name__)

_HEARTBEAT_S = 1.0


def main(
    *,
    name: str,
    endpoint: str,
    num_sharing_cpu: int,
    spec: ModelSpec,
    float16: bool = False,
    tokenizer_dir: str | None = None,
) -> None:
    """Serve until the broker sends Stop or the server process has ended.

    num_sharing_cpu: number of workers that share the CPU's threads. spec: the model to load. float16: send
    vectors as float16. tokenizer_dir: where the tokenizer is written, for the gateways.
    """
    # Ctrl-C reaches the whole process group, but only the server decides when its workers end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    num_threads = max(1, allowed_cpus() // num_sharing_cpu)
    torch.set_num_threads(num_threads)
    os.environ.setdefault("RAYON_NUM_THREADS", str(num_threads))  # threads of the tokenizer
    context = zmq.Context()
    try:
        Worker(context, name, endpoint, np.dtype(np.float16 if float16 else np.float32)).run(
            spec, None if tokenizer_dir is None else Path(tokenizer_dir)
        )
    finally:
        context.destroy(linger=500)
    logging.shutdown()
    os._exit(0)  # a normal exit takes seconds, and there is nothing left to clean up


class Worker:
    """Computes the results of batches, in turns. Created and run in the main thread."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], name: str, endpoint: str, dtype: np.dtype[np.floating]
    ) -> None:
        self._dtype = dtype
        # The process id is part of the name, so that the broker can tell a worker from its replacement.
        address = f"{name}#{os.getpid()}".encode()
        self._io = _IoThread(context, address, endpoint)
        # A socket of its own, because what a thread sends through another one waits until that one has a core.
        self._results = context.socket(zmq.DEALER)
        self._results.routing_id = address + RESULTS
        self._results.connect(endpoint)

    def run(self, spec: ModelSpec, tokenizer_dir: Path | None) -> None:
        """Load the model, warm up, report readiness, and serve batches."""
        try:
            encoder = Encoder.from_spec(spec)
            if tokenizer_dir is not None:
                save_tokenizer(encoder, tokenizer_dir)
            facts = warm_up(encoder, max_batch_tokens=spec.max_batch_tokens)
        except ModelError as exc:
            self._io.send(Refused(str(exc)))
            return
        except Exception as exc:
            log.debug("cannot start", exc_info=True)
            self._io.send(Refused(f"cannot start the model in {spec.model_dir}: {one_line(exc)}"))
            return
        self._io.count_forward()
        self._io.send(Ready(facts))
        thread = threading.Thread(target=self._io.run, args=(encoder,), name="io")
        thread.start()
        if encoder.compiles_later:
            threading.Thread(target=self._io.compile, args=(encoder,), name="compiler", daemon=True).start()
        loop = BatchLoop(
            encoder,
            self._io.work,
            dtype=self._dtype,
            max_batch_tokens=spec.max_batch_tokens,
            send=self._send,
            on_forward=self._io.count_forward,
            on_canary=self._io.note_canary,
        )
        try:
            loop.run()
        finally:
            self._io.is_closing = True
            thread.join()

    def _send(self, result: Result | Failed | Changed) -> None:
        self._results.send_multipart(worker_message_to_frames(result), copy=False)


class _IoThread:
    """The worker's socket for batches, and the loop that serves it in the io thread.

    work: gets batches, tokenized or not, or why they could not be tokenized; Compiled, when passes have become
    faster; None tells the main thread to stop. The broker limits how many batches a worker has.
    is_closing: whether the main thread has stopped computing; the main thread sets it.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], routing_id: bytes, endpoint: str) -> None:
        self.work = Work()
        self.is_closing = False
        self._forward_at = time.monotonic()
        self._num_forwards = 0
        self._runtime_dir = Path(endpoint.removeprefix("ipc://")).parent
        self._socket = context.socket(zmq.DEALER)
        self._socket.routing_id = routing_id
        self._socket.connect(endpoint)

    def send(self, message: WorkerMessage) -> None:
        """Send a message. The main thread may call this only before `run` has started."""
        self._socket.send_multipart(worker_message_to_frames(message), copy=False)

    def count_forward(self) -> None:
        """Note that a micro-batch was computed just now. Only one thread at a time may call this."""
        self._forward_at = time.monotonic()
        self._num_forwards += 1

    def note_canary(self) -> None:
        """Note that the model works. This is no progress with a batch. Only the main thread may call this."""
        self._forward_at = time.monotonic()

    def compile(self, encoder: Encoder) -> None:
        """Let the encoder compile its forward passes, and tell the main thread if it could."""
        if encoder.compile():
            self.work.put(Compiled())

    def run(self, encoder: Encoder) -> None:
        """Serve the socket until is_closing is set. When this thread ends, the main thread ends too."""
        try:
            self._serve_socket(encoder)
        finally:
            self.work.put(None)

    def _serve_socket(self, encoder: Encoder) -> None:
        tokenizers = TokenizerThreads(encoder, self.work)
        parent = multiprocessing.parent_process()
        assert parent is not None
        poller = zmq.Poller()
        for source in (self._socket, parent.sentinel):
            poller.register(source, zmq.POLLIN)
        next_heartbeat = 0.0
        while not self.is_closing:
            ready = dict(poller.poll(max(0, round((next_heartbeat - time.monotonic()) * 1000))))
            if self._socket in ready:
                frames = self._socket.recv_multipart(copy=False)
                message = worker_message_from_frames([frame.buffer for frame in frames])
                if isinstance(message, Stop):
                    os._exit(0)  # the broker needs no more results, so unfinished batches may be dropped
                assert isinstance(message, Batch)
                tokenizers.put(message)
            if parent.sentinel in ready:
                # The server process has died without cleaning up, and no client waits for the current batch.
                shutil.rmtree(self._runtime_dir, ignore_errors=True)
                os._exit(1)
            if time.monotonic() >= next_heartbeat:
                self.send(self._heartbeat(encoder))
                next_heartbeat = time.monotonic() + _HEARTBEAT_S

    def _heartbeat(self, encoder: Encoder) -> Heartbeat:
        forward_age_s = time.monotonic() - self._forward_at
        return Heartbeat(forward_age_s, self._num_forwards, device_bytes(encoder.device))


def save_tokenizer(encoder: Encoder, folder: Path) -> None:
    """Write the tokenizer for the gateways, unless another worker with the same model has done so.

    If it cannot be written, as on a full disk, this is only logged: nothing but /tokenize and /decode needs it.
    """
    # A file for each model, because another worker may still serve an older one.
    path = folder / f"tokenizer-{encoder.fingerprint}.json"
    if path.exists():
        return
    partial = folder / f"tokenizer-{os.getpid()}.partial"
    try:
        encoder.save_tokenizer(partial)
        partial.rename(path)  # no reader sees a half-written file
    except OSError as exc:
        log.warning("/tokenize and /decode will not work: cannot write the tokenizer: %s", one_line(exc))
        partial.unlink(missing_ok=True)
