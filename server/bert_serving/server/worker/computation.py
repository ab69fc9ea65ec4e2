"""The batches that a worker has and not finished, and which of them is computed next."""

from __future__ import annotations

import enum
import logging
import time
import traceback
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from bert_serving.protocol.trace_names import TraceNames
from bert_serving.protocol.workers import Batch, Failed, PartResult, Rejected, Result

from ..model.errors import one_line
from .encoder import Encoder
from .micro_batches import MicroBatch
from .parts import TokenizedPart, part_results, tokenize_parts

log = logging.getLogger(__name__)

_MAX_MESSAGE_CHARS = 300


@dataclass(frozen=True, slots=True)
class TokenizedBatch:
    """A batch whose texts are ready for the model. traces: the names of its requests, for logs."""

    batch_id: int
    parts: Sequence[TokenizedPart | Rejected]
    tokenize_ms: float
    traces: TraceNames = TraceNames()  # noqa: RUF009


class Plan(enum.Enum):
    """The step of a batch that finds out which micro-batches come next, or what the results are."""

    NEXT = enum.auto()


#: What a thread computes at once.
Step: TypeAlias = "MicroBatch | Literal[Plan.NEXT]"


@dataclass(slots=True)
class Outcome:
    """What a step has brought: micro-batches to compute, the results of all parts, an error, or none of these."""

    planned: Sequence[MicroBatch] = ()
    results: list[PartResult] | None = None
    failed: Failed | None = None
    seconds: float = 0.0
    num_padding: int = 0


class Computation:
    """A batch that is computed micro-batch by micro-batch, by one or several threads.

    A thread takes a step, runs it, and gives it back. Several threads may call `run` at the same time, but only
    one thread at a time the other methods.

    batch: may be tokenized already. lanes: how many threads compute small passes at the same time.
    """

    def __init__(
        self,
        encoder: Encoder,
        batch: Batch | TokenizedBatch,
        dtype: np.dtype[np.floating],
        *,
        lanes: int = 1,
    ) -> None:
        self._encoder = encoder
        self._batch = batch
        self._dtype = dtype
        self._lanes = lanes
        self._stages: Generator[list[MicroBatch], None, list[PartResult]] | None = None
        self._waiting: deque[MicroBatch] = deque()
        self._num_taken = 0
        self._tokenize_ms = 0.0
        self._taken_at = 0.0  # when the first of the steps was taken that are not given back yet
        self._compute_s = 0.0
        self._busy_s = 0.0
        self._num_padding = 0
        self._end: Result | Failed | None = None

    @property
    def tokens_left(self) -> int:
        """The number of tokens in micro-batches that no thread has taken yet."""
        return sum(each.num_tokens for each in self._waiting)

    @property
    def next_step(self) -> Step | None:
        """What can be computed next; None: threads must give back what they have taken, or the batch is done."""
        if self._waiting:
            return self._waiting[0]
        return Plan.NEXT if self._num_taken == 0 and self._end is None else None

    @property
    def num_lane_sized(self) -> int:
        """The number of micro-batches that wait for a thread, and of which several may run at the same time."""
        return sum(each.is_lane_sized for each in self._waiting)

    def take(self) -> Step:
        """Take `next_step`, which is not None."""
        if self._num_taken == 0:
            self._taken_at = time.perf_counter()
        self._num_taken += 1
        return self._waiting.popleft() if self._waiting else Plan.NEXT

    def run(self, step: Step) -> Outcome:
        """Compute a step that was taken.

        Raises torch.AcceleratorError if only a new process can use the GPU again.
        """
        outcome = Outcome()
        if self._stages is None and (error := self._tokenize()) is not None:
            outcome.failed = error
            return outcome
        assert self._stages is not None
        start, padding = time.perf_counter(), self._encoder.num_padding
        try:
            if isinstance(step, MicroBatch):
                step.compute()
            else:
                outcome.planned = next(self._stages)
        except StopIteration as end:
            outcome.results = end.value
        except torch.AcceleratorError:
            raise  # the CUDA context is broken; only a new process can use the GPU again
        except Exception as exc:  # an error of any type fails this batch, not the worker
            outcome.failed = failed(self._batch, exc, "compute")
        outcome.seconds = time.perf_counter() - start
        outcome.num_padding = self._encoder.num_padding - padding
        return outcome

    def _tokenize(self) -> Failed | None:
        batch = self._batch if isinstance(self._batch, TokenizedBatch) else tokenized(self._encoder, self._batch)
        if isinstance(batch, Failed):
            return batch
        self._tokenize_ms = batch.tokenize_ms
        self._stages = part_results(self._encoder, batch.parts, self._dtype, lanes=self._lanes)
        return None

    def give_back(self, outcome: Outcome, *, share: float = 1.0) -> Result | Failed | None:
        """Note the outcome of a step; return the result of the batch if this ends it, Failed after an error.

        share: which part of the worker's threads the step has used.
        """
        self._num_taken -= 1
        self._busy_s += outcome.seconds * share
        if self._num_taken == 0:
            self._compute_s += time.perf_counter() - self._taken_at
        self._num_padding += outcome.num_padding
        if outcome.failed is not None:
            self._end = outcome.failed
            self._waiting.clear()
        elif outcome.results is not None:
            self._end = self._result(outcome.results)
        elif self._end is None:
            self._waiting.extend(outcome.planned)
        return self._end if self._num_taken == 0 else None

    def _result(self, results: list[PartResult]) -> Result:
        batch, tokenize_s = self._batch, self._tokenize_ms / 1000 if isinstance(self._batch, Batch) else 0.0
        if log.isEnabledFor(logging.DEBUG):
            traces = batch.traces
            log.debug("batch computed id=%d trace=%s", batch.batch_id, traces, extra={"traces": traces})
        compute_s = self._compute_s - tokenize_s
        return Result(
            batch.batch_id,
            results,
            self._tokenize_ms,
            compute_ms=compute_s * 1000,
            busy_share=self._busy_s / compute_s,
            padding_tokens=self._num_padding,
        )


def tokenized(encoder: Encoder, batch: Batch) -> TokenizedBatch | Failed:
    """Return the batch with its texts ready for the model, or why that is not possible."""
    start = time.perf_counter()
    try:
        parts = tokenize_parts(encoder, batch.parts)
    except Exception as exc:  # an error of any type fails this batch, not the worker
        return failed(batch, exc, "tokenize")
    return TokenizedBatch(batch.batch_id, parts, (time.perf_counter() - start) * 1000, batch.traces)


def failed(batch: Batch | TokenizedBatch, exc: Exception, verb: str) -> Failed:
    """Log an error and return the message about it. verb: what the worker tried to do with the batch.

    The log has the place of the error, but not its message, which may quote a text of a user. Only that user gets
    the message, because the broker sends a failed batch again in halves, until it has a single text.
    """
    place = "".join(traceback.format_tb(exc.__traceback__))
    name = type(exc).__name__
    traces = batch.traces
    log.error(
        "cannot %s batch id=%d trace=%s error=%s\n%s", verb, batch.batch_id, traces, name, place,
        extra={"traces": traces},
    )  # fmt: skip
    return Failed(batch.batch_id, one_line(exc)[:_MAX_MESSAGE_CHARS])


class Turns:
    """Decides which of the unfinished batches is computed next.

    The batch with the fewest tokens left goes first, so a short text waits for one or two micro-batches of a long
    text and not for all of them. Every second micro-batch belongs to the oldest batch, so no stream of short texts
    can stop a long one.
    """

    def __init__(self) -> None:
        self._computations: list[Computation] = []  # in the order of their arrival
        self._is_oldests_turn = False

    def __len__(self) -> int:
        return len(self._computations)

    @property
    def num_lane_sized(self) -> int:
        """The number of micro-batches that wait for a thread, and of which several may run at the same time."""
        return sum(each.num_lane_sized for each in self._computations)

    def add(self, computation: Computation) -> None:
        """Add a batch, after those that came before it."""
        self._computations.append(computation)

    def remove(self, computation: Computation) -> None:
        """Remove a batch that is finished."""
        self._computations.remove(computation)

    def next(self) -> Computation | None:
        """Return the batch that has the next step; None if there is none."""
        waiting = self._waiting()
        if not waiting:
            return None
        for each in waiting:
            if each.next_step is Plan.NEXT:  # it takes little time, and others may get work by it
                return each
        return waiting[0] if self._is_oldests_turn else min(waiting, key=lambda each: each.tokens_left)

    def take(self, computation: Computation) -> Step:
        """Take the next step of the batch that `next` has returned."""
        oldest = self._waiting()[0]
        step = computation.take()
        if step is not Plan.NEXT:
            self._is_oldests_turn = computation is not oldest
        return step

    def _waiting(self) -> list[Computation]:
        """Return the batches that have a step that can be computed now, in the order of their arrival."""
        return [each for each in self._computations if each.next_step is not None]
