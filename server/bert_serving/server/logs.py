"""How the processes of a server log: as text or as JSON, one line for each event.

Only the outermost function of a process calls `set_up_logging`. A log call may add to the JSON object:

    extra={"trace": name}      the event is about one request; the name is that of EncodeRequest.trace
    extra={"traces": names}    the event is about a batch; the names are Batch.traces
    extra={"fields": mapping}  more values, each under its own name

A process that handles several requests in one thread calls `note_request` in the task of each request.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from logging import _SysExcInfoType as SysExcInfoType

LogFormat = Literal["text", "json"]

_TRACE_ID = re.compile("([0-9a-f]{32})?")
_CHATTY = ("asyncio", "uvicorn", "httpx", "httpcore", "urllib3", "filelock")
_QUOTING = ("opentelemetry.trace",)  # its warnings quote the header tracestate: a caller can write anything there

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LogOptions:
    """How a process logs. verbose: at level DEBUG, and with the messages of exceptions, which may quote a text."""

    format: LogFormat = "text"
    verbose: bool = False


@dataclass(frozen=True, slots=True)
class RequestIds:
    """The ids of a request. trace_id, span_id: those of W3C Trace Context, as hexadecimal digits; or empty."""

    request_id: str
    trace_id: str = ""
    span_id: str = ""

    def items(self) -> Iterator[tuple[str, str]]:
        """Yield the names and values of the ids that are known."""
        return ((name, value) for name in self.__slots__ if (value := getattr(self, name)))


class BatchNames(Protocol):
    """The names of the requests in a batch, and how many others there are. TraceNames are such names."""

    names: Sequence[str]
    num_more: int


# The request of the current task. The tasks that this task creates have it too.
_current: ContextVar[RequestIds | None] = ContextVar("request_ids", default=None)


def note_request(ids: RequestIds) -> None:
    """Add ids to the JSON of every event that the current task logs from now on."""
    _current.set(ids)


class WithoutMessages(logging.Formatter):
    """Writes the traceback of an exception without its message, which may contain a text of a caller."""

    def formatException(self, ei: SysExcInfoType) -> str:  # noqa: N802  # logging's name
        """Return where an exception was raised, and its type."""
        kind, _, frames = ei
        name = "no exception" if kind is None else kind.__name__
        where = "".join(traceback.format_tb(frames)).rstrip()
        return f"Traceback (most recent call last):\n{where}\n{name} (-verbose logs its message, too)"


class JsonLines(logging.Formatter):
    """Writes each event as a JSON object in one line.

    process: name of the process. exceptions: writes the tracebacks.
    """

    def __init__(self, process: str, exceptions: logging.Formatter) -> None:
        super().__init__()
        self._process = process
        self._exceptions = exceptions

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of an event."""
        event: dict[str, object] = {
            "time": _rfc3339(record.created),
            "level": record.levelname,
            "logger": record.name,
            "process": self._process,
            "message": record.getMessage(),
            **dict(_ids_of(record)),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            event["exception"] = self._exceptions.formatException(record.exc_info)
        return json.dumps(event, default=str)  # only ASCII, and line breaks are escaped


def _ids_of(record: logging.LogRecord) -> Iterator[tuple[str, object]]:
    trace: str | None = getattr(record, "trace", None)
    batch: BatchNames | None = getattr(record, "traces", None)
    if batch is not None:
        if len(batch.names) > 1:
            yield "requests", batch.names
            yield "num_requests", len(batch.names) + batch.num_more
            return
        trace = "".join(batch.names)
    if (ids := _current.get() or _ids_in(trace)) is not None:
        yield from ids.items()


def _ids_in(trace: str | None) -> RequestIds | None:
    """Return the ids in the name of a request, which is its id, or its id, a slash and a trace id.

    If the id has a slash, a trace id follows, which may be empty: see gateway/calls.py. Some requests of
    BertClient have a trace, but no id: their name begins with "-".
    """
    if not trace or trace == "-":
        return None
    request_id, _, trace_id = trace.rpartition("/")
    if not request_id or not _TRACE_ID.fullmatch(trace_id):
        return RequestIds(trace)
    return RequestIds("" if request_id == "-" else request_id, trace_id)


def _rfc3339(seconds: float) -> str:
    text = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def set_up_logging(process: str, options: LogOptions) -> None:
    """Log to standard error, one line for each event, with the name of the process."""
    exceptions = logging.Formatter if options.verbose else WithoutMessages
    handler = logging.StreamHandler(sys.stderr)
    if options.format == "json":
        handler.setFormatter(JsonLines(process, exceptions()))
        logging.captureWarnings(True)
    else:
        handler.setFormatter(exceptions(f"%(asctime)s %(levelname)s {process}: %(message)s"))
    logging.basicConfig(level=logging.DEBUG if options.verbose else logging.INFO, handlers=[handler])
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in _QUOTING:
        logging.getLogger(name).setLevel(logging.ERROR)
    _log_crashes()


def _log_crashes() -> None:
    """Log exceptions that end a thread or the process.

    Python would print their messages, which may quote a text.
    """
    sys.excepthook = _log_crash
    threading.excepthook = lambda args: log_crash(args.exc_value)


def _log_crash(_kind: type[BaseException], exc: BaseException, _where: TracebackType | None) -> None:
    log_crash(exc)


def log_crash(exc: BaseException | None) -> None:
    """Log an exception that ends a thread or the process."""
    log.critical("unexpected error", exc_info=exc)
