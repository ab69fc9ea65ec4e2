"""The messages between clients and the broker, and the errors and options in them.

`bert_serving.protocol.workers` has the messages between the broker and its workers. Clients do not import it.

No module of this package opens a socket or imports torch.
"""

from .codec import (
    MAX_IDENTITY_BYTES,
    parse_json,
    reply_from_frames,
    reply_to_frames,
    request_from_frames,
    request_to_frames,
    sender_of,
)
from .encoding import Frames
from .errors import (
    ERROR_CODES,
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    PayloadTooLarge,
    ServingError,
    Unauthorized,
    Unavailable,
    WorkerFailed,
    error_from_info,
)
from .messages import (
    WIRE_VERSION,
    Command,
    CommandRequest,
    EncodeReply,
    EncodeRequest,
    ErrorReply,
    InfoReply,
    JsonObject,
    Reply,
    Request,
    Rows,
    Spans,
    Text,
    TextPair,
    Texts,
    TokenVectors,
    Usage,
    split_rows,
)
from .options import (
    POOLING_STRATEGIES,
    EncodeOptions,
    EncodeOptionsDict,
    check_spans,
    options_from_json,
    pooling_name,
)
from .shortened import shortened
from .texts import check_texts, has_lone_surrogate

__all__ = [
    "ERROR_CODES",
    "MAX_IDENTITY_BYTES",
    "POOLING_STRATEGIES",
    "WIRE_VERSION",
    "Command",
    "CommandRequest",
    "DeadlineExceeded",
    "EncodeOptions",
    "EncodeOptionsDict",
    "EncodeReply",
    "EncodeRequest",
    "ErrorReply",
    "Frames",
    "InfoReply",
    "InvalidRequest",
    "JsonObject",
    "Overloaded",
    "PayloadTooLarge",
    "Reply",
    "Request",
    "Rows",
    "ServingError",
    "Spans",
    "Text",
    "TextPair",
    "Texts",
    "TokenVectors",
    "Unauthorized",
    "Unavailable",
    "Usage",
    "WorkerFailed",
    "check_spans",
    "check_texts",
    "error_from_info",
    "has_lone_surrogate",
    "options_from_json",
    "parse_json",
    "pooling_name",
    "reply_from_frames",
    "reply_to_frames",
    "request_from_frames",
    "request_to_frames",
    "sender_of",
    "shortened",
    "split_rows",
]
