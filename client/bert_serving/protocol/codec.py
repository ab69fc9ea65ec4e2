"""Turn messages into frames and frames into messages.

Clients and the broker use bert-as-service's wire format with additions. bert-as-service's client (the "old" one)
ignores the additions:

    request        identity | body | request_id | num_texts     body: JSON list, JSON object or a command
    encode reply   identity | info | array | request_id         info: dtype, shape, tokens, truncated, ...
    error reply    identity | info | empty | request_id         info: error, and an invalid dtype
    info reply     identity | info | request_id

The old client passes the invalid dtype to numpy, which raises an error that contains our message.

`workers` has the messages between the broker and its workers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, cast

from .encoding import (
    Frame,
    Frames,
    array_frame,
    array_from_frame,
    array_info,
    dump_json,
    load_json,
    refuse_constant,
)
from .errors import InvalidRequest, PayloadTooLarge, error_from_info
from .known_options import known_options, options_to_json
from .messages import (
    Command,
    CommandRequest,
    EncodeReply,
    EncodeRequest,
    ErrorReply,
    InfoReply,
    JsonObject,
    Reply,
    Request,
    TraceContext,
    Usage,
)
from .options import check_spans
from .shortened import shortened
from .texts import check_texts

_COMMANDS = {command.value: command for command in Command}
MAX_IDENTITY_BYTES = 255  # as in ZeroMQ; without a limit, a server would store identities of any size
_NUM_FRAMES = 4  # of a request
_MAX_COMMAND_BYTES = max(map(len, _COMMANDS))
_MAX_NUMBER_DIGITS = 20
_MAX_DEADLINE_MS = 2**53
_MAX_NAME_CHARS = 128
_MAX_TRACESTATE_CHARS = 512
# Of a version that is not known yet, more may follow.
_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-[!-~]{0,100})?"
)
_DEADLINE = re.compile(rb'\{"deadline_ms":\d+')
_ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")

# -- client to broker ----------------------------------------------------------------------------------


def request_to_frames(request: Request) -> Frames:
    """Return the four frames of a request."""
    if isinstance(request, CommandRequest):
        return [request.identity, request.command.value, request.request_id, b"0"]
    body: JsonObject = {} if request.deadline_ms is None else {"deadline_ms": request.deadline_ms}
    body["texts"] = request.texts
    if options := options_to_json(request.options):
        body["options"] = options
    if request.spans is not None:
        body["spans"] = request.spans
    for name in ("flow", "flow_share", "trace"):
        if (value := getattr(request, name)) is not None:
            body[name] = value
    if (context := request.trace_context) is not None:
        body |= {name: value for name in context.__slots__ if (value := getattr(context, name)) is not None}
    # A request that has only texts has a list as body, as the old client sends it.
    plain = body if len(body) > 1 else request.texts
    return [request.identity, dump_json(plain), request.request_id, b"%d" % len(request.texts)]


def with_deadline(frames: Frames, deadline_ms: int) -> Frames:
    """Return frames from `request_to_frames` with a new deadline, if they have one. Does not parse the body."""
    body = bytes(frames[1])
    found = _DEADLINE.match(body)
    if found is None:
        return frames
    return [frames[0], b'{"deadline_ms":%d' % deadline_ms + body[found.end() :], *frames[2:]]


def sender_of(frames: Sequence[Frame]) -> tuple[bytes, bytes] | None:
    """Return (identity, request_id) for a reply to these frames, or None if they have no valid identity.

    Used for frames that `request_from_frames` refused. A request id that is not a number becomes b"0".
    """
    if len(frames) < 2 or not 1 <= len(frames[0]) <= MAX_IDENTITY_BYTES:
        return None
    request_id = bytes(frames[2]) if len(frames) > 2 and _is_number(frames[2]) else b"0"
    return bytes(frames[0]), request_id


def announced_texts(frames: Sequence[Frame]) -> int:
    """Return the number of texts that a message announces; 0 if it announces none. The body is not read."""
    return int(bytes(frames[3])) if len(frames) == _NUM_FRAMES and _is_number(frames[3]) else 0


def is_command(frames: Sequence[Frame]) -> bool:
    """Return whether a message is a command, or would be one with valid frames beside its body."""
    return len(frames) == _NUM_FRAMES and len(frames[1]) <= _MAX_COMMAND_BYTES and bytes(frames[1]) in _COMMANDS


def request_from_frames(frames: Sequence[Frame]) -> Request:
    """Return the request in the frames. Raises InvalidRequest; the message says what was expected."""
    if len(frames) != _NUM_FRAMES:
        raise InvalidRequest(
            f"a request has 4 frames (identity; body; request id; number of texts), got {len(frames)}"
        )
    identity, body, request_id, num_texts = frames
    command = _COMMANDS[bytes(body)] if is_command(frames) else None
    if command is Command.TERMINATION:  # not checked: it gets no reply, and old clients send empty frames
        return CommandRequest(bytes(identity), bytes(request_id), command)
    if not 1 <= len(identity) <= MAX_IDENTITY_BYTES:
        raise InvalidRequest(f"identity must have 1 to {MAX_IDENTITY_BYTES} bytes, got {len(identity)}")
    if not _is_number(request_id):
        raise InvalidRequest(f"request id must be 1 to {_MAX_NUMBER_DIGITS} decimal digits")
    if command is not None:
        return CommandRequest(bytes(identity), bytes(request_id), command)
    if not _is_number(num_texts):
        raise InvalidRequest(f"number of texts must be 1 to {_MAX_NUMBER_DIGITS} decimal digits")
    value = parse_json(body)
    content: JsonObject = value if isinstance(value, dict) else {"texts": value}
    texts = content.get("texts")
    if isinstance(texts, list) and len(texts) != int(num_texts):  # first, since it takes no time
        raise InvalidRequest(f"the request announces {int(num_texts)} texts but holds {len(texts)}")
    return checked_request(bytes(identity), bytes(request_id), content)


def checked_request(identity: bytes, request_id: bytes, content: JsonObject) -> EncodeRequest:
    """Return the request with this content, as it is in the body of a message. Raises InvalidRequest."""
    texts: Any = content.get("texts")  # checked below
    try:
        check_texts(texts, may_be_empty=True, may_be_mixed=True)
        options = known_options(content.get("options"))
        if (spans := content.get("spans")) is not None:
            check_spans(spans, len(texts))
    except PayloadTooLarge:
        raise
    except (TypeError, ValueError) as exc:
        raise InvalidRequest(str(exc)) from exc
    return EncodeRequest(
        identity,
        request_id,
        texts,
        options,
        _deadline(content.get("deadline_ms")),
        spans,
        flow=_name("flow", content.get("flow")),
        flow_share=_share(content.get("flow_share")),
        trace=_name("trace", content.get("trace")),
        trace_context=trace_context_of(content.get("traceparent"), content.get("tracestate")),
    )


def trace_context_of(traceparent: object, tracestate: object) -> TraceContext | None:
    """Return the trace context in a message. It is ignored if it is not valid, as W3C Trace Context demands."""
    if not isinstance(traceparent, str) or not _TRACEPARENT.fullmatch(traceparent):
        return None
    is_valid = isinstance(tracestate, str) and len(tracestate) <= _MAX_TRACESTATE_CHARS and tracestate.isascii()
    return TraceContext(traceparent, cast("str", tracestate) if is_valid else None)


def _deadline(value: object) -> int | None:
    if value is None:
        return None
    if type(value) is not int or not 0 <= value <= _MAX_DEADLINE_MS:
        raise InvalidRequest(f"deadline_ms must be a whole number of milliseconds, got {shortened(value)}")
    return value


def _name(key: str, value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not 1 <= len(value) <= _MAX_NAME_CHARS or not value.isprintable():
        raise InvalidRequest(
            f"{key} must be a string of 1 to {_MAX_NAME_CHARS} printable characters, got {shortened(value)}"
        )
    return value


def _share(value: object) -> float | None:
    if value is None:
        return None
    if type(value) not in (int, float) or not 0 < value <= 1:  # type: ignore[operator]
        raise InvalidRequest(f"flow_share must be a number above 0 and at most 1, got {shortened(value)}")
    return float(value)  # type: ignore[arg-type]


def parse_json(body: Frame) -> object:
    """Return the JSON value in the body. Raises InvalidRequest if the body is not JSON."""
    try:
        return load_json(body)
    except ValueError as exc:
        if _ESCAPED_SURROGATE.search(body) is None:
            raise InvalidRequest(f"the body is not JSON: {exc}") from exc
    # orjson refuses lone surrogates with a vague message. json reads them, and later check_texts refuses them with
    # an error that names the text.
    try:
        return json.loads(bytes(body), parse_constant=refuse_constant)
    except (ValueError, RecursionError) as exc:
        raise InvalidRequest(f"the body is not JSON: {exc}") from exc


def _is_number(frame: Frame) -> bool:
    return len(frame) <= _MAX_NUMBER_DIGITS and bytes(frame).isdigit()


# -- broker to client ----------------------------------------------------------------------------------


def reply_to_frames(reply: Reply) -> Frames:
    """Return the frames of a reply. The old client can read them too."""
    if isinstance(reply, InfoReply):
        return [reply.identity, dump_json(reply.info), reply.request_id]
    if isinstance(reply, ErrorReply):
        error = reply.error.to_info()
        # bert-serving-client 1.10.0 passes dtype to numpy, which raises "data type '...' not understood" with
        # this message in it. Commas are replaced, because numpy would read a list of formats.
        dtype = f"{error['code']}: {error['message']}".replace(",", ";")
        return [
            reply.identity,
            dump_json({"dtype": dtype, "shape": [0], "tokens": "", "error": error}),
            b"",
            reply.request_id,
        ]
    info = array_info(reply.rows)
    info["tokens"] = "" if reply.tokens is None else reply.tokens
    for name in ("truncated", "counts", "offsets", "errors"):
        if value := getattr(reply, name):
            info[name] = value
    if (usage := reply.usage) is not None:
        info["usage"] = {name: getattr(usage, name) for name in usage.__slots__}
    return [reply.identity, dump_json(info), array_frame(reply.rows), reply.request_id]


def reply_from_frames(frames: Sequence[Frame]) -> Reply:
    """Return the reply in the frames. Raises ValueError if they are not a reply."""
    if len(frames) not in (3, 4):
        raise ValueError(f"a reply has 3 or 4 frames, got {len(frames)}")
    identity, request_id = bytes(frames[0]), bytes(frames[-1])
    info = load_json(frames[1])
    if len(frames) == 3:
        return InfoReply(identity, request_id, info)
    try:
        if "error" in info:
            return ErrorReply(identity, request_id, error_from_info(info["error"]))
        rows = array_from_frame(info, frames[2])
        tokens, usage = info.get("tokens"), info.get("usage")
        usage = None if usage is None else Usage(**usage)
    except (AttributeError, KeyError, TypeError) as exc:
        raise ValueError(f"the reply cannot be read: {exc!r}") from exc
    return EncodeReply(
        identity,
        request_id,
        rows,
        tokens if tokens != "" else None,
        info.get("truncated", ()),
        info.get("counts"),
        info.get("offsets"),
        usage,
        info.get("errors", ()),
    )
