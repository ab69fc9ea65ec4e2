"""What the scheduler knows about a ready worker: its limits, its batches, and its progress."""

from __future__ import annotations

from dataclasses import dataclass, field

from .batching import InFlightBatch
from .estimates import RateEstimate

# In this time, a CPU computes a few micro-batches, and a GPU a full one.
BATCH_S = 0.08
_MIN_BATCH_TOKENS = 256
_MAX_IN_FLIGHT = 2  # for long batches, and for other batches
_LONG = 2  # a batch with more tokens than this many full batches is long
_MAX_LIMITS = 10  # a batch may take this many times the limit for one micro-batch


@dataclass(slots=True)
class WorkerLoad:
    """The load of one worker.

    model: fingerprint of its model. progress_at: when it began to compute, or last showed that it computes, in
    seconds of the loop's clock. num_forwards: as in its last heartbeat. in_flight: its batches by batch_id, the
    oldest first; only `add` and `remove` change it. num_ordinary: how many of them are neither long nor urgent;
    ordinary_tokens: the estimated tokens of these. All are counted and not computed, because they are read for
    each worker in each step.
    """

    name: str
    model: str
    max_batch_tokens: int
    rate: RateEstimate
    progress_at: float = 0.0
    num_forwards: int = 0
    in_flight: dict[int, InFlightBatch] = field(default_factory=dict)
    num_ordinary: int = 0
    ordinary_tokens: float = 0.0
    _num_suspects: int = 0
    _num_large: int = 0
    _num_urgent: int = 0
    _urgent_tokens: float = 0.0

    def add(self, batch_id: int, batch: InFlightBatch, now: float) -> None:
        """Note that a batch is sent to the worker. now: in seconds of the loop's clock."""
        if not self.in_flight:
            self.progress_at = now
        batch.sent_at, batch.is_long = now, batch.tokens > self.longest_ordinary_tokens
        self.in_flight[batch_id] = batch
        self._count(batch, 1)

    def remove(self, batch_id: int) -> InFlightBatch | None:
        """Forget a batch; return it, or None if the worker does not have it."""
        batch = self.in_flight.pop(batch_id, None)
        if batch is not None:
            self._count(batch, -1)
        return batch

    def _count(self, batch: InFlightBatch, sign: int) -> None:
        self._num_suspects += sign * batch.is_suspect
        self._num_large += sign * batch.has_large
        self._num_urgent += sign * batch.is_urgent
        if batch.is_urgent:
            self._urgent_tokens = batch.tokens if sign > 0 else 0.0  # it has at most one
        if not batch.is_long and not batch.is_urgent:
            self.num_ordinary += sign
            # Without a batch it is exactly 0: sums of floats keep small errors.
            self.ordinary_tokens = self.ordinary_tokens + sign * batch.tokens if self.num_ordinary else 0.0

    @property
    def full_batch_tokens(self) -> float:
        """The number of tokens in a full batch for this worker."""
        return min(self.max_batch_tokens, max(_MIN_BATCH_TOKENS, self.rate.tokens_per_s * BATCH_S))

    @property
    def longest_ordinary_tokens(self) -> float:
        """The largest number of tokens in a batch that is not long."""
        return _LONG * self.full_batch_tokens

    @property
    def can_take_long(self) -> bool:
        """Whether it has room for a long batch."""
        return len(self.in_flight) - self.num_ordinary - self._num_urgent < _MAX_IN_FLIGHT

    def can_take(self, *, suspect: bool) -> bool:
        """Whether the worker has room for a batch. A suspect needs a worker without other batches."""
        if suspect or self._num_suspects:
            return not self.in_flight
        return self.num_ordinary < _MAX_IN_FLIGHT

    @property
    def has_large(self) -> bool:
        """Whether it has a batch with texts of large requests."""
        return self._num_large > 0

    @property
    def can_take_urgent(self) -> bool:
        """Whether small requests need not wait until the large ones that it has are computed."""
        return self.has_large and not self._num_urgent and not self._num_suspects

    @property
    def keeps_large_apart(self) -> bool:
        """Whether its next batches are for large requests alone, because small ones come sooner on their own.

        If small requests fill half a batch of their own, there are too many of them for that: then they also get
        their share of the other batches.
        """
        return self.has_large and self._urgent_tokens < self.full_batch_tokens / 2

    def is_overdue(self, now: float, timeout_s: float) -> bool:
        """Whether the worker has a batch and has computed nothing for too long. now: as `progress_at`.

        Too long is the timeout and the time that the tokens of its batches should take: a long text that is not
        truncated may need a batch of more than max_batch_tokens. A worker is also overdue if a batch is much older
        than that, because the batch may be stuck while the worker computes others.
        """
        if not self.in_flight:
            return False
        tokens = sum(batch.tokens for batch in self.in_flight.values())
        limit_s = timeout_s + tokens / self.rate.floor_tokens_per_s
        oldest_sent_at = min(batch.sent_at for batch in self.in_flight.values())
        return now - self.progress_at > limit_s or now - oldest_sent_at > _MAX_LIMITS * limit_s
