"""The server: broker, workers and gateway; BertServer, to start one; and the encoder, to use without one."""

from __future__ import annotations

TYPE_CHECKING = False  # typing's own costs 5 ms, in which Ctrl-C would end a start with a traceback
if TYPE_CHECKING:
    from .compat.bert_server import BertServer as BertServer
    from .worker.encoder import Encoder as Encoder

    __version__: str

__all__ = ["BertServer", "Encoder", "__version__"]


def __getattr__(name: str) -> object:
    # Late: the encoder brings torch along, which the server process must never load.
    if name == "Encoder":
        from .worker.encoder import Encoder

        return Encoder
    if name == "BertServer":
        from .compat.bert_server import BertServer

        return BertServer
    if name == "__version__":
        from .settings import own_version

        return own_version()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
