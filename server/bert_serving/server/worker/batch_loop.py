"""The loop that computes batches in turns, one micro-batch at a time, in the thread that runs it."""

from __future__ import annotations

import os
import queue
import time
from collections.abc import Callable

import numpy as np
from bert_serving.protocol.workers import Changed, Failed, ModelFacts, Result

from .computation import Compiled, Computation, Inbox, Turns
from .encoder import Encoder
from .micro_batches import PreparedText

_CANARY_S = 15.0  # how often an idle loop checks with a short forward pass that the model still works
_WARM_UP_TOKENS = 1024
_WARM_UP_RUNS = 3


def _nothing() -> None:
    pass


class BatchLoop:
    """Computes the tokenized batches of an inbox until the inbox holds None.

    dtype: number format of the vectors. max_batch_tokens: largest number of tokens in a forward pass. send: gets
    the result of each batch, or its error, and the model's facts when they change. on_forward, on_canary: are
    called after each micro-batch, and after each check of an idle model. All are called in the loop's thread.

    An exception while a batch is computed fails that batch only. Any other exception ends the loop.
    """

    def __init__(
        self,
        encoder: Encoder,
        inbox: Inbox,
        *,
        dtype: np.dtype[np.floating],
        max_batch_tokens: int,
        send: Callable[[Result | Failed | Changed], None],
        on_forward: Callable[[], None] = _nothing,
        on_canary: Callable[[], None] = _nothing,
    ) -> None:
        self._encoder = encoder
        self._inbox = inbox
        self._dtype = dtype
        self._max_batch_tokens = max_batch_tokens
        self._send = send
        self._on_forward = on_forward
        self._on_canary = on_canary
        self._turns = Turns()

    def run(self) -> None:
        """Compute until the inbox holds None."""
        turns, canary = self._turns, _canary(self._encoder)
        while True:
            try:
                # Wait only if there is nothing to compute.
                batch = self._inbox.get(block=not turns, timeout=None if turns else _CANARY_S)
            except queue.Empty:
                if turns:
                    self._step()
                else:
                    self._encoder.forward(canary)
                    self._on_canary()
                continue
            if batch is None:
                return
            if isinstance(batch, Failed):
                self._send(batch)
            elif isinstance(batch, Compiled):
                # Measured here, between two batches, so that the scheduler learns the new speed.
                self._send(Changed(warm_up(self._encoder, max_batch_tokens=self._max_batch_tokens)))
            else:
                turns.add(Computation(self._encoder, batch, self._dtype))

    def _step(self) -> None:
        """Compute a micro-batch; if it is the last one of its batch, pass the result on."""
        computation = self._turns.next()
        result = computation.step()
        if not isinstance(result, Failed):
            self._on_forward()
        if result is not None:
            self._turns.remove(computation)
            self._send(result)


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
