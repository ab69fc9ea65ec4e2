"""ConcurrentBertClient: a BertClient for many threads, with a bound on how many ask at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import Any, NoReturn

from bert_serving.protocol import Rows, TokenVectors

from .sync import BertClient


class ConcurrentBertClient(BertClient):
    """A BertClient of which at most `max_concurrency` calls are under way; further callers wait their turn.

    One connection serves them all, since the server merges what arrives together. Results cannot be
    fetched later, because threads would take each other's.
    timeout: milliseconds for the wait, and as many for the call; TimeoutError if they pass.
    """

    def __init__(self, max_concurrency: int = 10, **kwargs: Any) -> None:
        if max_concurrency < 1:
            raise ValueError(f"max_concurrency must be at least 1, got {max_concurrency}")
        self.max_concurrency = max_concurrency
        self._give_turns()
        super().__init__(**kwargs)

    @property
    def available_bc(self) -> list[BertClient]:
        """This client, once for each call that could begin now: it is what its users share."""
        return [self] * self._turns.qsize()

    def _after_fork(self) -> None:
        self._give_turns()  # the parent's threads hold theirs
        super()._after_fork()

    def _give_turns(self) -> None:
        self._turns: SimpleQueue[None] = SimpleQueue()
        for _ in range(self.max_concurrency):
            self._turns.put(None)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        self._line.refuse_reentry()  # before it waits for a turn that its own thread may hold
        turns = self._turns  # a fork gives the child others
        try:
            turns.get(timeout=self.timeout / 1000 if self.timeout >= 0 else None)
        except Empty:
            raise TimeoutError(
                f"too many concurrent calls: max_concurrency={self.max_concurrency} were under way "
                f"for all of timeout={self.timeout} ms"
            ) from None
        try:
            yield
        finally:
            turns.put(None)

    def encode(
        self,
        texts: Any,
        blocking: bool = True,
        is_tokenized: bool = False,
        show_tokens: bool = False,
        **options: Any,
    ) -> Any:
        """Return the vectors of the texts, as BertClient.encode; `blocking=False` is refused."""
        if not blocking:
            _refuse("encode(blocking=False)")
        with self._turn():
            return super().encode(texts, is_tokenized=is_tokenized, show_tokens=show_tokens, **options)

    def encode_tokens(self, texts: Any, is_tokenized: bool = False, **options: Any) -> list[TokenVectors]:
        """Return the vectors of each text's tokens, as BertClient.encode_tokens."""
        with self._turn():
            return super().encode_tokens(texts, is_tokenized, **options)

    def encode_spans(self, texts: Any, spans: Any, **options: Any) -> list[Rows]:
        """Return a vector for each span, as BertClient.encode_spans."""
        with self._turn():
            return super().encode_spans(texts, spans, **options)

    def fetch(self, delay: float = 0.0) -> Iterator[Any]:
        _refuse("fetch")

    def fetch_all(self, sort: bool = True, concat: bool = False) -> Any:
        _refuse("fetch_all")

    def encode_async(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        _refuse("encode_async")


def _refuse(what: str) -> NoReturn:
    raise NotImplementedError(f"ConcurrentBertClient has no {what}; use a BertClient")
