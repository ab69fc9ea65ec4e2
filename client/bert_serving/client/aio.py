"""AsyncBertClient: the client for asyncio, with the methods of BertClient that an event loop needs."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, overload

from bert_serving.protocol import (
    Command,
    EncodeOptions,
    EncodeReply,
    InfoReply,
    JsonObject,
    Rows,
    Spans,
    Text,
    Texts,
    TokenVectors,
    check_spans,
)

from .active_span import active_trace_context
from .address import Address, curve_keys
from .aio_channel import AsyncChannel
from .checks import (
    TOKEN_LEVEL,
    Response,
    Tokens,
    check_output_format,
    check_request,
    client_status,
    options_of,
    response_of,
    rows_by_text,
    token_vectors_of,
    warn_of_cuts,
)
from .session import MakeRequest, Session

if TYPE_CHECKING:
    from typing import Self

    from bert_serving.protocol import EncodeOptionsDict
    from typing_extensions import Unpack


class AsyncBertClient:
    """A client of one server for the tasks of one event loop. Many calls may run at once.

    Arguments and errors are those of BertClient. The first call connects the client and binds it to the running
    event loop. While this loop runs, a call under another event loop raises RuntimeError. After this loop has
    ended, the client may be used under another loop.

    address: where the server is, instead of ip, port, port_out and curve_dir. A gateway uses it to connect to the
    private sockets of its server.

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
        curve_dir: str | os.PathLike[str] | None = None,
        retry: bool = True,
        address: Address | None = None,
    ) -> None:
        check_output_format(output_fmt)
        self.ip, self.port, self.port_out = ip, port, port_out
        self.output_fmt = output_fmt
        self.timeout = timeout
        self.connect_timeout = connect_timeout
        self._retry = retry
        self._warns = check_length
        self._address = address or Address.tcp(ip, port, port_out, curve_keys(curve_dir))
        self._open(identity.encode() if isinstance(identity, str) else identity)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._address.requests_name} {self._session!r}>"

    async def close(self) -> None:
        """Close the connection. Calls that wait raise Unavailable, and so do later calls."""
        await self._channel.close()

    # -- vectors ---------------------------------------------------------------------------------------

    @overload
    async def encode(
        self,
        texts: Texts,
        is_tokenized: bool = False,
        show_tokens: Literal[False] = False,
        **options: Unpack[EncodeOptionsDict],
    ) -> Rows: ...

    @overload
    async def encode(
        self,
        texts: Texts,
        is_tokenized: bool = False,
        *,
        show_tokens: Literal[True],
        **options: Unpack[EncodeOptionsDict],
    ) -> tuple[Rows, Tokens]: ...

    @overload
    async def encode(
        self,
        texts: Texts,
        is_tokenized: bool = False,
        show_tokens: bool = False,
        **options: Unpack[EncodeOptionsDict],
    ) -> Rows | tuple[Rows, Tokens]: ...

    async def encode(
        self,
        texts: Texts,
        is_tokenized: bool = False,
        show_tokens: bool = False,
        **options: Unpack[EncodeOptionsDict],
    ) -> Rows | tuple[Rows, Tokens]:
        """Return the vectors of the texts: (B, D) float32, one row for each text, in the order of the texts.

        There is no argument `blocking`. Other arguments and all errors are those of BertClient.encode. If the
        call is cancelled, its request is cancelled too.
        """
        check_request(texts, is_tokenized=is_tokenized)
        asked = options_of(options, show_tokens=show_tokens)
        response = self._response(*await self.encode_reply(texts, asked))
        return (response.embedding, response.tokens) if show_tokens else response.embedding

    async def encode_tokens(
        self, texts: Texts, is_tokenized: bool = False, **options: Unpack[EncodeOptionsDict]
    ) -> list[TokenVectors]:
        """Return the tokens of each text with their vectors, (T, D) float32, and their offsets in characters.

        Arguments and errors are those of `encode`.
        """
        check_request(texts, is_tokenized=is_tokenized)
        return token_vectors_of(await self._warned_reply(texts, options_of(options, **TOKEN_LEVEL)))

    async def encode_spans(
        self, texts: list[str], spans: Sequence[Sequence[tuple[int, int]]], **options: Unpack[EncodeOptionsDict]
    ) -> list[Rows]:
        """Return one array for each text: the vectors of its spans, (number of spans, D) float32.

        spans: for each text, one or more pairs (start, end) in characters; see BertClient.encode_spans.
        """
        check_request(texts, is_tokenized=False)
        check_spans(spans, len(texts))
        return rows_by_text(await self._warned_reply(texts, options_of(options, ragged=True), spans))

    async def encode_reply(
        self,
        texts: Sequence[Text],
        options: EncodeOptions = EncodeOptions(),  # noqa: B008
        spans: Sequence[Spans] | None = None,
        *,
        timeout_ms: int | None = None,
        flow: str | None = None,
        flow_share: float | None = None,
        trace: str | None = None,
    ) -> tuple[int, EncodeReply]:
        """Return (request id, reply); the reply holds all that the server sent. Does not check texts and spans.

        timeout_ms: instead of the client's timeout. trace: a name for the request in the logs of the server.
        flow, flow_share: see EncodeRequest.
        """
        if timeout_ms is None and self.timeout >= 0:
            timeout_ms = self.timeout
        deadline = float("inf") if timeout_ms is None else time.monotonic() + timeout_ms / 1000
        trace_context = active_trace_context()
        request_id = await self._send(
            lambda now: self._session.encode(
                texts,
                now,
                options=options,
                spans=spans,
                deadline=deadline,
                flow=flow,
                flow_share=flow_share,
                trace=trace,
                trace_context=trace_context,
            ),
            deadline,
        )
        reply = await self._channel.reply_to(request_id, deadline)
        assert isinstance(reply, EncodeReply)
        return request_id, reply

    # -- the state of client and server ----------------------------------------------------------------

    @property
    def status(self) -> JsonObject:
        """The state of this client: its address, identity, and the number of requests sent and pending."""
        return client_status(self, self._session)

    async def server_config(self) -> JsonObject:
        """Return the settings and versions of the server."""
        return await self.ask(Command.SHOW_CONFIG)

    async def server_status(self) -> JsonObject:
        """Return the settings, counters and workers of the server."""
        return await self.ask(Command.SHOW_STATUS)

    async def ask(self, command: Command) -> JsonObject:
        """Return the reply of the server to a command."""
        # If there is no timeout, connect_timeout is the limit. It is long enough, because the broker replies even
        # if its workers are busy.
        limit_s = (self.timeout if self.timeout >= 0 else self.connect_timeout) / 1000
        deadline = time.monotonic() + limit_s
        request_id = await self._send(lambda now: self._session.command(command, now), deadline)
        reply = await self._channel.reply_to(request_id, deadline)
        assert isinstance(reply, InfoReply)
        return dict(reply.info)

    # -- the channel -----------------------------------------------------------------------------------

    def _open(self, identity: bytes | None) -> None:
        """Begin a new session. The channel connects with the first request."""
        self._session = Session(identity or str(uuid.uuid4()).encode(), retry=self._retry)
        self._channel = AsyncChannel(self._session, self._address)

    def _reopen_for_this_loop(self) -> None:
        """Begin a new session if the channel belongs to an event loop that has ended, or to the parent process."""
        if self._channel.is_closed:
            return
        self._channel.refuse_other_loop()
        if self._channel.belongs_to_other_loop():
            self._channel.abandon()
            self._open(None)

    async def _send(self, make: MakeRequest, deadline: float) -> int:
        self._reopen_for_this_loop()
        return await self._channel.send(make, min(deadline, time.monotonic() + self.connect_timeout / 1000))

    def _response(self, request_id: int, reply: EncodeReply) -> Response:
        if self._warns:
            warn_of_cuts(reply)
        return response_of(request_id, reply, as_list=self.output_fmt == "list")

    async def _warned_reply(
        self, texts: Sequence[Text], options: EncodeOptions, spans: Sequence[Spans] | None = None
    ) -> EncodeReply:
        _, reply = await self.encode_reply(texts, options, spans)
        if self._warns:
            warn_of_cuts(reply)
        return reply
