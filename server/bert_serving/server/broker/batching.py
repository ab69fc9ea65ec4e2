"""A batch in the broker: how it is built, what the broker records about it, and how it is split."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from bert_serving.protocol.trace_names import TraceNames

from .fair_queue import FairQueue
from .job import Slice, TextCost


@dataclass(slots=True)
class InFlightBatch:
    """The broker's record of a batch.

    tokens: the estimated number of tokens. num_lost_workers: how many workers died while they had this batch and
    no other. is_suspect: a worker died while it had this batch. A suspect is sent again with the same slices, to a
    worker without other batches, so that the text that kills workers can be found. is_long: it was long for its
    worker when it was sent; see worker_load.py. has_large: it has texts of a large request. is_urgent: it has
    texts of small requests, and was sent while its worker had a batch with large ones. sent_at: when it was sent,
    in seconds of the loop's clock. given_at: the same in monotonic seconds.
    """

    slices: list[Slice]
    tokens: float
    num_lost_workers: int = 0
    is_suspect: bool = False
    is_long: bool = False
    has_large: bool = False
    is_urgent: bool = False
    sent_at: float = 0.0
    given_at: float = 0.0

    @property
    def traces(self) -> TraceNames:
        """The names of the requests, for logs."""
        return TraceNames.of(slice_.job.request.trace for slice_ in self.slices)


@dataclass(slots=True)
class BatchBuilder:
    """A batch that is being filled, and its limits.

    cost: returns the estimated tokens of a text. max_text_tokens: a text with more tokens stays in the queue, and
    texts of other flows overtake it. A text with more than max_tokens, but not more than this, is a batch alone.
    """

    max_tokens: float
    max_texts: int
    cost: TextCost
    max_text_tokens: float = math.inf
    slices: list[Slice] = field(default_factory=list)
    tokens: float = 0.0
    num_texts: int = 0

    def take(self, queue: FairQueue, share: float = 1.0) -> float:
        """Take texts from a queue, up to a share of the batch (0 to 1); return the share that the texts fill."""
        texts = min(self.max_texts - self.num_texts, math.floor(self.max_texts * share))
        tokens = min(self.max_tokens - self.tokens, self.max_tokens * share)
        if texts < 1:
            return 0.0
        # A text with more tokens than a full batch is sent alone.
        takes_oversized = share == 1.0 and not self.slices
        slices, taken_tokens = queue.take(
            max_tokens=tokens,
            max_texts=texts,
            cost=self.cost,
            at_least_one=takes_oversized,
            max_text_tokens=self.max_text_tokens,
        )
        taken_texts = sum(map(len, slices))
        self.slices += slices
        self.tokens += taken_tokens
        self.num_texts += taken_texts
        return max(taken_tokens / self.max_tokens, taken_texts / self.max_texts)

    def replace(self, start: int, slices: list[Slice]) -> bool:
        """Replace the slices from index `start` on by what is needed of them; return whether that is less."""
        num_removed = sum(map(len, self.slices[start:])) - sum(map(len, slices))
        if num_removed:
            self.slices[start:] = slices
            self.num_texts -= num_removed
            self.tokens = sum(each.job.tokens_of(text, self.cost) for each in self.slices for text in each.texts)
        return num_removed > 0


def halve(slices: list[Slice], count: int) -> tuple[list[Slice], list[Slice]]:
    """Divide slices into two lists: the first `count` texts, and the other texts."""
    head: list[Slice] = []
    tail: list[Slice] = []
    for slice_ in slices:
        if count >= len(slice_):
            head.append(slice_)
            count -= len(slice_)
        elif count > 0:
            first, rest = slice_.split(count)
            head.append(first)
            tail.append(rest)
            count = 0
        else:
            tail.append(slice_)
    return head, tail
