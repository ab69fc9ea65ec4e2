"""The vectors of texts in files and tables of any size. Needs the extra `files`."""

from .embed import Embed
from .errors import FileError
from .outputs import VECTOR

__all__ = ["VECTOR", "Embed", "FileError"]
