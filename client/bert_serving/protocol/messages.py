"""What crosses the wire, as data: one frozen dataclass for each arrow between two processes.

    client  -> broker   EncodeRequest, CommandRequest
    broker  -> client   EncodeReply, InfoReply, ErrorReply
    worker  -> broker   Ready, Refused, Result, Failed, Heartbeat
    broker  -> worker   Batch, Stop

`codec` turns each of them into frames and back. Nothing here knows of sockets.
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


class TextPair(TypedDict):
    """Two sentences that the model reads as one sequence, whatever characters are in them."""

    text: str
    text_pair: str


#: A text, or two, or the tokens of a text that its sender has tokenized already, as strings or as ids.
Text: TypeAlias = "str | TextPair | list[str] | list[int]"

#: [start, end] in characters, some for one text.
Spans: TypeAlias = "Sequence[Sequence[int]]"

#: Rows of vectors, (R, D) float32.
Rows: TypeAlias = npt.NDArray[np.floating[Any]]


def split_rows(rows: Rows, counts: Sequence[int]) -> list[Rows]:
    """Return the rows of each text. counts: how many each text has; they add up to the number of rows."""
    return np.split(rows, np.cumsum(counts)[:-1])


@dataclass(frozen=True, slots=True)
class TokenVectors:
    """The tokens of one text. vectors: (T, D) float32; tokens: T strings, special ones included.

    offsets: [start, end] in characters of each token, [0, 0] for special ones; None where the text came as
    tokens.
    """

    vectors: Rows
    tokens: Sequence[str]
    offsets: Sequence[Sequence[int]] | None


class Command(bytes, Enum):
    """The bodies that are no texts."""

    SHOW_CONFIG = b"SHOW_CONFIG"
    SHOW_STATUS = b"SHOW_STATUS"
    SHOW_METRICS = b"SHOW_METRICS"
    TERMINATION = b"TERMINATION"


# -- client and broker ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EncodeRequest:
    """Texts to encode. `request_id` is the sender's own number and comes back as it is.

    deadline_ms: how long the sender will wait, counted from the request's arrival; None: no limit.
    spans: for each text [start, end] in characters, each to get a vector of its own; None: one for each text.
    """

    identity: bytes
    request_id: bytes
    texts: Sequence[Text]
    options: EncodeOptions = EncodeOptions()  # noqa: RUF009
    deadline_ms: int | None = None
    spans: Sequence[Spans] | None = None


@dataclass(frozen=True, slots=True)
class CommandRequest:
    identity: bytes
    request_id: bytes
    command: Command


@dataclass(frozen=True, slots=True)
class EncodeReply:
    """Vectors in the order of the texts: one row for each, or as many as `counts` says.

    rows may also be (B, T, D): a row for each token, zero behind the end of a text. tokens, offsets: those of
    each text if they were asked for. truncated: indices of the texts that were cut. usage: if asked for.
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
    """What a request took.

    num_tokens: computed for each text, special ones included. total_ms: from its arrival to its reply. queue_ms:
    until a worker was given its first text. tokenize_ms, compute_ms: of the batches that held its texts.
    """

    num_tokens: Sequence[int]
    total_ms: float
    queue_ms: float
    tokenize_ms: float
    compute_ms: float


@dataclass(frozen=True, slots=True)
class InfoReply:
    identity: bytes
    request_id: bytes
    info: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ErrorReply:
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
