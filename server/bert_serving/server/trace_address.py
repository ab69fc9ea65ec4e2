"""The address of a receiver of traces: what it must look like, wherever it was given."""

from __future__ import annotations

import re
from urllib.parse import urlsplit


def check_trace_address(name: str, address: str) -> None:
    """Raise ValueError, with `name` for what was given, if traces cannot be sent to an address.

    The message never has a part of an address that may hold a secret. A secret in an address is refused, because
    clients can read the settings, and because libraries may log an address.
    """
    is_secret = bool(set(address) & set("@?#"))
    got = "" if is_secret else f", got {address[:80]!r}"
    authority = re.split(r"[/?#]", address.partition("://")[2] or address, maxsplit=1)[0]
    if "@" in authority or "?" in address or "#" in address:
        raise ValueError(f"{name} must not contain a password or a query: use OTEL_EXPORTER_OTLP_HEADERS")
    if not address.lower().startswith(("http://", "https://")):
        raise ValueError(f"{name} must begin with http:// or https://{got}")
    if not _has_host(address) or re.search(r"\s", address):
        raise ValueError(f"{name} must name a host, such as http://localhost:4318{got}")


def _has_host(address: str) -> bool:
    """Whether an address names a host, and a valid port if it names one."""
    try:
        parts = urlsplit(address)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:  # such as a port that is no number
        return False
