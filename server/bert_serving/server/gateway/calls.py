"""What a request says about itself in its headers: who sends it, how long it may take, and its names in logs."""

from __future__ import annotations

import asyncio
import math
import re
import time
import uuid
from collections.abc import Awaitable
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import TypeVar, cast, get_args

from bert_serving.protocol import DeadlineExceeded
from fastapi import Request
from starlette.types import Scope

from .errors import UnreadableBody
from .keys import API_KEY
from .texts import OnError

#: Key in the ASGI scope of a request: its id.
REQUEST_ID = "bert_serving.request_id"
#: Key in the ASGI scope of a request: the id of the trace that it belongs to; empty: none.
TRACE_ID = "bert_serving.trace_id"

_MAX_ID_CHARS = 95  # so that a request id, a slash and a trace id fit into the 128 characters of a trace
_MAX_FLOW_CHARS = 128
_MAX_TIMEOUT_MS = 2**53
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Call:
    """What the broker must know about a request besides its texts.

    flow, flow_share: see EncodeRequest. deadline: monotonic seconds; None: no limit. trace: the id of the request,
    and the id of the trace that it belongs to, if there is one. on_error: see OnError.
    """

    flow: str | None = None
    flow_share: float | None = None
    deadline: float | None = None
    timeout_ms: int | None = None
    trace: str | None = None
    on_error: OnError = "error"

    def remaining_ms(self) -> int | None:
        """Return the milliseconds until the deadline, or None. Raises DeadlineExceeded if it has passed."""
        if self.deadline is None:
            return None
        remaining = math.ceil((self.deadline - time.monotonic()) * 1000)
        if remaining <= 0:
            raise self.exceeded()
        return remaining

    async def limit(self, work: Awaitable[_T]) -> _T:
        """Return the result of the work. If the deadline passes before, cancel it and raise DeadlineExceeded."""
        seconds = None if self.deadline is None else self.deadline - time.monotonic()
        try:
            return await asyncio.wait_for(work, seconds)
        except TimeoutError:  # of wait_for, or of the work
            self.remaining_ms()
            raise

    async def sleep(self, seconds: float) -> None:
        """Wait, but at most until the deadline. Raises DeadlineExceeded if it has passed."""
        remaining_ms = self.remaining_ms()
        if remaining_ms is not None:
            seconds = min(seconds, remaining_ms / 1000)
        await asyncio.sleep(seconds)
        self.remaining_ms()

    def exceeded(self) -> DeadlineExceeded:
        """Return the error of a request whose deadline has passed."""
        return DeadlineExceeded(f"the deadline of {self.timeout_ms} ms has passed")


def call_of(request: Request) -> Call:
    """Return what the headers of a request say. Raises UnreadableBody if a value is not valid."""
    flow = flow_of(request)
    timeout_ms = _timeout_ms(request.headers.get("x-request-timeout-ms"))
    deadline = None if timeout_ms is None else time.monotonic() + timeout_ms / 1000
    on_error = _on_error(request.headers.get("x-on-error", "error"))
    key = request.scope.get(API_KEY)
    share = None if key is None else key.share
    return Call(flow, share, deadline, timeout_ms, _trace_of(request), on_error)


def request_id_of(scope: Scope) -> str:
    """Return the id that the caller sent in x-request-id, or a new one."""
    given: bytes = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
    is_valid = 1 <= len(given) <= _MAX_ID_CHARS and given.isascii() and given.decode().isprintable()
    return given.decode() if is_valid else uuid.uuid4().hex


def trace_id_of(scope: Scope) -> str:
    """Return the trace id of a traceparent header (W3C Trace Context); empty if there is none that is valid."""
    given = [value for name, value in scope["headers"] if name == b"traceparent"]
    match = _TRACEPARENT.fullmatch(given[0].decode("latin-1")) if len(given) == 1 else None
    return match[1] if match and int(match[1], 16) else ""


def path_of(scope: Scope) -> str:
    """Return the path of a request without the prefix `root_path`."""
    prefix: str = scope.get("app_root_path", scope.get("root_path", ""))  # Starlette adds to root_path
    path: str = scope["path"]
    return path.removeprefix(prefix)


def flow_of(request: Request) -> str:
    """Return the name of the caller's flow, which is its key or else its address.

    Call this after the check of the key. Behind a proxy, the address is that of the proxy, unless
    -http_trusted_proxies names it.
    """
    key = request.scope.get(API_KEY)
    name = (
        f"address:{_network_of(request.client.host) if request.client else ''}"
        if key is None
        else f"key:{key.name}"
    )
    return name[:_MAX_FLOW_CHARS]


def _network_of(host: str) -> str:
    """Return an address, or the /64 network of an IPv6 address: one machine can have all addresses in it."""
    try:
        address = ip_address(host)
    except ValueError:
        return host
    return host if address.version == 4 else str(ip_network((address, 64), strict=False))


def _timeout_ms(given: str | None) -> int | None:
    if given is None:
        return None
    if not (given.isascii() and given.isdigit() and len(given) <= 16 and 0 < int(given) <= _MAX_TIMEOUT_MS):
        raise UnreadableBody(f"X-Request-Timeout-Ms must be a whole number from 1, got {given[:40]!r}")
    return int(given)


def _on_error(given: str) -> OnError:
    for choice in get_args(OnError):
        if choice == given:
            return cast("OnError", choice)
    raise UnreadableBody(f"X-On-Error must be error or null, got {given[:40]!r}")


def _trace_of(request: Request) -> str:
    """Return the request id, and after a slash the id of the trace of the request, if there is one.

    A request id with a slash is always followed by one, so that none of it can look like the id of a trace.
    """
    request_id = str(request.scope.get(REQUEST_ID, "-"))
    trace_id = request.scope[TRACE_ID] if TRACE_ID in request.scope else trace_id_of(request.scope)
    return f"{request_id}/{trace_id}" if trace_id or "/" in request_id else request_id
