"""The limits of HTTP. Each limit is a setting; see `http_...` in settings.py for the defaults."""

from __future__ import annotations

import resource
from dataclasses import dataclass, replace

#: A caller must send and read at least this many bytes per second on average, while the gateway waits for it.
MIN_BYTES_PER_S = 1024

_OTHER_FILES = 128  # file descriptors that a gateway needs in addition to its connections


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Limits that hold before a request reaches its route. Times are in seconds.

    max_connections: connections of one gateway. max_head_bytes, max_headers: the head of a request.
    head_timeout_s: how long a head may take. body_timeout_s: period over which a body must arrive at
    MIN_BYTES_PER_S. response_timeout_s: the same for a response that its caller reads. keep_alive_s: how long a
    connection stays open between two requests.
    """

    max_connections: int
    max_head_bytes: int
    max_headers: int
    head_timeout_s: float
    body_timeout_s: float
    response_timeout_s: float
    keep_alive_s: float

    def within_open_files(self) -> ConnectionLimits:
        """Raise the process's limit of open files as far as is allowed; return limits that fit into it."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = self.max_connections + _OTHER_FILES
        if soft != resource.RLIM_INFINITY and soft < wanted:
            soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        most = self.max_connections if soft == resource.RLIM_INFINITY else max(1, soft - _OTHER_FILES)
        return replace(self, max_connections=min(self.max_connections, most))


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """Limits for the bodies of requests.

    max_bytes: one body, after decompression. max_items: texts in one request. max_nesting: levels of lists and
    objects in JSON. max_form_fields: fields of an HTML form. max_tokenize_chars: characters or ids in /tokenize
    and /decode. held_bytes: memory of one gateway for all large bodies and replies.
    """

    max_bytes: int
    max_items: int
    max_nesting: int
    max_form_fields: int
    max_tokenize_chars: int
    held_bytes: int
