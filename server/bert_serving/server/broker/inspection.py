"""What SHOW_CONFIG, SHOW_STATUS, SHOW_METRICS and SHOW_HISTORY return: the state of the broker at the moment."""

from __future__ import annotations

from bert_serving.protocol import Command, CommandRequest

from .history import History
from .loop_clock import LoopClock
from .metrics import BrokerMetrics
from .replies import Replies
from .scheduler import Scheduler
from .status import StatusReport
from .text_format import Snapshot
from .workers import Workers

# Metrics and the history are many numbers, and any client may ask for them. So this many may be asked for at once
# and this many in a second; beyond that, the same metrics are sent again, and only the end of the history.
_FRESH_AT_ONCE = 20
_FRESH_PER_S = 10.0


class Inspection:
    """Collects what clients may know about the broker."""

    def __init__(
        self,
        report: StatusReport,
        metrics: BrokerMetrics,
        scheduler: Scheduler,
        replies: Replies,
        workers: Workers,
        history: History,
        clock: LoopClock,
    ) -> None:
        self._report = report
        self._metrics = metrics
        self._scheduler = scheduler
        self._replies = replies
        self._workers = workers
        self._history = history
        self._clock = clock
        self._last_snapshot = Snapshot("", [])
        self._num_fresh_left = float(_FRESH_AT_ONCE)
        self._refilled_at = 0.0

    def info(self, request: CommandRequest, now: float, *, is_accepting: bool) -> dict[str, object]:
        """Return the content of the reply to a command."""
        if request.command is Command.SHOW_CONFIG:
            return self._report.config(request.identity)
        if request.command is Command.SHOW_METRICS:
            return self._snapshot(now)._asdict()
        is_ready = is_accepting and self._workers.have_recent_forwards()
        if request.command in (Command.SHOW_HISTORY, Command.SHOW_RECENT):
            is_whole = request.command is Command.SHOW_HISTORY and self._may_take_long(now)
            workers = [view.to_info(self._clock.now) for view in self._workers.views.values()]
            capacity = self._scheduler.admission.texts.capacity
            return {
                **self._history.to_info(is_whole=is_whole),
                "ready": is_ready,
                "workers": workers,
                "queue_capacity": capacity,
            }
        self._set_gauges(now)
        return self._report.status(
            request.identity, now, loop_now=self._clock.now, is_ready=is_ready, model=self._scheduler.model
        )

    def _snapshot(self, now: float) -> Snapshot:
        if self._may_take_long(now):
            self._set_gauges(now)
            self._last_snapshot = self._metrics.registry.snapshot()
        return self._last_snapshot

    def _may_take_long(self, now: float) -> bool:
        """Return whether a reply may take longer than the one to SHOW_STATUS; count it then."""
        left = self._num_fresh_left + _FRESH_PER_S * (now - self._refilled_at)
        self._num_fresh_left, self._refilled_at = min(left, float(_FRESH_AT_ONCE)), now
        if self._num_fresh_left < 1.0:
            return False
        self._num_fresh_left -= 1.0
        return True

    def _set_gauges(self, now: float) -> None:
        metrics, admission = self._metrics, self._scheduler.admission
        memory = admission.memory
        metrics.queue_texts.set(self._scheduler.num_waiting)
        metrics.queue_capacity.set(admission.texts.capacity)
        metrics.queue_age.set(self._scheduler.oldest_age_s(now))
        metrics.show_waiting(self._scheduler.waiting(now))
        metrics.show_refused(admission.num_refused)
        metrics.open_requests.set(self._scheduler.num_jobs)
        for name, worker in self._workers.views.items():
            metrics.set_worker_state(name, worker.state(self._clock.now))
        metrics.workers_ready.set(self._workers.num_ready)
        metrics.held_bytes.set(memory.held)
        metrics.held_capacity.set(memory.capacity)
        metrics.flows.set(memory.num_flows)
        metrics.outbox_bytes.set(self._replies.held_bytes)
        metrics.clients.set(self._replies.num_subscribers)
