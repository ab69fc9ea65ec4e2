"""What is known about an HTTP request that has ended, for metrics, logs and traces."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from starlette.types import Scope

from .calls import REQUEST_ID, TRACE_ID
from .http_protocol import ENDED_WITH
from .keys import API_KEY
from .metrics import UNKNOWN_ROUTE

#: Key in the ASGI scope of a request: its RequestFacts.
FACTS = "bert_serving.facts"

_METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"})


@dataclass(slots=True)
class RequestFacts:
    """A request, from its head to the end of its response.

    started_at: seconds of time.perf_counter(). status: of the response; 499 if the caller has left before.
    num_texts, num_tokens: of the texts whose vectors were computed. computed_ns: when the last of them were, in
    nanoseconds of time.time_ns(); None: there were none.
    """

    scope: Scope
    started_at: float = field(default_factory=time.perf_counter)
    status: int = 500
    num_texts: int = 0
    num_tokens: int = 0
    computed_ns: int | None = None

    @property
    def method(self) -> str:
        """The method of HTTP; _OTHER for one that HTTP does not define."""
        method: str = self.scope["method"]
        return method if method in _METHODS else "_OTHER"

    @property
    def route(self) -> str:
        """The path of the route, not that of the request: any caller could make up new paths."""
        route: str = getattr(self.scope.get("route"), "path", UNKNOWN_ROUTE)
        return route

    @property
    def ended_with(self) -> int | None:
        """Why the request was cancelled because of its caller, as a status; None: it was not."""
        return self.scope.get(ENDED_WITH)

    @property
    def seconds(self) -> float:
        """The time since the request began."""
        return time.perf_counter() - self.started_at

    @property
    def request_id(self) -> str:
        """The id that the response names."""
        return str(self.scope[REQUEST_ID])

    @property
    def trace_id(self) -> str:
        """The trace that the request belongs to; empty: none."""
        return str(self.scope.get(TRACE_ID, ""))

    @property
    def key_name(self) -> str | None:
        """The name of the API key; None if no key is required, or if the caller has sent none."""
        return getattr(self.scope.get(API_KEY), "name", None)

    def count_computed(self, num_texts: int, num_tokens: int) -> None:
        """Add texts whose vectors have been computed."""
        self.num_texts += num_texts
        self.num_tokens += num_tokens
        self.computed_ns = time.time_ns()
