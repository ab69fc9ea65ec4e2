"""The threads of a worker that tokenize batches."""

from __future__ import annotations

import queue
import threading
import time

from bert_serving.protocol.workers import Batch, Failed

from .computation import Inbox, TokenizedBatch, failed
from .encoder import Encoder
from .parts import tokenize_parts

_NUM_THREADS = 5  # as many as the broker sends batches to a worker: two long ones, two others, an urgent one


class TokenizerThreads:
    """Tokenizes batches and puts them into the inbox of the thread that computes, each as soon as it is ready.

    A long text takes a second. So it must not be tokenized in the thread that sends heartbeats, and short texts
    need another thread to pass it. None in the inbox means that a thread has ended, as when the tokenizer crashes.
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
        """Let the next free thread tokenize a batch."""
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
                self._inbox.put(self._tokenized(batch))
        finally:
            self._inbox.put(None)

    def _tokenized(self, batch: Batch) -> TokenizedBatch | Failed:
        start = time.perf_counter()
        try:
            parts = tokenize_parts(self._encoder, batch.parts)
        except Exception as exc:  # an error of any type fails this batch, not the worker
            return failed(batch, exc, "tokenize")
        return TokenizedBatch(batch.batch_id, parts, (time.perf_counter() - start) * 1000, batch.traces)
