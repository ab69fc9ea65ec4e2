"""BertClient: the blocking client, with bert-as-service's signatures."""

from __future__ import annotations

import os
import time
import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, cast

import numpy as np
from bert_serving.protocol import (
    Command,
    EncodeOptions,
    EncodeReply,
    Frames,
    InfoReply,
    Reply,
    Rows,
    ServingError,
    Spans,
    Text,
    TokenVectors,
    check_spans,
)

from .channel import Channel
from .checks import (
    TOKEN_LEVEL,
    Response,
    check_request,
    check_version_of,
    client_status,
    options_of,
    response_of,
    rows_by_text,
    show_config,
    token_vectors_of,
    warn_of_cuts,
)
from .producer import Producer
from .session import Session

_NO_ROOM_S = 0.01
_ASK_AGAIN_S = 2.0
_ASYNC_POLL_S = 0.05
_ASYNC_WINDOW = 16  # batches under way at once; more would only fill the server's queue


_clients: weakref.WeakSet[BertClient] = weakref.WeakSet()


def _reopen_all() -> None:
    for client in list(_clients):
        client._after_fork()


os.register_at_fork(after_in_child=_reopen_all)


class BertClient:
    """A client of one server. Safe for several threads, and usable in a child after a fork.

    ip, port, port_out: where the server listens. output_fmt: "ndarray" or "list".
    show_server_config: print the server's configuration once connected.
    identity: bytes or str; default: a new UUID. Clients that share one all hear its replies.
    check_version, check_token_info: ask for the server's configuration at once, and refuse a server that
    speaks another wire. check_length: warn when texts were cut. ignore_all_checks: none of these.
    timeout: milliseconds that a call may take; -1: as long as the server is alive and at work on it.
    connect_timeout: milliseconds in which the server must be reached.

    length_limit: the server's max_seq_len (tokens), or 0 if it was not asked (check_length).
    token_info_available: whether every reply carries tokens, unasked; False if it was not asked.

    A signal handler that interrupts a call may close the client; any other call of its there is a RuntimeError.
    Raises TimeoutError if nobody answers at these ports, Unavailable (a ConnectionError) if the server
    dies while it is asked, and other ServingErrors as the server sends them.

    >>> with BertClient() as client:
    ...     client.encode(["First do it", "then do it right"]).shape
    (2, 384)
    """

    def __init__(
        self,
        ip: str = "localhost",
        port: int = 5555,
        port_out: int = 5556,
        output_fmt: str = "ndarray",
        show_server_config: bool = False,
        identity: bytes | str | None = None,
        check_version: bool = True,
        check_length: bool = True,
        check_token_info: bool = True,
        ignore_all_checks: bool = False,
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
        self.length_limit: int | None = 0
        self.token_info_available = False
        self._warns = check_length and not ignore_all_checks
        self._open(identity.encode() if isinstance(identity, str) else identity)
        _clients.add(self)
        if ignore_all_checks or not (check_version or check_length or check_token_info or show_server_config):
            return
        try:
            config = self.server_config
            if show_server_config:
                show_config(config)
            if check_version:
                check_version_of(config)
            if check_length:
                self.length_limit = config.get("max_seq_len")
            if check_token_info:
                self.token_info_available = bool(config.get("show_tokens_to_client"))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> BertClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.ip}:{self.port} {self._session!r}>"

    def close(self) -> None:
        """Drop the connection. Calls that still wait raise Unavailable."""
        self._line.close()

    # -- vectors ---------------------------------------------------------------------------------------

    def encode(
        self,
        texts: list[str] | list[list[str]],
        blocking: bool = True,
        is_tokenized: bool = False,
        show_tokens: bool = False,
        **options: Any,
    ) -> Any:
        """Return the vectors of the texts: (B, D) float32, rows in the order of the texts.

        texts: a list of strings that are not blank, or with is_tokenized a list of lists of such tokens.
        blocking: wait for the vectors; if False return None, and `fetch` or `fetch_all` has them later.
        show_tokens: return (vectors, tokens), the tokens being those that the model saw.
        options: what this request wants in another way than the server was started for: pooling_strategy,
        pooling_layer, normalize, dimensions, truncate, long_text, prompt, prompt_name, pairs; see
        bert_serving.protocol.EncodeOptions. With pooling_strategy NONE the vectors are (B, T, D), zero behind
        the end of a text.
        Raises TypeError or ValueError for bad texts, and what the class says for the rest.
        """
        check_request(texts, is_tokenized=is_tokenized)
        asked = options_of(options, show_tokens=show_tokens)
        deadline = self._deadline() if blocking else float("inf")
        request_id = self._send(
            lambda now: self._session.encode(
                texts,
                now,
                options=asked,
                deadline_ms=self.timeout if blocking and self.timeout >= 0 else None,
                to_fetch=not blocking,
            ),
            deadline,
        )
        if not blocking:
            return None
        response = self._response(request_id, self._line.reply_to(request_id, deadline))
        return (response.embedding, response.tokens) if show_tokens else response.embedding

    def encode_tokens(
        self, texts: list[str] | list[list[str]], is_tokenized: bool = False, **options: Any
    ) -> list[TokenVectors]:
        """Return the vectors, tokens and offsets of each text's tokens. options: as for `encode`."""
        check_request(texts, is_tokenized=is_tokenized)
        asked = options_of(options, **TOKEN_LEVEL)
        return token_vectors_of(self._encoded(texts, asked))

    def encode_spans(
        self, texts: list[str], spans: Sequence[Sequence[tuple[int, int]]], **options: Any
    ) -> list[Rows]:
        """Return for each text a vector for each of its spans: (number of spans, D) float32.

        spans: [start, end) in characters, some for each text. The whole text goes through the model once,
        and the tokens of each span are pooled (late chunking). options: as for `encode`.
        """
        check_request(texts, is_tokenized=False)
        check_spans(spans, len(texts))
        return rows_by_text(self._encoded(texts, options_of(options, ragged=True), spans))

    def _encoded(
        self, texts: Sequence[Text], options: EncodeOptions, spans: Sequence[Spans] | None = None
    ) -> EncodeReply:
        deadline = self._deadline()
        deadline_ms = self.timeout if self.timeout >= 0 else None
        request_id = self._send(
            lambda now: self._session.encode(texts, now, options=options, spans=spans, deadline_ms=deadline_ms),
            deadline,
        )
        reply = cast(EncodeReply, self._line.reply_to(request_id, deadline))
        if self._warns:
            warn_of_cuts(reply)
        return reply

    def fetch(self, delay: float = 0.0) -> Iterator[Response]:
        """Yield the results of `encode(..., blocking=False)` as they arrive, until none is pending.

        delay: seconds to wait before the first. The error of a request is raised in its place.
        """
        time.sleep(delay)
        while (found := self._fetch_next(self._deadline())) is not None:
            yield self._response(*found)

    def fetch_all(self, sort: bool = True, concat: bool = False) -> Any:
        """Return all results of `encode(..., blocking=False)`, or None if none is pending.

        sort: in the order of sending, not of arrival. concat: join the vectors to one array or list.
        """
        if not self._session.has_to_fetch:
            return None
        found: list[tuple[int, Reply]] = []
        try:
            while (one := self._fetch_next(self._deadline())) is not None:
                found.append(one)
        except BaseException:
            self._line.put_back(found)  # one request's error must not cost the others their results
            raise
        responses = [self._response(*one) for one in found]
        if sort:
            responses.sort(key=lambda response: response.id)
        embeddings = [response.embedding for response in responses]
        if not concat:
            return embeddings
        return list(chain.from_iterable(embeddings)) if self.output_fmt == "list" else np.concatenate(embeddings)

    def encode_async(
        self,
        batch_generator: Iterable[list[str]],
        max_num_batch: int | None = None,
        delay: float = 0.1,
        **kwargs: Any,
    ) -> Iterator[Response]:
        """Yield the results of the batches as they arrive, while another thread goes on sending.

        max_num_batch: send so many batches at most. delay: seconds before the first result is looked for.
        kwargs: as for `encode`. What the generator raises is raised here after the results.
        """
        producer = Producer(
            lambda texts: self.encode(texts, **{**kwargs, "blocking": False}),
            batch_generator,
            limit=max_num_batch,
            # Counted in the session: another thread may fetch what this one sent.
            has_room=lambda: self._line.is_closed or self._session.num_to_fetch < _ASYNC_WINDOW,
        )
        producer.start()
        try:
            time.sleep(delay)
            for request_id, reply in self._results_of(producer):
                yield self._response(request_id, reply)
        finally:
            producer.stop()
        if producer.error is not None:
            raise producer.error

    def _results_of(self, producer: Producer) -> Iterator[tuple[int, Reply]]:
        deadline = self._deadline()
        while True:
            is_producing = producer.is_alive()  # asked first: what it sent before its end is then seen below
            try:
                found = self._fetch_next(time.monotonic() + _ASYNC_POLL_S if is_producing else deadline)
            except TimeoutError as exc:
                # Either our short wait is over, or a deadline: the caller's own, or one that the server kept.
                if is_producing and time.monotonic() < deadline and not isinstance(exc, ServingError):
                    continue
                raise
            if found is not None:
                yield found
                deadline = self._deadline()
            elif is_producing:
                deadline = self._deadline()  # nothing is under way, so nothing is late
                time.sleep(_NO_ROOM_S)
            else:
                return

    def _fetch_next(self, deadline: float) -> tuple[int, Reply] | None:
        """Return (request id, reply) of a request to fetch, or None if there is none any more."""

        def next_or_nothing() -> tuple[int, Reply] | bool | None:
            # Another thread may have taken the last one while this one waited.
            return self._session.take_any() or (None if self._session.has_to_fetch else False)

        return cast("tuple[int, Reply] | None", self._line.wait(next_or_nothing, deadline) or None)

    # -- what is known ---------------------------------------------------------------------------------

    @property
    def identity(self) -> bytes:
        """What the server knows this client by; another one that is given it hears the same replies."""
        return self._session.identity

    @property
    def request_id(self) -> int:
        """The number of the latest request; the first has number 1."""
        return self._session.num_request

    @property
    def pending_request(self) -> set[int]:
        """The numbers of the requests whose result nobody has yet, be it here to fetch or still to come."""
        return self._session.outstanding

    @property
    def status(self) -> dict[str, Any]:
        """The state of this client."""
        return client_status(self, self._session)

    @property
    def server_config(self) -> dict[str, Any]:
        """The settings in force at the server, and its versions."""
        return self._ask(Command.SHOW_CONFIG)

    @property
    def server_status(self) -> dict[str, Any]:
        """The server's settings, counters and workers."""
        return self._ask(Command.SHOW_STATUS)

    def _ask(self, command: Command) -> dict[str, Any]:
        # The broker answers these whatever its workers do, so they never take long.
        limit_s = (self.timeout if self.timeout >= 0 else self.connect_timeout) / 1000
        deadline = time.monotonic() + limit_s
        while True:
            request_id = self._send(lambda now: self._session.command(command, now), deadline)
            try:
                reply = self._line.reply_to(request_id, min(deadline, time.monotonic() + _ASK_AGAIN_S))
            except TimeoutError:
                # Where clients share an identity, the first answer may go out to the others alone, before
                # this one's subscription has arrived.
                if time.monotonic() >= deadline:
                    raise
                continue
            assert isinstance(reply, InfoReply)
            return dict(reply.info)

    # -- the line --------------------------------------------------------------------------------------

    def _open(self, identity: bytes | None) -> None:
        """Begin a conversation; the sockets follow with the first request."""
        self._session = Session(identity or str(uuid.uuid4()).encode(), is_shared=identity is not None)
        self._line = Channel(self._session, self.ip, self.port, self.port_out)

    def _after_fork(self) -> None:
        """In the child: the sockets belong to the parent, and so do the replies to its identity."""
        was_closed = self._line.is_closed
        self._open(None)
        if was_closed:
            self._line.close()

    def _send(self, make: Callable[[float], tuple[int, Frames]], deadline: float) -> int:
        return self._line.send(make, min(deadline, time.monotonic() + self.connect_timeout / 1000))

    def _time_left(self) -> float:
        return self.timeout / 1000 if self.timeout >= 0 else float("inf")

    def _deadline(self) -> float:
        return time.monotonic() + self._time_left()

    def _response(self, request_id: int, reply: Reply) -> Response:
        assert isinstance(reply, EncodeReply)
        return response_of(request_id, reply, as_list=self.output_fmt == "list", warn=self._warns)
