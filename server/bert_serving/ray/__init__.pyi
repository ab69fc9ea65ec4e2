from .app import build_app as build_app
from .embed import Embed as Embed

__all__ = ["Embed", "build_app"]
