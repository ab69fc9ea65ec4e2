"""The threads of a worker that tokenize batches."""

from __future__ import annotations

import queue
import threading
from typing import Protocol

from bert_serving.protocol.workers import Batch, Failed

from .computation import TokenizedBatch, tokenized
from .encoder import Encoder

_SMALL_CHARS = 4096  # of all texts of a small batch, with prompts; they are tokenized in about a millisecond
_NUM_THREADS = 5  # as many as the broker sends batches to a worker: two long ones, two others, an urgent one


class Inbox(Protocol):
    """Where batches go."""

    def put(self, item: Batch | TokenizedBatch | Failed | None, /) -> None:
        """Add a batch, or why it could not be tokenized; None: a thread has ended."""


class TokenizerThreads:
    """Tokenizes batches and puts them into the inbox of the threads that compute, each as soon as it is ready.

    A long text takes a second. So it must not be tokenized in the thread that sends heartbeats, and short texts
    need another thread to pass it. A few short texts go into the inbox as they are: to tokenize them takes no
    longer than to wake a thread. None in the inbox means that a thread has ended, as when the tokenizer crashes.
    """

    def __init__(self, encoder: Encoder, inbox: Inbox) -> None:
        self._encoder = encoder
        self._inbox = inbox
        self._batches: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._run, name=f"tokenizer-{i}", daemon=True) for i in range(_NUM_THREADS)
        ]
        for thread in self._threads:
            thread.start()

    def put(self, batch: Batch) -> None:
        """Let the next free thread tokenize a batch, if it is not small."""
        if self._is_small(batch):
            self._inbox.put(batch)
        else:
            self._batches.put(batch)

    def close(self) -> None:
        """End the threads when they have tokenized what they got before, and wait for that."""
        for _ in self._threads:
            self._batches.put(None)
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        try:
            while (batch := self._batches.get()) is not None:
                self._inbox.put(tokenized(self._encoder, batch))
        finally:
            self._inbox.put(None)

    def _is_small(self, batch: Batch) -> bool:
        """Whether the computing thread may tokenize a batch. Not for a GPU, which that thread must keep busy."""
        if self._encoder.device.type != "cpu":
            return False
        left, longest_prompt = _SMALL_CHARS, max(map(len, self._encoder.prompts.values()), default=0)
        for part in batch.parts:
            prompt = longest_prompt if part.options.prompt is None else len(part.options.prompt)
            for text in part.texts:
                if not isinstance(text, str):
                    return False
                left -= prompt + len(text) + 1
                if left < 0:
                    return False
        return True
