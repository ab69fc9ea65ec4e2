"""What travels to a worker together, and how it is put together and taken apart."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from .fair_queue import FairQueue
from .job import Slice, TextCost


@dataclass(slots=True)
class InFlightBatch:
    """Slices that travel together. A suspect has lost a worker and keeps its slices, so that blame is found."""

    slices: list[Slice]
    tokens: float
    num_lost_workers: int = 0
    sent_at: float = 0.0

    @property
    def num_texts(self) -> int:
        return sum(map(len, self.slices))

    @property
    def is_suspect(self) -> bool:
        return self.num_lost_workers > 0


@dataclass(slots=True)
class BatchBuilder:
    """A batch in the making: what it holds, and what it may hold."""

    max_tokens: float
    max_texts: int
    cost: TextCost
    slices: list[Slice] = field(default_factory=list)
    tokens: float = 0.0
    num_texts: int = 0

    def take(self, queue: FairQueue, share: float = 1.0) -> float:
        """Take from a queue what fits, up to a share of the batch; return the share that it was."""
        texts = min(self.max_texts - self.num_texts, math.floor(self.max_texts * share))
        tokens = min(self.max_tokens - self.tokens, self.max_tokens * share)
        if texts < 1:
            return 0.0
        # A text that is larger than a batch makes one of its own.
        alone = share == 1.0 and not self.slices
        more, worth = queue.take(max_tokens=tokens, max_texts=texts, cost=self.cost, at_least_one=alone)
        taken = sum(map(len, more))
        self.slices += more
        self.tokens += worth
        self.num_texts += taken
        return max(worth / self.max_tokens, taken / self.max_texts)


def halve(slices: list[Slice], count: int) -> tuple[list[Slice], list[Slice]]:
    """Return the first `count` texts of the slices, and the others."""
    head: list[Slice] = []
    tail: list[Slice] = []
    for part in slices:
        if count >= len(part):
            head.append(part)
            count -= len(part)
        elif count > 0:
            first, rest = part.split(count)
            head.append(first)
            tail.append(rest)
            count = 0
        else:
            tail.append(part)
    return head, tail
