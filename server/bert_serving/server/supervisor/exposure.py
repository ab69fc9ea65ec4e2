"""Which ports other machines can use without a key. Each of them gives a warning at start."""

from __future__ import annotations

from ..broker.ports import is_loopback
from ..settings import Settings


def exposures(settings: Settings) -> list[str]:
    """Return a line for each unprotected way into the server: the risk, and the options that remove it."""
    lines = []
    if not is_loopback(settings.host) and settings.curve_dir is None:
        lines.append(
            f"ZeroMQ listens on {settings.host} without encryption: every machine that reaches ports "
            f"{settings.port} and {settings.port_out} can use this server; see -curve_dir, or use -host 127.0.0.1"
        )
    if settings.http_port is not None and not is_loopback(settings.http_address) and not settings.requires_key:
        lines.append(
            f"HTTP listens on {settings.http_address} without an API key: every machine that reaches port "
            f"{settings.http_port} can use this server; see -api_key_file, or use -http_host 127.0.0.1"
        )
    return lines
