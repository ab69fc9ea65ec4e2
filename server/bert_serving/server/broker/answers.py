"""Turns the end of a request into its reply, and counts it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence

from bert_serving.protocol import ErrorReply, ServingError
from bert_serving.protocol.trace_names import quoted

from .account import NoRoom
from .admission import Admission
from .budget import Budget
from .job import Job
from .metrics import BrokerMetrics
from .observer import BrokerObserver, JobTracer
from .replies import Replies
from .scheduler import Failure

log = logging.getLogger(__name__)


class Answers:
    """Posts the replies to requests that are done or have failed. token_rows, observers, tracer: see Broker."""

    def __init__(
        self,
        replies: Replies,
        metrics: BrokerMetrics,
        admission: Admission,
        *,
        token_rows: int | None,
        observers: Sequence[BrokerObserver],
        tracer: JobTracer | None,
    ) -> None:
        self._replies = replies
        self._metrics = metrics
        self._admission = admission
        self._token_rows = token_rows
        self._observers = observers
        self._tracer = tracer

    def job_done(self, job: Job, now: float) -> None:
        """Reply to a job whose vectors have all arrived."""
        try:
            self._reply(job, now)
            if self._tracer is not None:
                self._tracer.done(job, now, time.monotonic())
            return
        except NoRoom as exc:
            error = self._admission.no_bytes(exc)
        except Exception:  # an unexpected error must fail only this request
            log.exception("cannot reply to %r", job, extra={"trace": job.request.trace})
            error = ServingError("internal error")
        job.reservation.release()
        self.failed([Failure(job, error)], now)

    def _reply(self, job: Job, now: float) -> None:
        usage = job.usage(now)
        self._metrics.latency.observe(usage.total_ms / 1000)
        self._metrics.queue.observe(usage.queue_ms / 1000)
        for observer in self._observers:
            observer.request_done(job.request, usage)
        self._replies.post(job.to_reply(usage, token_rows=self._token_rows), now, job.reservation)

    def failed(self, failures: Iterable[Failure], now: float, budget: Budget | None = None) -> None:
        """Reply to jobs that failed, until the budget is spent. The other jobs fail in the next step."""
        for failure in failures:
            request = failure.job.request
            log.debug(
                "request failed trace=%s error=%s",
                quoted(request.trace),
                failure.error,
                extra={"trace": request.trace},
            )
            if self._tracer is not None:
                self._tracer.failed(failure.job, failure.error, now)
            self.error(request.identity, request.request_id, failure.error, now)
            if budget is not None and budget.is_spent:
                return

    def cancelled(self, job: Job, now: float) -> None:
        """Count a job that has no reply, because its client does not wait for one."""
        self._metrics.cancelled.inc()
        if self._tracer is not None:
            self._tracer.cancelled(job, now)

    def error(self, identity: bytes, request_id: bytes, error: ServingError, now: float) -> None:
        """Reply to a request with an error."""
        self._metrics.errors.labels(error.code).inc()
        for observer in self._observers:
            observer.request_failed(error)
        self._replies.post(ErrorReply(identity, request_id, error), now)
