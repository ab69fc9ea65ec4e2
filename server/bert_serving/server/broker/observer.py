"""What the broker reports about requests to others, such as metrics under the names of another server."""

from __future__ import annotations

from typing import Protocol

from bert_serving.protocol import EncodeRequest, ServingError, Usage


class BrokerObserver(Protocol):
    """Is called once when a request arrives, and once when its reply is known. Must be quick."""

    def request_arrived(self, request: EncodeRequest | None) -> None:
        """A request for vectors has arrived. None: a message that cannot be read, which will fail."""

    def request_done(self, request: EncodeRequest, usage: Usage) -> None:
        """All vectors of a request are computed."""

    def request_failed(self, error: ServingError) -> None:
        """A request gets an error as its reply."""
