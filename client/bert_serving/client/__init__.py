"""Clients of the embedding service. They need only numpy and pyzmq."""

from bert_serving.protocol import (
    DeadlineExceeded,
    EncodeOptionsDict,
    InvalidRequest,
    Overloaded,
    PayloadTooLarge,
    ServingError,
    TokenVectors,
    Unauthorized,
    Unavailable,
    WorkerFailed,
)

from .address import Address
from .aio import AsyncBertClient
from .checks import Response, client_version
from .concurrent import ConcurrentBertClient
from .sync import BertClient

__all__ = [
    "Address",
    "AsyncBertClient",
    "BertClient",
    "ConcurrentBertClient",
    "DeadlineExceeded",
    "EncodeOptionsDict",
    "InvalidRequest",
    "Overloaded",
    "PayloadTooLarge",
    "Response",
    "ServingError",
    "TokenVectors",
    "Unauthorized",
    "Unavailable",
    "WorkerFailed",
    "__version__",
]

__version__ = client_version()
