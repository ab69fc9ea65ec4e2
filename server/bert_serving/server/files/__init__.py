"""The vectors of texts in files and tables of any size. Needs the extra `files`."""

from .arrays import VECTOR
from .embed import Embed
from .errors import FileError

__all__ = ["VECTOR", "Embed", "FileError"]
