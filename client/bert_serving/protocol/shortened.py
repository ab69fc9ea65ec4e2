"""Values of a caller in error messages."""

from __future__ import annotations

import reprlib

_MAX_CHARS = 80

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = _MAX_CHARS
_repr.maxlevel = 2


def shortened(value: object) -> str:
    """Return the `repr` of a value, cut to 80 characters: an error must not repeat a megabyte of the request.

    Only the beginning of a large value is read.
    """
    text = _repr.repr(value)
    return text if len(text) <= _MAX_CHARS else f"{text[: _MAX_CHARS - 3]}..."
