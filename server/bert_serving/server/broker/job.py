"""A request on its way through the broker: what of it waits, what is computed, what is done."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from bert_serving.protocol import EncodeOptions, EncodeRequest, Part, Text, Usage, Vectors

from .job_result import JobResult

#: Estimates the tokens of a text.
TextCost: TypeAlias = Callable[[Text], float]


@dataclass(eq=False, slots=True)
class Job:
    """One encode request. `job_id` is the broker's own number: two senders may share an identity.

    flow: key in the fair queue: its client's identity, or one that all unsubscribed clients share.
    options: the request's, and what the server always adds. max_text_tokens: most that one text can have.
    begun_at: when a worker was given its first text. tokenize_ms, compute_ms: of the batches that held its texts.
    """

    job_id: int
    request: EncodeRequest
    arrived_at: float
    flow: bytes
    options: EncodeOptions = EncodeOptions()  # noqa: RUF009
    num_bytes: int = 0
    max_text_tokens: float = math.inf
    is_open: bool = True
    num_taken: int = 0
    num_done: int = 0
    begun_at: float | None = None
    tokenize_ms: float = 0.0
    compute_ms: float = 0.0
    result: JobResult = field(init=False)

    def __post_init__(self) -> None:
        self.result = JobResult(len(self.texts))

    def __repr__(self) -> str:
        return f"<Job {self.job_id} texts={len(self.texts)} taken={self.num_taken} done={self.num_done}>"

    @property
    def client(self) -> bytes:
        return self.request.identity

    @property
    def texts(self) -> Sequence[Text]:
        return self.request.texts

    @property
    def num_waiting(self) -> int:
        """Texts that no worker has been given yet."""
        return len(self.texts) - self.num_taken if self.is_open else 0

    @property
    def is_waiting(self) -> bool:
        return self.num_waiting > 0

    @property
    def is_done(self) -> bool:
        return self.num_done == len(self.texts)

    def tokens_of(self, text: Text, cost: TextCost) -> float:
        """Return the estimated tokens of one of the texts, as many as the model will read of it."""
        return min(cost(text), self.max_text_tokens)

    def reach(self, max_tokens: float, max_texts: int, cost: TextCost) -> tuple[int, float]:
        """Return how far the next texts reach within the limits, and their tokens; at least one text."""
        first = self.num_taken
        last = min(len(self.texts), first + max_texts)
        tokens = self.tokens_of(self.texts[first], cost)
        stop = first + 1
        while stop < last and tokens < max_tokens:
            more = self.tokens_of(self.texts[stop], cost)
            if tokens + more > max_tokens:
                break
            tokens += more
            stop += 1
        return stop, tokens

    def take(self, stop: int) -> Slice:
        """Mark the texts up to `stop` as given to a worker."""
        taken = Slice(self, self.num_taken, stop)
        self.num_taken = stop
        return taken

    def fill(self, start: int, vectors: Vectors) -> None:
        """Take in the vectors of the texts from `start` on."""
        self.result.fill(start, vectors)
        self.num_done += len(vectors.num_tokens)

    def queue_s(self, now: float) -> float:
        """Return for how long it has waited for a worker."""
        return (now if self.begun_at is None else self.begun_at) - self.arrived_at

    def usage(self, now: float) -> Usage:
        """Return what it took, once it is done."""
        return Usage(
            self.result.num_tokens,
            total_ms=(now - self.arrived_at) * 1000,
            queue_ms=self.queue_s(now) * 1000,
            tokenize_ms=self.tokenize_ms,
            compute_ms=self.compute_ms,
        )


@dataclass(frozen=True, slots=True)
class Slice:
    """The texts `start` to `stop` of a job."""

    job: Job
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def texts(self) -> Sequence[Text]:
        return self.job.texts[self.start : self.stop]

    @property
    def part(self) -> Part:
        """The texts as a worker gets them."""
        spans = self.job.request.spans
        return Part(self.texts, self.job.options, None if spans is None else spans[self.start : self.stop])

    def split(self, count: int) -> tuple[Slice, Slice]:
        """Return the first `count` texts and the rest."""
        middle = self.start + count
        return Slice(self.job, self.start, middle), Slice(self.job, middle, self.stop)
