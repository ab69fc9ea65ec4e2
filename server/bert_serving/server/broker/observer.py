"""The interface through which the broker reports its requests, for example to TeiMetrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from bert_serving.protocol import EncodeRequest, ServingError, Usage
from bert_serving.protocol.workers import Result

if TYPE_CHECKING:
    from .batching import InFlightBatch
    from .job import Job


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


class JobTracer(Protocol):
    """Methods that the broker calls at each stage of a request, so that a trace can be made from the times.

    All times are monotonic seconds. The methods must return quickly, because the broker waits for them.
    """

    def begin(self, request: EncodeRequest, now: float, *, is_from_gateway: bool) -> object | None:
        """A request has arrived and is accepted; what is returned becomes the `trace_handle` of its job."""

    def batch_done(self, worker: str, batch_id: int, batch: InFlightBatch, result: Result, now: float) -> None:
        """The result of a batch has arrived."""

    def done(self, job: Job, now: float, replied_at: float) -> None:
        """The last vectors of a job have arrived now, and its reply was written at `replied_at`."""

    def failed(self, job: Job, error: ServingError, now: float) -> None:
        """A job gets an error as its reply."""

    def cancelled(self, job: Job, now: float) -> None:
        """The client of a job does not wait for it any more."""

    def refused(self, request: EncodeRequest, error: ServingError, now: float, *, is_from_gateway: bool) -> None:
        """A request is refused, so it has no job."""
