"""ConcurrentBertClient: a BertClient for many threads that limits how many calls run at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import Any, NoReturn

from bert_serving.protocol import EncodeOptions, EncodeReply, Spans, Text

from .sync import BertClient


class ConcurrentBertClient(BertClient):
    """A BertClient that runs at most `max_concurrency` calls for vectors at once. Further calls wait.

    All threads share one connection, because the server merges the requests that arrive together. Results cannot
    be fetched later, because threads would take each other's results: `encode(blocking=False)`, `fetch`,
    `fetch_all` and `encode_async` raise NotImplementedError.
    timeout: the limit in milliseconds for the wait until a call can start, and again for the call itself. A call
    that exceeds one of these limits raises TimeoutError. Other arguments and errors are those of BertClient.
    """

    def __init__(self, max_concurrency: int = 10, **kwargs: Any) -> None:  # kwargs: arguments of BertClient
        if max_concurrency < 1:
            raise ValueError(f"max_concurrency must be at least 1, got {max_concurrency}")
        self.max_concurrency = max_concurrency
        self._issue_permits()
        super().__init__(**kwargs)

    @property
    def available_bc(self) -> list[BertClient]:
        """This client, repeated once for each call that could start now.

        bert-as-service keeps a list of idle clients here. Programs that use the length of that list, or call
        methods of its items, work with this list too.
        """
        return [self] * self._permits.qsize()

    def encode_reply(
        self,
        texts: Sequence[Text],
        options: EncodeOptions = EncodeOptions(),  # noqa: B008
        spans: Sequence[Spans] | None = None,
        *,
        timeout_ms: int | None = None,
        trace: str | None = None,
    ) -> tuple[int, EncodeReply]:
        """Return (request id, reply) like BertClient.encode_reply, after waiting for a permit."""
        with self._permit():
            return super().encode_reply(texts, options, spans, timeout_ms=timeout_ms, trace=trace)

    def fetch(self, delay: float = 0.0) -> NoReturn:
        """Raise NotImplementedError."""
        _refuse("fetch")

    def fetch_all(self, sort: bool = True, concat: bool = False) -> NoReturn:
        """Raise NotImplementedError."""
        _refuse("fetch_all")

    def encode_async(self, *args: object, **kwargs: object) -> NoReturn:
        """Raise NotImplementedError."""
        _refuse("encode_async")

    def _send_to_fetch(self, texts: Sequence[Text], options: EncodeOptions) -> NoReturn:
        _refuse("encode(blocking=False)")

    def _after_fork(self) -> None:
        self._issue_permits()  # threads of the parent process may hold old permits
        super()._after_fork()

    def _issue_permits(self) -> None:
        self._permits: SimpleQueue[None] = SimpleQueue()
        for _ in range(self.max_concurrency):
            self._permits.put(None)

    @contextmanager
    def _permit(self) -> Iterator[None]:
        self._channel.refuse_reentry()  # in a signal handler: the interrupted call may hold the last permit
        permits = self._permits  # a fork replaces the queue in self._permits
        try:
            permits.get(timeout=self.timeout / 1000 if self.timeout >= 0 else None)
        except Empty:
            raise TimeoutError(
                f"too many concurrent calls: max_concurrency={self.max_concurrency} other calls were running "
                f"during the whole timeout of {self.timeout} ms"
            ) from None
        try:
            yield
        finally:
            permits.put(None)


def _refuse(what: str) -> NoReturn:
    raise NotImplementedError(f"ConcurrentBertClient does not support {what}; use a BertClient")
