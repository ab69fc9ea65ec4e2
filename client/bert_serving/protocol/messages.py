"""The messages between two processes: one frozen dataclass for each kind of message.

    client  -> broker   EncodeRequest, CommandRequest
    broker  -> client   EncodeReply, InfoReply, ErrorReply
    worker  -> broker   Ready, Refused, Result, Failed, Heartbeat
    broker  -> worker   Batch, Stop

`codec` turns each of them into frames and back. This file does not use sockets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeAlias, TypedDict

import numpy as np
import numpy.typing as npt

from .errors import ServingError
from .options import EncodeOptions

#: bert-serving-client 1.10.0 accepts only a server that reports this version of the wire as `server_version`.
WIRE_VERSION = "1.10.0"

#: A JSON object that was read or is to be written. A type cannot say what its values are.
JsonObject: TypeAlias = dict[str, Any]


class TextPair(TypedDict):
    """Two sentences that the model reads as one sequence. Both may contain any characters but NUL."""

    text: str
    text_pair: str


#: A text, a pair of texts, or a text that is already tokenized: its tokens as strings or as ids.
Text: TypeAlias = "str | TextPair | list[str] | list[int]"

#: The texts of one request: a list whose items are all of one kind.
Texts: TypeAlias = "list[str] | list[TextPair] | list[list[str]] | list[list[int]]"

#: The spans of one text, each [start, end) in characters.
Spans: TypeAlias = "Sequence[Sequence[int]]"

#: Rows of vectors, (R, D) float32; float16 if the server runs with -fp16.
Rows: TypeAlias = npt.NDArray[np.floating[Any]]


def split_rows(rows: Rows, counts: Sequence[int]) -> list[Rows]:
    """Return one array for each text. counts: rows of each text; their sum is the number of rows."""
    return np.split(rows, np.cumsum(counts)[:-1])


@dataclass(frozen=True, slots=True)
class TokenVectors:
    """The tokens of one text and their vectors.

    vectors: (T, D) float32, one row for each token. tokens: T strings, special tokens included.
    offsets: [start, end) of each token, in characters of the text; [0, 0] for special tokens. None if the text
    was sent as tokens.
    """

    vectors: Rows
    tokens: Sequence[str]
    offsets: Sequence[Sequence[int]] | None


class Command(bytes, Enum):
    """The bodies of requests that ask for no vectors."""

    SHOW_CONFIG = b"SHOW_CONFIG"
    SHOW_STATUS = b"SHOW_STATUS"
    SHOW_METRICS = b"SHOW_METRICS"
    TERMINATION = b"TERMINATION"


# -- client and broker ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EncodeRequest:
    """A request for vectors. The reply carries the same `request_id`, a decimal number that the client chose.

    deadline_ms: how long the client waits, counted from the arrival of the request; None: no limit.
    spans: the spans of each text; the reply has one vector for each span. None: one vector for each text.
    """

    identity: bytes
    request_id: bytes
    texts: Sequence[Text]
    options: EncodeOptions = EncodeOptions()  # noqa: RUF009
    deadline_ms: int | None = None
    spans: Sequence[Spans] | None = None


@dataclass(frozen=True, slots=True)
class CommandRequest:
    """A request for the server's configuration, status or metrics, or for its termination."""

    identity: bytes
    request_id: bytes
    command: Command


@dataclass(frozen=True, slots=True)
class EncodeReply:
    """The vectors of a request, in the order of its texts.

    rows: (R, D), one row for each text, or counts[i] rows for text i. With pooling_strategy NONE and without
    `ragged`: (B, T, D), one row for each token, filled with zeros after the last token of a text.
    tokens, offsets, usage: None unless the request asked for them. truncated: indices of the texts that were cut.
    """

    identity: bytes
    request_id: bytes
    rows: Rows
    tokens: Sequence[Sequence[str]] | None = None
    truncated: Sequence[int] = ()
    counts: Sequence[int] | None = None
    offsets: Sequence[Sequence[Sequence[int]] | None] | None = None
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """The tokens and the time that a request took.

    num_tokens: tokens of each text, special tokens included. total_ms: from the arrival of the request to its
    reply. queue_ms: from its arrival until its first text went to a worker. tokenize_ms, compute_ms: duration of
    the batches that contained its texts.
    """

    num_tokens: Sequence[int]
    total_ms: float
    queue_ms: float
    tokenize_ms: float
    compute_ms: float


@dataclass(frozen=True, slots=True)
class InfoReply:
    """The reply to a command."""

    identity: bytes
    request_id: bytes
    info: JsonObject


@dataclass(frozen=True, slots=True)
class ErrorReply:
    """The reply to a request that failed."""

    identity: bytes
    request_id: bytes
    error: ServingError


# -- broker and workers --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ready:
    """A worker has loaded and warmed up its model. `facts`: device, dtype, tokens_per_s, ... (see worker)."""

    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Refused:
    """A worker cannot serve, for a reason that a new attempt would meet again."""

    reason: str


@dataclass(frozen=True, slots=True)
class Part:
    """Texts of one request in a batch, and what it wants."""

    texts: Sequence[Text]
    options: EncodeOptions = EncodeOptions()  # noqa: RUF009
    spans: Sequence[Spans] | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """Texts of any number of requests, merged for one worker."""

    batch_id: int
    parts: Sequence[Part]

    @property
    def texts(self) -> list[Text]:
        """The texts of all parts."""
        return [text for part in self.parts for text in part.texts]


@dataclass(frozen=True, slots=True)
class Vectors:
    """The vectors of a part, in the order of its texts.

    rows: (R, D), one for each text, or as many as `counts` says. num_tokens: what the model computed for
    each text, special tokens included. truncated: indices of the texts that were cut.
    """

    rows: Rows
    num_tokens: Sequence[int]
    truncated: Sequence[int] = ()
    counts: Sequence[int] | None = None
    tokens: Sequence[Sequence[str]] | None = None
    offsets: Sequence[Sequence[Sequence[int]] | None] | None = None


@dataclass(frozen=True, slots=True)
class Rejected:
    """A part without vectors, for the fault of one text, or of its options where index is None."""

    error: ServingError
    index: int | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a batch, part by part.

    tokenize_ms, compute_ms: time that it took in either stage. padding_tokens: computed for nothing, between
    the texts' own.
    """

    batch_id: int
    outcomes: Sequence[PartResult]
    tokenize_ms: float = 0.0
    compute_ms: float = 0.0
    padding_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Failed:
    """A batch raised an exception; the worker itself is well."""

    batch_id: int
    message: str


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Sent every second. forward_age_s: time since the last forward pass that succeeded.

    busy_s: how long the present batch has been computed; 0 when idle.
    """

    forward_age_s: float
    busy_s: float


@dataclass(frozen=True, slots=True)
class Stop:
    """The worker ends after the batches that it holds."""


PartResult: TypeAlias = "Vectors | Rejected"
Request: TypeAlias = EncodeRequest | CommandRequest
Reply: TypeAlias = EncodeReply | InfoReply | ErrorReply
WorkerMessage: TypeAlias = Ready | Refused | Result | Failed | Heartbeat
BrokerMessage: TypeAlias = Batch | Stop
