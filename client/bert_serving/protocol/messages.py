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
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from .errors import ServingError

#: A text, or the tokens of a text that its sender has tokenized already.
Text: TypeAlias = "str | list[str]"

#: B rows of vectors, (B, D); float32, or float16 where the server was told so.
Rows: TypeAlias = npt.NDArray[np.floating[Any]]


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
    """

    identity: bytes
    request_id: bytes
    texts: Sequence[Text]
    show_tokens: bool = False
    deadline_ms: int | None = None


@dataclass(frozen=True, slots=True)
class CommandRequest:
    identity: bytes
    request_id: bytes
    command: Command


@dataclass(frozen=True, slots=True)
class EncodeReply:
    """Vectors, one row for each text, in the order of the texts.

    tokens: the tokens of each text if they were asked for. truncated: indices of the texts that were cut.
    """

    identity: bytes
    request_id: bytes
    rows: Rows
    tokens: Sequence[Sequence[str]] | None = None
    truncated: Sequence[int] = ()


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
class Batch:
    """Texts of any number of jobs, merged for one worker."""

    batch_id: int
    texts: Sequence[Text]
    show_tokens: bool = False


@dataclass(frozen=True, slots=True)
class Result:
    """The vectors of a batch, one row for each text.

    num_tokens: the real tokens of each text, special ones included. tokenize_ms, compute_ms: time that the
    batch took in either stage.
    """

    batch_id: int
    rows: Rows
    num_tokens: Sequence[int]
    truncated: Sequence[int] = ()
    tokens: Sequence[Sequence[str]] | None = None
    tokenize_ms: float = 0.0
    compute_ms: float = 0.0


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


Request: TypeAlias = EncodeRequest | CommandRequest
Reply: TypeAlias = EncodeReply | InfoReply | ErrorReply
WorkerMessage: TypeAlias = Ready | Refused | Result | Failed | Heartbeat
BrokerMessage: TypeAlias = Batch | Stop
