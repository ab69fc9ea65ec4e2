"""The batches that a worker has tokenized and not finished, computed in turns: one micro-batch at a time."""

from __future__ import annotations

import logging
import queue
import time
import traceback
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from bert_serving.protocol.trace_names import TraceNames
from bert_serving.protocol.workers import Batch, Failed, PartResult, Rejected, Result

from ..model.errors import one_line
from .encoder import Encoder
from .parts import TokenizedPart, part_results

log = logging.getLogger(__name__)

_MAX_MESSAGE_CHARS = 300


@dataclass(frozen=True, slots=True)
class TokenizedBatch:
    """A batch whose texts are ready for the model. traces: the names of its requests, for logs."""

    batch_id: int
    parts: Sequence[TokenizedPart | Rejected]
    tokenize_ms: float
    traces: TraceNames = TraceNames()  # noqa: RUF009

    @property
    def num_tokens(self) -> int:
        """The number of tokens that the model computes, special tokens included."""
        texts = (text for part in self.parts if isinstance(part, TokenizedPart) for text in part.prepared)
        return sum(prepared.text.num_tokens for prepared in texts)


class Compiled:
    """In place of a batch: forward passes are compiled from now on."""


#: What the main thread of a worker gets: batches, or why they cannot be computed; None: stop.
Inbox: TypeAlias = "queue.SimpleQueue[TokenizedBatch | Failed | Compiled | None]"


class Computation:
    """A batch that is computed step by step. tokens_left: the number of tokens that are not computed yet."""

    def __init__(self, encoder: Encoder, batch: TokenizedBatch, dtype: np.dtype[np.floating]) -> None:
        self.tokens_left = batch.num_tokens
        self._encoder = encoder
        self._batch = batch
        self._steps: Generator[int, None, list[PartResult]] = part_results(encoder, batch.parts, dtype)
        self._compute_ms = 0.0
        self._num_padding = 0

    def step(self) -> Result | Failed | None:
        """Compute a micro-batch; return the result of the batch if this was the last one, Failed after an error.

        Raises torch.AcceleratorError if only a new process can use the GPU again.
        """
        start, padding = time.perf_counter(), self._encoder.num_padding
        results = None
        try:
            self.tokens_left -= next(self._steps)
            if self.tokens_left == 0:  # in most cases, nothing is left to do but to collect the rows
                self.tokens_left -= next(self._steps)
        except StopIteration as end:
            results = end.value
        except torch.AcceleratorError:
            raise  # the CUDA context is broken; only a new process can use the GPU again
        except Exception as exc:  # an error of any type fails this batch, not the worker
            return failed(self._batch, exc, "compute")
        self._compute_ms += (time.perf_counter() - start) * 1000
        self._num_padding += self._encoder.num_padding - padding
        if results is None:
            return None
        batch = self._batch
        if log.isEnabledFor(logging.DEBUG):
            traces = batch.traces
            log.debug("batch computed id=%d trace=%s", batch.batch_id, traces, extra={"traces": traces})
        return Result(batch.batch_id, results, batch.tokenize_ms, self._compute_ms, self._num_padding)


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
    """Decides which of the unfinished batches computes its next micro-batch.

    The batch with the fewest tokens left goes first, so a short text waits for one or two micro-batches of a long
    text and not for all of them. Every second micro-batch belongs to the oldest batch, so no stream of short texts
    can stop a long one.
    """

    def __init__(self) -> None:
        self._computations: list[Computation] = []  # in the order of their arrival
        self._is_oldests_turn = False

    def __len__(self) -> int:
        return len(self._computations)

    def add(self, computation: Computation) -> None:
        """Add a batch, after those that came before it."""
        self._computations.append(computation)

    def remove(self, computation: Computation) -> None:
        """Remove a batch that is finished."""
        self._computations.remove(computation)

    def next(self) -> Computation:
        """Return the batch that computes now. There must be one."""
        oldest = self._computations[0]
        chosen = oldest if self._is_oldests_turn else min(self._computations, key=lambda c: c.tokens_left)
        self._is_oldests_turn = chosen is not oldest
        return chosen
