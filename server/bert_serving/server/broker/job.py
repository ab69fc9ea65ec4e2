"""A request on its way through the broker: what of it waits, what is computed, what is done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from bert_serving.protocol import EncodeRequest, Result, Rows, Text

#: Estimates the tokens of a text.
TextCost: TypeAlias = Callable[[Text], float]


@dataclass(eq=False, slots=True)
class Job:
    """One encode request. `job_id` is the broker's own number: two senders may share an identity.

    turn: whose turn in the fair queue it waits for: its client's, or the one that all strangers share.
    """

    job_id: int
    request: EncodeRequest
    arrived_at: float
    turn: bytes
    show_tokens: bool = False
    num_bytes: int = 0
    is_open: bool = True
    num_taken: int = 0
    num_done: int = 0
    rows: Rows | None = None
    tokens: list[Sequence[str]] = field(default_factory=list)
    truncated: list[int] = field(default_factory=list)

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

    def reach(self, max_tokens: float, max_texts: int, cost: TextCost) -> tuple[int, float]:
        """Return how far the next texts reach within the limits, and their tokens; at least one text."""
        first = self.num_taken
        last = min(len(self.texts), first + max_texts)
        tokens = cost(self.texts[first])
        stop = first + 1
        while stop < last and tokens < max_tokens:
            more = cost(self.texts[stop])
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

    def fill(self, start: int, result: Result, first: int, count: int) -> None:
        """Copy `count` rows of a result, from its row `first` on, to this job's rows from `start` on."""
        if self.rows is None:
            self.rows = np.empty((len(self.texts), *result.rows.shape[1:]), result.rows.dtype)
        self.rows[start : start + count] = result.rows[first : first + count]
        if self.show_tokens and result.tokens is not None:
            if not self.tokens:
                self.tokens = [()] * len(self.texts)
            self.tokens[start : start + count] = result.tokens[first : first + count]
        self.truncated += [i - first + start for i in result.truncated if first <= i < first + count]
        self.num_done += count


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

    def split(self, count: int) -> tuple[Slice, Slice]:
        """Return the first `count` texts and the rest."""
        middle = self.start + count
        return Slice(self.job, self.start, middle), Slice(self.job, middle, self.stop)
