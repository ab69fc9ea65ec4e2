"""The interface through which the broker reports its requests, for example to TeiMetrics."""

from __future__ import annotations

from typing import Protocol

from bert_serving.protocol import EncodeRequest, ServingError, Usage


class BrokerObserver(Protocol):
    """Methods that the broker calls once when a request arrives, and once when its reply is known.

    They must return quickly, because the broker waits for them.
    """

    def request_arrived(self, request: EncodeRequest | None) -> None:
        """A request for vectors has arrived. None: the message cannot be read, so the request will fail."""

    def request_done(self, request: EncodeRequest, usage: Usage) -> None:
        """All vectors of a request are computed."""

    def request_failed(self, error: ServingError) -> None:
        """A request gets an error as its reply."""
