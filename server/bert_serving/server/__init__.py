"""The server. BertServer starts a server from Python; Encoder and AsyncEncoder compute vectors without a server.

The names are imported at their first use, because Encoder imports torch, which the server process must never load.
`__init__.pyi` declares their types.
"""

from __future__ import annotations

__all__ = ["AsyncEncoder", "BertServer", "Encoder", "__version__"]


def __getattr__(name: str) -> object:
    if name == "Encoder":
        from .worker.encoder import Encoder

        return Encoder
    if name == "AsyncEncoder":
        from .engine.async_encoder import AsyncEncoder

        return AsyncEncoder
    if name == "BertServer":
        from .compat.bert_server import BertServer

        return BertServer
    if name == "__version__":
        from .settings import own_version

        return own_version()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
