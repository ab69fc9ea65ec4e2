"""What computes the vectors of a file: encoders in this process or in a Ray cluster, or a running server."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt
import zmq
from bert_serving.protocol import EncodeOptions, PayloadTooLarge, options_from_json

from ..model.errors import ModelError
from ..model.spec import ModelSpec
from .errors import FileError
from .options import FileJob

if TYPE_CHECKING:
    from bert_serving.client import BertClient
    from bert_serving.protocol import EncodeReply, Rows

    from ..worker.encoder import Encoder, EncodingError
    from ..worker.micro_batches import MicroBatch, PreparedText

_TEXTS_PER_REQUEST = 1024
_BYTES_PER_REQUEST = 4 << 20
_REQUESTS_AT_ONCE = 4
_SILENCE_S = 30.0
_RETRY_S = 0.5
_PORT, _PORT_OUT = 5555, 5556


@dataclass(frozen=True, slots=True)
class Computed:
    """The vectors of some texts, (B, D) float32, with NaN for those that have an error.

    errors: why texts have no vector, by their index. cut: the texts that were longer than max_seq_len.
    """

    rows: npt.NDArray[np.float32]
    errors: Mapping[int, str]
    num_tokens: int
    cut: Sequence[int]


class Engine(Protocol):
    """Computes vectors.

    identity: what must be the same for vectors that belong together. dimension: the components of a vector.
    """

    identity: dict[str, str]
    dimension: int

    def encode(self, texts: Sequence[str]) -> Computed:
        """Return the vectors of the texts. May be called in several threads. Raises FileError."""

    def close(self) -> None:
        """End the calls that run, with FileError, and release what the engine holds."""


def engine_of(job: FileJob, say: Callable[[str], None] = lambda line: None) -> Engine:
    """Return the engine that a job asks for. Raises FileError.

    say: is called with a line for the user.
    """
    options = options_from_json(
        {
            "prompt": job.prompt,
            "prompt_name": job.prompt_name,
            "dimensions": job.dimensions,
            "long_text": job.long_text,
            "pairs": False,  # a file may have " ||| " with any meaning
            "on_error": "null",
            "show_usage": True,
        }
    )
    if job.server is not None:
        return OnServer(job.server, options, say)
    if job.ray is not None:
        from .on_ray import OnRay

        return OnRay(job, options, say)
    return InProcess(job, options)


class InProcess:
    """An encoder on each device. Raises FileError if the model cannot be used.

    With GPUs, a call tokenizes its texts while another one computes. From the second call on, the forward pass is
    compiled in the background, unless the options say otherwise: then there are enough texts for it.
    """

    def __init__(self, job: FileJob, options: EncodeOptions) -> None:
        from ..worker.device import every_device
        from ..worker.encoder import Encoder

        try:
            devices = [job.device] if job.device != "auto" else every_device()
            # One thread loads a model and computes with it. If two threads use OpenMP, it has more threads than
            # there are cores, and lets them sleep at each barrier: a quarter of the rate is lost.
            self._threads = [ThreadPoolExecutor(1) for _ in devices]
            loading = [
                thread.submit(Encoder.from_spec, ModelSpec.of(job, device=device))
                for thread, device in zip(self._threads, devices, strict=True)
            ]
            self._encoders: list[Encoder] = [each.result() for each in loading]
            encoder = self._encoders[0]
            encoder.prepare([""], options)
        except (ModelError, ValueError) as exc:
            raise FileError(str(exc)) from exc
        if encoder.kind == "splade" or "NONE" in encoder.poolings:
            raise FileError("a file holds one vector for each text: choose another -pooling_strategy")
        self._options = options
        self._turn = threading.Lock()
        # On a CPU, to tokenize beside a forward pass takes its cores: a tenth of the rate is lost.
        on_gpu = encoder.device.type == "cuda"
        self._cores: AbstractContextManager[object] = nullcontext() if on_gpu else threading.Lock()
        self._is_closed = False
        self._num_calls = 0
        self.identity: dict[str, str] = {"model": encoder.fingerprint, "dtype": encoder.dtype_name}
        self.dimension = min(encoder.dimension, job.dimensions or encoder.dimension)

    def facts(self) -> tuple[dict[str, str], int]:
        """Return identity and dimension, for callers in other processes."""
        return self.identity, self.dimension

    def encode(self, texts: Sequence[str]) -> Computed:
        """Return the vectors of the texts."""
        self._num_calls += 1
        if self._num_calls == 2:
            for encoder in self._encoders:
                if encoder.compiles_later:
                    threading.Thread(target=encoder.compile, name="compiler", daemon=True).start()
        with self._cores:
            return self._encoded(texts)

    def _encoded(self, texts: Sequence[str]) -> Computed:
        errors: dict[int, str] = {}
        prepared: dict[int, PreparedText] = {}
        for i, each in enumerate(self._encoders[0].prepare(texts, self._options)):
            if isinstance(each, Exception):
                errors[i] = str(each)
            else:
                prepared[i] = each
        # Texts are dealt by length, so that the devices have the same work.
        order = sorted(prepared, key=lambda i: prepared[i].text.num_tokens)
        shares = [sorted(order[k :: len(self._encoders)]) for k in range(len(self._encoders))]
        vectors = np.full((len(texts), self.dimension), np.nan, np.float32)
        with self._turn:
            computed = [
                thread.submit(self._forward, encoder, [prepared[i] for i in share])
                for thread, encoder, share in zip(self._threads, self._encoders, shares, strict=True)
            ]
            for share, found in zip(shares, computed, strict=True):
                for i, rows in zip(share, found.result(), strict=True):
                    if isinstance(rows, Exception):
                        errors[i] = str(rows)
                    else:
                        vectors[i] = rows
        cut = [i for i, each in prepared.items() if each.text.truncated]
        return Computed(vectors, errors, sum(each.text.num_tokens for each in prepared.values()), cut)

    def _forward(self, encoder: Encoder, prepared: list[PreparedText]) -> list[Rows | EncodingError]:
        found: list[Rows | EncodingError] = []

        def steps() -> Iterator[list[MicroBatch]]:
            found.extend((yield from encoder.forward_steps(prepared)))

        for micro_batch in chain.from_iterable(steps()):
            micro_batch.compute()
            if self._is_closed:
                raise FileError("stopped")
        return found

    def close(self) -> None:
        """End the calls that run after their current forward pass."""
        self._is_closed = True
        for thread in self._threads:
            thread.shutdown()


class _NotReadyError(FileError):
    """A server cannot be used now."""


class OnServer:
    """A running server. Raises FileError if it cannot be reached.

    say: is called with a line if it does not answer for a while.
    """

    def __init__(self, address: str, options: EncodeOptions, say: Callable[[str], None]) -> None:
        from bert_serving.client import BertClient

        host, port, port_out = _address(address)
        self._address = address
        try:
            self._client: BertClient = BertClient(host, port, port_out, check_length=False)
        except (OSError, ValueError, AttributeError, zmq.ZMQError) as exc:
            raise FileError(f"cannot use the server at {address}: {exc}") from exc
        self._options = options
        self._say = say
        self._largest_request = _TEXTS_PER_REQUEST
        self._is_closed = threading.Event()
        worker = self._worker()
        self.identity: dict[str, str] = {"model": str(worker["model"]), "dtype": str(worker["dtype"])}
        width = int(str(worker["dimension"]))
        self.dimension = min(width, options.dimensions or width)
        self._threads = ThreadPoolExecutor(_REQUESTS_AT_ONCE)

    def _worker(self) -> dict[str, object]:
        """Return what the server says about its workers, which must all compute with one dtype."""
        try:
            status = self._client.server_status
        except (OSError, ValueError, AttributeError, zmq.ZMQError) as exc:
            raise _NotReadyError(f"cannot use the server at {self._address}: {exc}") from exc
        workers = [worker for worker in status.get("workers", ()) if "dtype" in worker]
        if not workers or "model" not in status:
            raise _NotReadyError(f"the server at {self._address} has no worker that is ready")
        if len(dtypes := {str(worker["dtype"]) for worker in workers}) > 1:
            raise FileError(f"the workers of the server compute with several dtypes: {', '.join(sorted(dtypes))}")
        return {**workers[0], "model": status["model"]}

    def encode(self, texts: Sequence[str]) -> Computed:
        """Return the vectors of the texts, which are sent in requests of some size, several at once."""
        slices = list(_slices(texts, self._largest_request))
        asked = [self._threads.submit(self._replies, texts[some]) for some in slices]
        waiting = set(asked)
        while waiting:
            answered, waiting = wait(waiting, _SILENCE_S, FIRST_COMPLETED)
            if not answered:
                self._say_silent()
            for each in answered:
                each.result()  # raises the error of a request at once
        replies = [reply for each in asked for reply in each.result()]
        starts = list(accumulate((len(reply.rows) for reply in replies), initial=0))
        errors: dict[int, str] = {}
        for start, reply in zip(starts, replies, strict=False):
            errors |= {start + error["index"]: error["message"] for error in reply.errors}
        rows = np.concatenate([reply.rows for reply in replies]).astype(np.float32)
        rows[list(errors)] = np.nan
        num_tokens = sum(sum(reply.usage.num_tokens) for reply in replies if reply.usage is not None)
        cut = [start + i for start, reply in zip(starts, replies, strict=False) for i in reply.truncated]
        self._check_workers()
        return Computed(rows, errors, num_tokens, cut)

    def _say_silent(self) -> None:
        self._say(f"the server at {self._address} has sent nothing for {_SILENCE_S:.0f} s: waiting for it")

    def _replies(self, texts: Sequence[str]) -> list[EncodeReply]:
        """Return the replies to requests that together have the texts: to one, if it is not too large."""
        try:
            return [self._reply(texts)]
        except PayloadTooLarge as exc:
            if len(texts) == 1:
                raise FileError(f"the server cannot compute the vectors: {exc}") from exc
            middle = len(texts) // 2
            self._largest_request = min(self._largest_request, middle)  # of the next calls
            return [*self._replies(texts[:middle]), *self._replies(texts[middle:])]

    def _reply(self, texts: Sequence[str]) -> EncodeReply:
        from bert_serving.protocol import ServingError

        try:
            _, reply = self._client.encode_reply(list(texts), self._options)
        except PayloadTooLarge:
            raise
        except (ServingError, OSError, zmq.ZMQError) as exc:
            raise FileError(f"the server cannot compute the vectors: {exc}") from exc
        if reply.counts is not None or reply.rows.ndim != 2:
            raise FileError("a file holds one vector for each text, and the server has another -pooling_strategy")
        if reply.usage is None or reply.usage.model != self.identity["model"]:
            raise FileError("the server's model has changed: vectors of two models do not belong together")
        return reply

    def _check_workers(self) -> None:
        """Raise FileError if the server was started again with another dtype. Waits while it starts."""
        silent_since = time.monotonic()
        while True:
            try:
                dtype = self._worker()["dtype"]
                break
            except _NotReadyError:
                if self._is_closed.wait(_RETRY_S):
                    raise
                if time.monotonic() - silent_since > _SILENCE_S:
                    silent_since = time.monotonic()
                    self._say_silent()
        if dtype != self.identity["dtype"]:
            raise FileError(f"the server's dtype has changed from {self.identity['dtype']} to {dtype}")

    def close(self) -> None:
        """Close the connection; calls that wait for the server end with an error."""
        self._is_closed.set()
        self._client.close()
        self._threads.shutdown(cancel_futures=True)


def _slices(texts: Sequence[str], largest: int = _TEXTS_PER_REQUEST) -> Iterator[slice]:
    """Yield the texts of each request, so that a request is not too large for the server."""
    start = size = 0
    for i, text in enumerate(texts):
        num_bytes = len(text.encode())
        if i > start and (i - start == largest or size + num_bytes > _BYTES_PER_REQUEST):
            yield slice(start, i)
            start, size = i, 0
        size += num_bytes
    yield slice(start, len(texts))


def _address(text: str) -> tuple[str, int, int]:
    """Return host, port and port_out of HOST[:PORT[:PORT_OUT]]; an IPv6 address is in []."""
    found = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^\s:\[\]]+)(?::(\d{1,5}))?(?::(\d{1,5}))?", text)
    if found is None:
        raise FileError(f"-server must be HOST, HOST:PORT or HOST:PORT:PORT_OUT, got {text!r}")
    host, *ports = found.groups()
    port = _PORT if ports[0] is None else int(ports[0])
    return host, port, port + _PORT_OUT - _PORT if ports[1] is None else int(ports[1])
