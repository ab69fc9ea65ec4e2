"""The messages between clients and the broker: one frozen dataclass for each kind of message.

    client  -> broker   EncodeRequest, CommandRequest
    broker  -> client   EncodeReply, InfoReply, ErrorReply

`codec` turns each of them into frames and back. `workers` has the messages between the broker and its workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeAlias, TypedDict

import numpy as np
import numpy.typing as npt

from .errors import ServingError
from .options import EncodeOptions

#: bert-serving-client 1.10.0 accepts only a server that reports this wire version as `server_version`.
WIRE_VERSION = "1.10.0"


class TextPair(TypedDict):
    """Two texts that the model reads as one sequence. In these texts, "|||" is not a separator."""

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

#: A JSON object that was read or is to be written. Its values can be of any JSON type.
JsonObject: TypeAlias = dict[str, Any]


def split_rows(rows: Rows, counts: Sequence[int]) -> list[Rows]:
    """Return one array for each text. counts: the number of rows of each text; their sum is len(rows)."""
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
    SHOW_HISTORY = b"SHOW_HISTORY"  # what the server did in the last minutes, for the page in the browser
    SHOW_RECENT = b"SHOW_RECENT"  # the end of the history
    TERMINATION = b"TERMINATION"
    CANCEL = b"CANCEL"  # ends the request with the same identity and request id; has no reply


# -- client and broker ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TraceContext:
    """The span of the caller that a request belongs to, as in the headers of W3C Trace Context.

    traceparent: version, trace id, span id and flags. tracestate: what vendors of tracing add; None: nothing.
    """

    traceparent: str
    tracestate: str | None = None

    @property
    def trace_id(self) -> str:
        """The trace, as 32 hexadecimal digits."""
        return self.traceparent[3:35]


@dataclass(frozen=True, slots=True)
class EncodeRequest:
    """A request for vectors. The reply carries the same `request_id`, a decimal number that the client chose.

    deadline_ms: how long the client waits, counted from the arrival of the request; None: no limit.
    spans: the spans of each text; the reply has one vector for each span. None: one vector for each text.
    flow: a name for the caller; callers share the server fairly. flow_share: the largest part of the server's
    memory that the flow may use, in (0, 1]. The broker ignores both unless they come from one of its gateways.
    trace: a name for this request, which the logs of all processes show. trace_context: for the traces that the
    server exports, if it does.
    """

    identity: bytes
    request_id: bytes
    texts: Sequence[Text]
    options: EncodeOptions = EncodeOptions()  # noqa: RUF009
    deadline_ms: int | None = None
    spans: Sequence[Spans] | None = None
    flow: str | None = None
    flow_share: float | None = None
    trace: str | None = None
    trace_context: TraceContext | None = None


@dataclass(frozen=True, slots=True)
class CommandRequest:
    """A request for the server's configuration, status or metrics, for its termination, or to cancel a request."""

    identity: bytes
    request_id: bytes
    command: Command


class TextError(TypedDict):
    """Why a text could not be encoded. index: of the text in the request. code: see ServingError."""

    index: int
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class EncodeReply:
    """The vectors of a request, in the order of its texts.

    rows: (R, D), one row for each text, or counts[i] rows for text i. With pooling_strategy NONE and without
    `ragged`: (B, T, D), one row for each token, filled with zeros after the last token of a text.
    tokens, offsets, usage: None unless the request asked for them. truncated: indices of the texts that were cut.
    errors: the texts that could not be encoded, if the option on_error is "null".
    """

    identity: bytes
    request_id: bytes
    rows: Rows
    tokens: Sequence[Sequence[str]] | None = None
    truncated: Sequence[int] = ()
    counts: Sequence[int] | None = None
    offsets: Sequence[Sequence[Sequence[int]] | None] | None = None
    usage: Usage | None = None
    errors: Sequence[TextError] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """The tokens and the time that a request took.

    num_tokens: number of tokens of each text, special tokens included. total_ms: time from the arrival of the
    request to its reply. queue_ms: time from the arrival of the request until its first text was sent to a worker.
    tokenize_ms, compute_ms: how long the batches with texts of the request took to tokenize and to compute.
    model: fingerprint of the model that computed the vectors.
    """

    num_tokens: Sequence[int]
    total_ms: float
    queue_ms: float
    tokenize_ms: float
    compute_ms: float
    model: str = ""


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


Request: TypeAlias = EncodeRequest | CommandRequest
Reply: TypeAlias = EncodeReply | InfoReply | ErrorReply
