"""The error of a model that cannot be served."""

from __future__ import annotations


class ModelError(Exception):
    """The model cannot be served; the message is one line for the person who chose it."""


def one_line(exc: BaseException) -> str:
    """Return an exception's type and the first line of its message."""
    lines = str(exc).strip().splitlines()
    return f"{type(exc).__name__}: {lines[0]}" if lines else type(exc).__name__
