"""AsyncBertClient: the same conversation on an asyncio loop."""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from bert_serving.protocol import (
    Command,
    EncodeOptions,
    EncodeReply,
    Frames,
    InfoReply,
    Reply,
    Rows,
    Spans,
    Text,
    TokenVectors,
    Unavailable,
    check_spans,
)

from .checks import (
    TOKEN_LEVEL,
    check_request,
    client_status,
    options_of,
    response_of,
    rows_by_text,
    token_vectors_of,
)
from .connection import Connection
from .session import Session

_NO_LINE_S = 0.005
_PROBE_EVERY_S = 1.0


class AsyncBertClient:
    """A client of one server for one event loop; any number of calls may be under way at once.

    Arguments and errors as for BertClient. The connection opens with the first call. It may be used again
    under another event loop once the first has ended; until then every call there raises RuntimeError.

    >>> async with AsyncBertClient() as client:
    ...     vectors = await client.encode(["First do it", "then do it right"])
    """

    def __init__(
        self,
        ip: str = "localhost",
        port: int = 5555,
        port_out: int = 5556,
        output_fmt: str = "ndarray",
        identity: bytes | str | None = None,
        check_length: bool = True,
        timeout: int = -1,
        *,
        connect_timeout: int = 10_000,
    ) -> None:
        if output_fmt not in ("ndarray", "list"):
            raise AttributeError(f'"output_fmt" must be "ndarray" or "list", got {output_fmt!r}')
        self.ip, self.port, self.port_out = ip, port, port_out
        self.output_fmt = output_fmt
        self.timeout = timeout
        self.connect_timeout = connect_timeout
        self._warns = check_length
        self._is_closed = False
        self._begin(identity.encode() if isinstance(identity, str) else identity)

    async def __aenter__(self) -> AsyncBertClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<AsyncBertClient {self.ip}:{self.port} {self._session!r}>"

    def _begin(self, identity: bytes | None) -> None:
        """Begin a conversation; it belongs to the event loop and the process of its first request."""
        self._session = Session(identity or str(uuid.uuid4()).encode(), is_shared=identity is not None)
        self._connection: Connection | None = None
        self._owner: tuple[asyncio.AbstractEventLoop, int] | None = None
        self._num_losses = 0
        self._answers: dict[int, asyncio.Future[None]] = {}
        self._connected = asyncio.Event()
        self._prober: asyncio.Task[None] | None = None

    async def close(self) -> None:
        """Drop the connection; calls that still wait raise Unavailable."""
        self._check_owner()
        self._is_closed = True
        if self._connection is None:
            return
        self._connected.set()  # for those who wait for it, to see that it is closed
        loop = asyncio.get_running_loop()
        for descriptor in self._connection.descriptors:
            loop.remove_reader(descriptor)
        assert self._prober is not None
        self._prober.cancel()
        with suppress(asyncio.CancelledError):
            await self._prober
        self._wake(self._session.fail_pending(Unavailable("this client is closed")))
        self._connection.close()
        self._connection = None

    async def encode(
        self,
        texts: list[str] | list[list[str]],
        is_tokenized: bool = False,
        show_tokens: bool = False,
        **options: Any,
    ) -> Any:
        """Return the vectors of the texts: (B, D) float32, rows in the order of the texts.

        Arguments and errors as for BertClient.encode. Cancelling the call forgets the request.
        """
        check_request(texts, is_tokenized=is_tokenized)
        request_id, reply = await self.encode_reply(texts, options_of(options, show_tokens=show_tokens))
        response = response_of(request_id, reply, as_list=self.output_fmt == "list", warn=self._warns)
        return (response.embedding, response.tokens) if show_tokens else response.embedding

    async def encode_tokens(
        self, texts: list[str] | list[list[str]], is_tokenized: bool = False, **options: Any
    ) -> list[TokenVectors]:
        """Return the vectors, tokens and offsets of each text's tokens, as BertClient.encode_tokens."""
        check_request(texts, is_tokenized=is_tokenized)
        _, reply = await self.encode_reply(texts, options_of(options, **TOKEN_LEVEL))
        return token_vectors_of(reply)

    async def encode_spans(
        self, texts: list[str], spans: Sequence[Sequence[tuple[int, int]]], **options: Any
    ) -> list[Rows]:
        """Return for each text a vector for each of its spans, as BertClient.encode_spans."""
        check_request(texts, is_tokenized=False)
        check_spans(spans, len(texts))
        _, reply = await self.encode_reply(texts, options_of(options, ragged=True), spans)
        return rows_by_text(reply)

    async def encode_reply(
        self,
        texts: Sequence[Text],
        options: EncodeOptions = EncodeOptions(),  # noqa: B008
        spans: Sequence[Spans] | None = None,
    ) -> tuple[int, EncodeReply]:
        """Return the number of the request and the reply as it came, of texts that were checked."""
        deadline_ms = self.timeout if self.timeout >= 0 else None
        request_id, reply = await self._request(
            lambda now: self._session.encode(texts, now, options=options, spans=spans, deadline_ms=deadline_ms),
            self.timeout / 1000 if self.timeout >= 0 else None,
        )
        assert isinstance(reply, EncodeReply)
        return request_id, reply

    async def server_config(self) -> dict[str, Any]:
        """Return the settings in force at the server, and its versions."""
        return await self.ask(Command.SHOW_CONFIG)

    async def server_status(self) -> dict[str, Any]:
        """Return the server's settings, counters and workers."""
        return await self.ask(Command.SHOW_STATUS)

    async def ask(self, command: Command) -> dict[str, Any]:
        """Return the server's answer to a command."""
        limit_s = (self.timeout if self.timeout >= 0 else self.connect_timeout) / 1000
        _, reply = await self._request(lambda now: self._session.command(command, now), limit_s)
        assert isinstance(reply, InfoReply)
        return dict(reply.info)

    @property
    def status(self) -> dict[str, Any]:
        """The state of this client."""
        return client_status(self, self._session)

    # -- the line --------------------------------------------------------------------------------------

    async def _request(self, make: Any, limit_s: float | None) -> tuple[int, Reply]:
        deadline = None if limit_s is None else time.monotonic() + limit_s
        connection = await self._ensure_connected(limit_s)
        request_id, frames = make(time.monotonic())
        answered = self._answers[request_id] = asyncio.get_running_loop().create_future()
        try:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            await asyncio.wait_for(self._exchange(connection, frames, answered), left)
            reply = self._session.take(request_id)
        except asyncio.TimeoutError:
            raise TimeoutError(
                f"the server at {self.ip}:{self.port} did not answer within {limit_s:g} s"
            ) from None
        finally:
            del self._answers[request_id]
            self._session.forget(request_id)
        assert reply is not None
        return request_id, reply

    async def _exchange(self, connection: Connection, frames: Frames, answered: asyncio.Future[None]) -> None:
        while not answered.done() and not connection.send(frames):
            self._receive()  # where the line broke, this fails the request
            await asyncio.sleep(_NO_LINE_S)
        await answered

    def _check_owner(self) -> None:
        """Raise RuntimeError where another event loop of this process is in the midst of using the client."""
        if self._owner is None or self._connection is None:
            return
        loop, pid = self._owner
        if loop is not asyncio.get_running_loop() and pid == os.getpid() and loop.is_running():
            raise RuntimeError(
                "this AsyncBertClient belongs to another event loop, which is still running; make one for each"
            )

    async def _ensure_connected(self, limit_s: float | None) -> Connection:
        if self._is_closed:
            raise Unavailable("this client is closed")
        self._check_owner()
        loop = asyncio.get_running_loop()
        if self._owner not in (None, (loop, os.getpid())):
            # Another event loop, or a fork: the old loop's readers and the parent's sockets are of no use.
            if self._connection is not None and self._owner is not None and self._owner[1] == os.getpid():
                self._connection.close()
            self._begin(None)
        if self._connection is None:
            self._owner = (loop, os.getpid())
            self._connection = Connection(self._session.identity, self.ip, self.port, self.port_out)
            for descriptor in self._connection.descriptors:
                loop.add_reader(descriptor, self._receive)
            self._prober = loop.create_task(self._probe())
        connection = self._connection
        self._receive()  # a loss that happened before this request must not be counted against it
        connect_s = self.connect_timeout / 1000
        try:
            await asyncio.wait_for(
                self._connected.wait(), connect_s if limit_s is None else min(connect_s, limit_s)
            )
        except asyncio.TimeoutError:
            raise TimeoutError(f"cannot reach the server: {connection.trouble}") from None
        if self._is_closed:
            raise Unavailable("this client is closed")
        return connection

    def _receive(self) -> None:
        """Take in all that is there: a ZeroMQ descriptor tells of a change only once."""
        connection = self._connection
        if connection is None:
            return
        now = time.monotonic()
        for frames in connection.receive():
            request_id = self._session.receive(frames, now)
            if request_id is not None:
                self._wake([request_id])
        connection.tend_sender(now)
        if self._num_losses != connection.num_losses:
            self._num_losses = connection.num_losses
            error = Unavailable(f"the server at {self.ip}:{self.port} went away")
            self._wake(self._session.fail_pending(error))
        if connection.is_connected:
            self._connected.set()
        else:
            self._connected.clear()

    def _wake(self, request_ids: list[int]) -> None:
        for request_id in request_ids:
            answered = self._answers.get(request_id)
            if answered is not None and not answered.done():
                answered.set_result(None)

    async def _probe(self) -> None:
        while True:
            await asyncio.sleep(_PROBE_EVERY_S)
            self._receive()
            probe = self._session.probe(time.monotonic())
            self._wake(list(self._answers) if not self._session.pending else [])
            if probe is not None and self._connection is not None:
                self._connection.send(probe)
