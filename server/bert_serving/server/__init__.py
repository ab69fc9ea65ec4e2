"""The server: broker, workers and gateway; and the encoder, for use without a server."""

from __future__ import annotations

TYPE_CHECKING = False  # typing's own costs 5 ms, in which Ctrl-C would end a start with a traceback
if TYPE_CHECKING:
    from .worker.encoder import Encoder as Encoder

__all__ = ["Encoder"]


def __getattr__(name: str) -> object:
    # Late: the encoder brings torch along, which the server process must never load.
    if name == "Encoder":
        from .worker.encoder import Encoder

        return Encoder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
