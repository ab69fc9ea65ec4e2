"""Values of callers in error messages: shortened, because a message must not be as long as the request."""

from __future__ import annotations

import reprlib

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80
_SHORT.maxlong = 40
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = 4
_SHORT.maxlevel = 3


def shown(value: object) -> str:
    """Return a value as Python writes it, with its middle or its end left out if it is long."""
    return "null" if value is None else _SHORT.repr(value)
