"""BertClient: the blocking client, with the signatures of bert-as-service's client."""

from __future__ import annotations

import os
import time
import uuid
import weakref
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, starmap
from typing import TYPE_CHECKING, Literal, overload

import numpy as np
from bert_serving.protocol import (
    Command,
    EncodeOptions,
    EncodeReply,
    InfoReply,
    JsonObject,
    Reply,
    Rows,
    ServingError,
    Spans,
    Text,
    Texts,
    TokenVectors,
    check_spans,
)

from .active_span import active_trace_context
from .address import Address, curve_keys
from .channel import Channel
from .checks import (
    TOKEN_LEVEL,
    Response,
    Tokens,
    check_output_format,
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
from .session import MakeRequest, Session

if TYPE_CHECKING:
    from typing import Self

    from bert_serving.protocol import EncodeOptionsDict
    from typing_extensions import Unpack

_POLL_S = 0.01  # pause of encode_async before it looks again for a reply, while no request is pending
_ASYNC_POLL_S = 0.05  # how often encode_async checks whether its thread has ended, while it waits for a reply
_ASYNC_WINDOW = 16  # how many batches encode_async sends ahead; more would only fill the server's queue


_clients: weakref.WeakSet[BertClient] = weakref.WeakSet()


def _reopen_all() -> None:
    for client in list(_clients):
        client._after_fork()


os.register_at_fork(after_in_child=_reopen_all)


class BertClient:
    """A client of one server. Threads may share it, and a child process may use it after a fork.

    ip, port, port_out: the address of the server.
    output_fmt: "ndarray" returns vectors as arrays, "list" as nested lists. The type hints of all methods
    show arrays.
    show_server_config: print the configuration of the server.
    identity: the name by which the server knows this client; default: a new UUID. Clients with the same identity
    receive each other's replies.
    check_version: request the configuration of the server, and raise AttributeError if its wire version is not the
    client's. check_length: request the configuration, set length_limit, and warn if the server cut texts.
    check_token_info: request the configuration and set token_info_available.
    ignore_all_checks: skip all these checks.
    timeout: milliseconds that a call may take; -1: no limit, as long as the server replies to the client's probes.
    connect_timeout: milliseconds that a call may wait for the connection to the server.
    curve_dir: a folder with the keys that encrypt the connection: the server's public key in `server.key` and the
    client's key pair in `client.key_secret`; the command bert-serving-keys makes them. Default: the folder in the
    environment variable BERT_SERVING_CLIENT_CURVE_DIR; if it is not set, the connection is not encrypted.
    retry: send a request again if the server is too busy or has no worker, and says when to try again; or if the
    connection breaks, as soon as there is a new one. The client waits for a random time before each attempt. It
    raises Overloaded or Unavailable if the next attempt would be after the timeout; without a timeout, after 60 s.
    False: raise the error at once.

    Attributes: length_limit is the server's max_seq_len in tokens; 0 without check_length. token_info_available
    is True if the server was started with -show_tokens_to_client; it is False without check_token_info.

    In a signal handler that interrupts a call, only `close` may be called; all other calls raise RuntimeError.

    Calls raise TimeoutError if the server cannot be reached, if it refuses the client's key, or if a timeout
    passes. They raise Unavailable (a ConnectionError) if the server stops or one of the two connections to it
    breaks, and they are not sent again in time; or if the client is closed. Later calls connect again. Errors that
    the server sends are raised as ServingErrors. A call that ends before its reply arrives, for example because of
    a timeout or KeyboardInterrupt, cancels its request.

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
        curve_dir: str | os.PathLike[str] | None = None,
        retry: bool = True,
    ) -> None:
        check_output_format(output_fmt)
        self.ip, self.port, self.port_out = ip, port, port_out
        self.output_fmt = output_fmt
        self.timeout = timeout
        self.connect_timeout = connect_timeout
        self._retry = retry
        self.length_limit: int | None = 0
        self.token_info_available = False
        self._warns = check_length and not ignore_all_checks
        self._address = Address.tcp(ip, port, port_out, curve_keys(curve_dir))
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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._address.requests_name} {self._session!r}>"

    def close(self) -> None:
        """Close the connection. Calls that wait raise Unavailable, and so do later calls."""
        self._channel.close()

    # -- vectors ---------------------------------------------------------------------------------------

    @overload
    def encode(
        self,
        texts: Texts,
        blocking: Literal[True] = True,
        is_tokenized: bool = False,
        show_tokens: Literal[False] = False,
        **options: Unpack[EncodeOptionsDict],
    ) -> Rows: ...

    @overload
    def encode(
        self,
        texts: Texts,
        blocking: Literal[True] = True,
        is_tokenized: bool = False,
        *,
        show_tokens: Literal[True],
        **options: Unpack[EncodeOptionsDict],
    ) -> tuple[Rows, Tokens]: ...

    @overload
    def encode(
        self,
        texts: Texts,
        blocking: Literal[False],
        is_tokenized: bool = False,
        show_tokens: bool = False,
        **options: Unpack[EncodeOptionsDict],
    ) -> None: ...

    @overload
    def encode(
        self,
        texts: Texts,
        blocking: bool = True,
        is_tokenized: bool = False,
        show_tokens: bool = False,
        **options: Unpack[EncodeOptionsDict],
    ) -> Rows | tuple[Rows, Tokens] | None: ...

    def encode(
        self,
        texts: Texts,
        blocking: bool = True,
        is_tokenized: bool = False,
        show_tokens: bool = False,
        **options: Unpack[EncodeOptionsDict],
    ) -> Rows | tuple[Rows, Tokens] | None:
        """Return the vectors of the texts: (B, D) float32, one row for each text, in the order of the texts.

        texts: a list of strings that are not blank, or of pairs {"text": ..., "text_pair": ...}. With
        is_tokenized: a list of lists of tokens, as strings or as ids.
        blocking: wait for the vectors. False: return None at once; `fetch` and `fetch_all` return the vectors.
        show_tokens: return (vectors, tokens), with the tokens of each text as the model received them.
        options: pooling_strategy, pooling_layer, normalize, dimensions, truncate, long_text, prompt, prompt_name
        and pairs; bert_serving.protocol.EncodeOptions explains them. Default: the settings of the server.
        With pooling_strategy="NONE" the vectors are (B, T, D), filled with zeros after the last token of a text.

        Raises TypeError or ValueError if the texts or an option are wrong. See BertClient for the other errors.
        """
        check_request(texts, is_tokenized=is_tokenized)
        asked = options_of(options, show_tokens=show_tokens)
        if not blocking:
            self._send_to_fetch(texts, asked)
            return None
        response = self._response(*self.encode_reply(texts, asked))
        return (response.embedding, response.tokens) if show_tokens else response.embedding

    def encode_tokens(
        self, texts: Texts, is_tokenized: bool = False, **options: Unpack[EncodeOptionsDict]
    ) -> list[TokenVectors]:
        """Return the tokens of each text with their vectors, (T, D) float32, and their offsets in characters.

        Arguments and errors are those of `encode`.
        """
        check_request(texts, is_tokenized=is_tokenized)
        return token_vectors_of(self._warned_reply(texts, options_of(options, **TOKEN_LEVEL)))

    def encode_spans(
        self, texts: list[str], spans: Sequence[Sequence[tuple[int, int]]], **options: Unpack[EncodeOptionsDict]
    ) -> list[Rows]:
        """Return one array for each text: the vectors of its spans, (number of spans, D) float32.

        spans: for each text, one or more pairs (start, end) in characters. The model reads the whole text once;
        then the token vectors of each span are pooled ("late chunking"). Options and errors are those of `encode`.
        """
        check_request(texts, is_tokenized=False)
        check_spans(spans, len(texts))
        return rows_by_text(self._warned_reply(texts, options_of(options, ragged=True), spans))

    def encode_reply(
        self,
        texts: Sequence[Text],
        options: EncodeOptions = EncodeOptions(),  # noqa: B008
        spans: Sequence[Spans] | None = None,
        *,
        timeout_ms: int | None = None,
        trace: str | None = None,
    ) -> tuple[int, EncodeReply]:
        """Return (request id, reply); the reply holds all that the server sent. Does not check texts and spans.

        timeout_ms: instead of the client's timeout. trace: a name for the request in the logs of the server.
        """
        if timeout_ms is None and self.timeout >= 0:
            timeout_ms = self.timeout
        deadline = float("inf") if timeout_ms is None else time.monotonic() + timeout_ms / 1000
        trace_context = active_trace_context()
        request_id = self._send(
            lambda now: self._session.encode(
                texts,
                now,
                options=options,
                spans=spans,
                deadline=deadline,
                trace=trace,
                trace_context=trace_context,
            ),
            deadline,
        )
        reply = self._channel.reply_to(request_id, deadline)
        assert isinstance(reply, EncodeReply)
        return request_id, reply

    # -- vectors to fetch later ------------------------------------------------------------------------

    def fetch(self, delay: float = 0.0) -> Iterator[Response]:
        """Yield the results of `encode(..., blocking=False)` in order of arrival, until no request is pending.

        delay: seconds to wait before the first result. While this method waits, refused requests are sent again as
        in `encode`, each for at most 60 s.

        If a request failed, its error is raised instead of its result; call `fetch` again for the other results.
        """
        time.sleep(delay)
        while (found := self._channel.next_reply(self._deadline())) is not None:
            yield self._response(*found)

    @overload
    def fetch_all(self, sort: bool = True, concat: Literal[False] = False) -> list[Rows] | None: ...

    @overload
    def fetch_all(self, sort: bool = True, *, concat: Literal[True]) -> Rows | None: ...

    @overload
    def fetch_all(self, sort: bool = True, concat: bool = False) -> list[Rows] | Rows | None: ...

    def fetch_all(self, sort: bool = True, concat: bool = False) -> list[Rows] | Rows | None:
        """Return the vectors of all calls of `encode(..., blocking=False)`, or None if no request is pending.

        sort: order the results by request id, not by arrival. concat: join the vectors into one array (or list).

        If a request failed, its error is raised; call `fetch_all` again for the other results.
        """
        if not self._session.has_to_fetch:
            return None
        found: list[tuple[int, Reply]] = []
        try:
            while (one := self._channel.next_reply(self._deadline())) is not None:
                found.append(one)
        except BaseException:
            self._channel.put_back(found)  # if one request fails, the results of the others must not be lost
            raise
        responses = list(starmap(self._response, found))
        if sort:
            responses.sort(key=lambda response: response.id)
        embeddings = [response.embedding for response in responses]
        if not concat:
            return embeddings
        return list(chain.from_iterable(embeddings)) if self.output_fmt == "list" else np.concatenate(embeddings)

    def encode_async(
        self,
        batch_generator: Iterable[Texts],
        max_num_batch: int | None = None,
        delay: float = 0.1,
        *,
        blocking: bool = False,
        is_tokenized: bool = False,
        show_tokens: bool = False,
        **options: Unpack[EncodeOptionsDict],
    ) -> Iterator[Response]:
        """Yield the results of the batches in order of arrival, while another thread sends further batches.

        max_num_batch: the largest number of batches to send. delay: seconds to wait before the first result.
        blocking: ignored; programs for bert-as-service may pass it. Other arguments and errors are those of
        `encode`. If the generator raises an error, this method raises it after the results of the earlier batches.
        """
        del blocking
        producer = Producer(
            lambda texts: self.encode(texts, False, is_tokenized, show_tokens, **options),
            batch_generator,
            limit=max_num_batch,
            # This call cannot count its own requests: another thread may fetch their replies.
            has_room=lambda: self._channel.is_closed or self._session.num_to_fetch < _ASYNC_WINDOW,
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
            # Check this before `next_reply`: if the producer has ended, it has sent all its requests.
            is_producing = producer.is_alive()
            try:
                found = self._channel.next_reply(time.monotonic() + _ASYNC_POLL_S if is_producing else deadline)
            except TimeoutError as exc:
                # Continue if only this short wait has ended. If the client's timeout has passed, or if the server
                # sent DeadlineExceeded (a ServingError), raise the error.
                if is_producing and time.monotonic() < deadline and not isinstance(exc, ServingError):
                    continue
                raise
            if found is not None:
                yield found
                deadline = self._deadline()
            elif is_producing:
                deadline = self._deadline()  # no request is pending, so the timeout has not begun yet
                time.sleep(_POLL_S)
            else:
                return

    # -- the state of client and server ----------------------------------------------------------------

    @property
    def identity(self) -> bytes:
        """The name by which the server knows this client. Clients with the same name receive the same replies."""
        return self._session.identity

    @property
    def request_id(self) -> int:
        """The number of the latest request. The first request has number 1."""
        return self._session.num_request

    @property
    def pending_request(self) -> set[int]:
        """The numbers of the requests that have no reply yet or whose reply was not fetched yet."""
        return self._session.outstanding

    @property
    def status(self) -> JsonObject:
        """The state of this client: its address, identity, and the number of requests sent and pending."""
        return client_status(self, self._session)

    @property
    def server_config(self) -> JsonObject:
        """The settings and versions of the server, requested at each access."""
        return self.ask(Command.SHOW_CONFIG)

    @property
    def server_status(self) -> JsonObject:
        """The settings, counters and workers of the server, requested at each access."""
        return self.ask(Command.SHOW_STATUS)

    def ask(self, command: Command) -> JsonObject:
        """Return the reply of the server to a command."""
        # If there is no timeout, connect_timeout is the limit. It is long enough, because the broker replies even
        # if its workers are busy.
        limit_s = (self.timeout if self.timeout >= 0 else self.connect_timeout) / 1000
        deadline = time.monotonic() + limit_s
        request_id = self._send(lambda now: self._session.command(command, now), deadline)
        reply = self._channel.reply_to(request_id, deadline)
        assert isinstance(reply, InfoReply)
        return dict(reply.info)

    # -- the channel -----------------------------------------------------------------------------------

    def _open(self, identity: bytes | None) -> None:
        """Begin a new session. The channel connects with the first request."""
        self._session = Session(identity or str(uuid.uuid4()).encode(), retry=self._retry)
        self._channel = Channel(self._session, self._address)

    def _after_fork(self) -> None:
        """Begin a new session in the child process. The sockets and the replies belong to the parent."""
        was_closed = self._channel.is_closed
        self._open(None)
        if was_closed:
            self._channel.close()

    def _send(self, make: MakeRequest, deadline: float) -> int:
        return self._channel.send(make, min(deadline, time.monotonic() + self.connect_timeout / 1000))

    def _send_to_fetch(self, texts: Sequence[Text], options: EncodeOptions) -> None:
        trace_context = active_trace_context()
        self._send(
            lambda now: self._session.encode(
                texts, now, options=options, trace_context=trace_context, to_fetch=True
            ),
            deadline=float("inf"),
        )

    def _deadline(self) -> float:
        return time.monotonic() + self.timeout / 1000 if self.timeout >= 0 else float("inf")

    def _response(self, request_id: int, reply: Reply) -> Response:
        assert isinstance(reply, EncodeReply)
        if self._warns:
            warn_of_cuts(reply)
        return response_of(request_id, reply, as_list=self.output_fmt == "list")

    def _warned_reply(
        self, texts: Sequence[Text], options: EncodeOptions, spans: Sequence[Spans] | None = None
    ) -> EncodeReply:
        _, reply = self.encode_reply(texts, options, spans)
        if self._warns:
            warn_of_cuts(reply)
        return reply
