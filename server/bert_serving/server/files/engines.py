"""What computes the vectors of a file: an encoder in this process, or a running server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt
from bert_serving.protocol import EncodeOptions, options_from_json

from ..model.spec import ModelOptions, ModelSpec
from .errors import FileError
from .options import FileJob

if TYPE_CHECKING:
    from bert_serving.client import BertClient

    from ..worker.encoder import Encoder

_TEXTS_PER_REQUEST = 1024
_REQUESTS_AT_ONCE = 4
_PORT, _PORT_OUT = 5555, 5556


@dataclass(frozen=True, slots=True)
class Computed:
    """The vectors of some texts, (B, D) float32, with NaN for those that have an error; and their tokens."""

    rows: npt.NDArray[np.float32]
    errors: Mapping[int, str]
    num_tokens: int


class Engine(Protocol):
    """Computes vectors. fingerprint: of the model that computes."""

    fingerprint: str

    def encode(self, texts: Sequence[str]) -> Computed:
        """Return the vectors of the texts."""

    def close(self) -> None:
        """Release what the engine holds."""


def engine_of(job: FileJob) -> Engine:
    """Return the engine that a job asks for. Raises FileError."""
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
    return InProcess(job, options) if job.server is None else OnServer(job.server, options)


class InProcess:
    """An encoder in this process. Raises FileError if the model cannot be used."""

    def __init__(self, job: FileJob, options: EncodeOptions) -> None:
        from ..model.errors import ModelError
        from ..worker.encoder import Encoder

        try:
            spec = ModelSpec.of(job, device=job.device)
            self._encoder: Encoder = Encoder.from_spec(spec.model_copy(update={"compile": _compile(spec)}))
            self._encoder.prepare([""], options)
        except (ModelError, ValueError) as exc:
            raise FileError(str(exc)) from exc
        if self._encoder.kind == "splade" or "NONE" in self._encoder.poolings:
            raise FileError("a file holds one vector for each text: choose another -pooling_strategy")
        self._options = options
        self.fingerprint = self._encoder.fingerprint

    def encode(self, texts: Sequence[str]) -> Computed:
        """Return the vectors of the texts."""
        errors: dict[int, str] = {}
        prepared, places = [], []
        for i, each in enumerate(self._encoder.prepare(texts, self._options)):
            if isinstance(each, Exception):
                errors[i] = str(each)
            else:
                prepared.append(each)
                places.append(i)
        found: dict[int, npt.NDArray[np.float32]] = {}
        for i, rows in zip(places, self._encoder.forward(prepared) if prepared else [], strict=True):
            if isinstance(rows, Exception):
                errors[i] = str(rows)
            else:
                found[i] = rows
        width = len(next(iter(found.values()))) if found else self._encoder.dimension
        vectors = np.full((len(texts), width), np.nan, np.float32)
        for i, row in found.items():
            vectors[i] = row
        return Computed(vectors, errors, sum(each.text.num_tokens for each in prepared))

    def close(self) -> None:
        """Release nothing: the process ends soon."""


def _compile(options: ModelOptions) -> str:
    """Return when to compile: at once, because a file is worth the wait, unless it was said otherwise."""
    return "wait" if options.compile == "auto" else options.compile


class OnServer:
    """A running server. Raises FileError if it cannot be reached."""

    def __init__(self, address: str, options: EncodeOptions) -> None:
        from bert_serving.client import BertClient

        host, port, port_out = _address(address)
        try:
            self._client: BertClient = BertClient(host, port, port_out, check_length=False)
            status = self._client.server_status
        except (OSError, ValueError, AttributeError) as exc:
            raise FileError(f"cannot use the server at {address}: {exc}") from exc
        self._options = options
        self.fingerprint = str(status["model"])
        self._threads = ThreadPoolExecutor(_REQUESTS_AT_ONCE)

    def encode(self, texts: Sequence[str]) -> Computed:
        """Return the vectors of the texts, which are sent in requests of some size, several at once."""
        from bert_serving.protocol import ServingError

        starts = range(0, len(texts), _TEXTS_PER_REQUEST)
        try:
            replies = list(
                self._threads.map(
                    lambda start: self._client.encode_reply(
                        list(texts[start : start + _TEXTS_PER_REQUEST]), self._options
                    )[1],
                    starts,
                )
            )
        except (ServingError, OSError) as exc:
            raise FileError(f"the server cannot compute the vectors: {exc}") from exc
        errors: dict[int, str] = {}
        num_tokens = 0
        for start, reply in zip(starts, replies, strict=True):
            if reply.counts is not None or reply.rows.ndim != 2:
                raise FileError(
                    "a file holds one vector for each text, and the server has another -pooling_strategy"
                )
            errors |= {start + error["index"]: error["message"] for error in reply.errors}
            if reply.usage is not None:
                num_tokens += sum(reply.usage.num_tokens)
                if reply.usage.model != self.fingerprint:
                    raise FileError("the server's model has changed: vectors of two models do not belong together")
        rows = np.concatenate([reply.rows for reply in replies]).astype(np.float32)
        rows[list(errors)] = np.nan
        return Computed(rows, errors, num_tokens)

    def close(self) -> None:
        """Close the connection."""
        self._threads.shutdown()
        self._client.close()


def _address(text: str) -> tuple[str, int, int]:
    host, *ports = text.split(":")
    try:
        numbers = [int(port) for port in ports]
    except ValueError:
        numbers = [0, 0, 0]
    if len(numbers) > 2 or not host:
        raise FileError(f"-server must be HOST, HOST:PORT or HOST:PORT:PORT_OUT, got {text!r}")
    port = numbers[0] if numbers else _PORT
    return host, port, numbers[1] if len(numbers) > 1 else port + _PORT_OUT - _PORT
