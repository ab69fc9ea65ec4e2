"""The error that ends bert-serving-encode."""

from __future__ import annotations


class FileError(Exception):
    """What was asked for cannot be done; the message says why, in one line."""
