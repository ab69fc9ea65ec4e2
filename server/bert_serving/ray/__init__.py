"""bert-serving on Ray: `build_app` is an application for Ray Serve, `Embed` a class for Ray Data.

The names are imported at their first use: Ray's controller imports this package for the autoscaling policy alone.
`__init__.pyi` declares their types.
"""

from __future__ import annotations

__all__ = ["Embed", "build_app"]


def __getattr__(name: str) -> object:
    if name == "build_app":
        from .app import build_app

        return build_app
    if name == "Embed":
        from .embed import Embed

        return Embed
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
