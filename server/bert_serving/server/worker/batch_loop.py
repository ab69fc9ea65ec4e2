"""The loop that computes batches in turns, micro-batch by micro-batch."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

import numpy as np
from bert_serving.protocol.workers import Batch, Changed, Failed, ModelFacts, Result

from .computation import Computation, Outcome, TokenizedBatch
from .encoder import Encoder
from .lanes import Compiled, Lanes, Task, Work
from .micro_batches import MicroBatch, PreparedText

_CANARY_S = 15.0  # how often an idle loop checks with a short forward pass that the model still works
_WARM_UP_TOKENS = 1024
_WARM_UP_RUNS = 3


def _nothing() -> None:
    pass


class BatchLoop:
    """Computes the batches that are put into `work`, until None is put there.

    dtype: number format of the vectors. max_batch_tokens: largest number of tokens in a forward pass. send: gets
    the result of each batch, or its error, and the model's facts when they change. on_forward, on_canary: are
    called after each micro-batch, and after each check of an idle model. All are called by one thread at a time.

    An exception while a batch is computed fails that batch only. Any other exception ends the loop.
    """

    def __init__(
        self,
        encoder: Encoder,
        work: Work,
        *,
        dtype: np.dtype[np.floating],
        max_batch_tokens: int,
        send: Callable[[Result | Failed | Changed], None],
        on_forward: Callable[[], None] = _nothing,
        on_canary: Callable[[], None] = _nothing,
    ) -> None:
        self._encoder = encoder
        self._work = work
        self._dtype = dtype
        self._max_batch_tokens = max_batch_tokens
        self._lock = threading.Lock()  # for the three that follow
        self._send = send
        self._on_forward = on_forward
        self._on_canary = on_canary
        self._lanes: Lanes | None = None
        work.open(self._begin)

    def run(self) -> None:
        """Compute until None is put into the work. The thread that runs this is the main thread of the lanes."""
        try:
            self._start_lanes()
            self._compute()
        finally:
            self._work.close()
            if self._lanes is not None:
                self._lanes.join()

    def _compute(self) -> None:
        canary = _canary(self._encoder)
        while True:
            try:
                task = self._work.take(_CANARY_S)
            except TimeoutError:
                self._encoder.forward(canary)
                with self._lock:
                    self._on_canary()
                continue
            if task is None:
                return
            if isinstance(task, Task):
                self._done(task, task.run())
            elif isinstance(task, Compiled):
                # Measured here, between two batches, so that the scheduler learns the new speed.
                facts = warm_up(self._encoder, max_batch_tokens=self._max_batch_tokens)
                self._start_lanes()
                self._say(Changed(facts))
            else:
                self._say(task)

    def _start_lanes(self) -> None:
        if self._lanes is None and self._encoder.num_lanes > 1:
            self._lanes = Lanes(self._work, self._encoder.num_lanes, self._done)

    def _begin(self, batch: Batch | TokenizedBatch) -> Computation:
        return Computation(self._encoder, batch, self._dtype, lanes=self._work.num_lanes)

    def _done(self, task: Task, outcome: Outcome) -> None:
        """Note the outcome of a task, and pass on the result of its batch if this ends the batch."""
        end = self._work.give_back(task, outcome)
        if isinstance(task.step, MicroBatch) and task.step.is_computed:
            with self._lock:
                self._on_forward()
        if end is not None:
            self._say(end)

    def _say(self, message: Result | Failed | Changed) -> None:
        with self._lock:
            self._send(message)


def warm_up(encoder: Encoder, *, max_batch_tokens: int) -> ModelFacts:
    """Run a full micro-batch a few times; return what the scheduler needs to know about the model."""
    length = min(encoder.max_seq_len, 32)
    texts = ["word " * (length - 2)] * (_WARM_UP_TOKENS // length)
    seconds = []
    for _ in range(_WARM_UP_RUNS):
        start = time.perf_counter()
        encoder.encode(texts)
        seconds.append(time.perf_counter() - start)
    return ModelFacts(
        pid=os.getpid(),
        fingerprint=encoder.fingerprint,
        device=str(encoder.device),
        dtype=encoder.dtype_name,
        dimension=encoder.dimension,
        hidden_size=encoder.hidden_size,
        kind=encoder.kind,
        poolings=encoder.poolings,
        splits_specials=encoder.splits_specials,
        prompts=encoder.prompts,
        labels=encoder.labels,
        max_seq_len=encoder.max_seq_len,
        forward=encoder.forward_kind,
        parity=round(encoder.parity, 6),
        tokens_per_s=round(length * len(texts) / min(seconds)),
        max_batch_tokens=max_batch_tokens,
    )


def _canary(encoder: Encoder) -> list[PreparedText]:
    """Return a short text, ready for a forward pass that shows whether the model still works."""
    return [text for text in encoder.prepare(["a"]) if isinstance(text, PreparedText)]
