"""The server as the dialects see it: it returns vectors, facts about the model, and the model's tokenizer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeVar, cast

import numpy as np
from bert_serving.protocol import (
    Command,
    EncodeOptions,
    EncodeReply,
    InvalidRequest,
    JsonObject,
    Rows,
    Spans,
    Text,
    Unavailable,
    WorkerFailed,
    options_from_json,
)

from .calls import Call
from .errors import WrongModel
from .keys import Keyring
from .known_models import KnownModels, Model, ServerStatus
from .limits import BodyLimits
from .memory import GatewayMemory, RequestMemory
from .texts import ERROR_BYTES, Names, OnError, TextNotes, readable_texts, renamed
from .usage import CountComputed, num_tokens

if TYPE_CHECKING:
    from tokenizers import Tokenizer

STATUS_TIMEOUT_S = 5.0

_T = TypeVar("_T")


class VectorClient(Protocol):
    """What a gateway needs of the client that gets vectors for it. AsyncBertClient is such a client."""

    @property
    def status(self) -> JsonObject:
        """The state of the client."""

    async def encode_reply(
        self,
        texts: Sequence[Text],
        options: EncodeOptions,
        spans: Sequence[Spans] | None,
        *,
        timeout_ms: int | None,
        flow: str | None,
        flow_share: float | None,
        trace: str | None,
    ) -> tuple[int, EncodeReply]:
        """Return (number of the request, reply). Raises ServingError or TimeoutError."""

    async def server_status(self) -> JsonObject:
        """Return the settings, counters and workers of the server."""

    async def ask(self, command: Command) -> JsonObject:
        """Return the reply to a command."""

    async def close(self) -> None:
        """Release what the client holds."""


@dataclass(frozen=True, slots=True)
class Service:
    """A gateway's access to the broker and to facts about the model.

    model_name: the name of the model in replies. models: what is known about the models that workers serve.
    memory: for the bodies and the replies of all requests. keys: the accepted API keys. protects_metrics: whether
    /metrics requires a key too. call: what the broker must know about the request that uses this object. held: the
    memory of that request, which must hold its replies; None: they are not counted. notes: what the response must
    say about the texts of that request. on_computed: called with the numbers of texts and tokens of each reply.
    """

    client: VectorClient
    model_name: str
    models: KnownModels
    limits: BodyLimits
    memory: GatewayMemory
    keys: Keyring = field(default_factory=Keyring)
    protects_metrics: bool = False
    call: Call = Call()  # noqa: RUF009
    held: RequestMemory | None = None
    notes: TextNotes = field(default_factory=TextNotes)
    on_computed: CountComputed = lambda num_texts, num_tokens: None

    def for_call(
        self,
        call: Call,
        held: RequestMemory | None,
        *,
        notes: TextNotes | None = None,
        on_computed: CountComputed | None = None,
    ) -> Service:
        """Return this service for one request. on_computed: None: as before."""
        counts = on_computed or self.on_computed
        return replace(self, call=call, held=held, notes=notes or TextNotes(), on_computed=counts)

    def with_on_error(self, on_error: OnError) -> Service:
        """Return this service for the same request. on_error: what a text that cannot be encoded leads to."""
        return replace(self, call=replace(self.call, on_error=on_error))

    async def encode(
        self,
        texts: Sequence[object],
        names: Names = Names(),  # noqa: B008
        **options: object,
    ) -> EncodeReply:
        """Check the texts and the options; return the reply, including its usage.

        names: what the caller calls the texts. Raises ServingError or TimeoutError.
        """
        readable = await self.readable(texts, names)
        try:
            checked = options_from_json(options)
        except (TypeError, ValueError) as exc:
            raise InvalidRequest(str(exc)) from exc
        return await self.encode_reply(readable, checked, names=names)

    async def readable(self, texts: object, names: Names) -> Sequence[Text]:
        """Return texts that the broker accepts; see readable_texts. Raises InvalidRequest or PayloadTooLarge."""
        check = partial(readable_texts, on_error=self.call.on_error, may_be_empty=names.may_be_empty)
        try:
            found = await self._off_loop(partial(check, texts, self.notes))
        except InvalidRequest as exc:
            raise renamed(exc, names) from exc
        return cast("Sequence[Text]", found)

    async def encode_reply(
        self,
        texts: Sequence[Text],
        options: EncodeOptions,
        spans: Sequence[Spans] | None = None,
        *,
        names: Names = Names(),  # noqa: B008
    ) -> EncodeReply:
        """Return the reply to texts that have already been checked, including its usage.

        names: what the caller calls the texts.
        Raises ServingError or TimeoutError: among others, DeadlineExceeded if the deadline of the request passes,
        Overloaded if the caller's API key has sent too many texts, and Overloaded or PayloadTooLarge if there is
        no memory for the reply.
        """
        call = self.call
        try:
            with self.keys.charge(len(texts)):
                _, reply = await self.client.encode_reply(
                    texts,
                    replace(options, show_usage=True, on_error=call.on_error),
                    spans,
                    timeout_ms=call.remaining_ms(),
                    flow=call.flow,
                    flow_share=call.flow_share,
                    trace=call.trace,
                )
        except TimeoutError:
            call.remaining_ms()  # raises DeadlineExceeded if it was the deadline that passed
            raise
        except (InvalidRequest, WorkerFailed) as exc:
            raise renamed(exc, names) from exc
        if reply.errors:
            if self.held is not None:
                self.held.grow(len(reply.errors) * ERROR_BYTES)
            await self._off_loop(partial(self.notes.add, reply, names))
        self.notes.compute_type = self.models.compute_type
        self.on_computed(len(texts), num_tokens(reply))
        if self.held is not None:
            self.held.grow(reply.rows.nbytes)
        return reply

    async def vectors(
        self,
        texts: Sequence[object],
        names: Names = Names(),  # noqa: B008
        **options: object,
    ) -> tuple[Rows, EncodeReply]:
        """Return one vector for each text, (B, D) float32, and the whole reply. A text with an error has NaN.

        Raises ServingError or TimeoutError; InvalidRequest if the server's pooling gives several vectors per text;
        WrongModel if the model is a reranker, whose vectors mean nothing, and no pooling_strategy is given.
        """
        reply = await self.encode(texts, names, ragged=True, pairs=False, **options)
        if "pooling_strategy" not in options:
            await self.check_is_no_reranker(reply)
        if reply.counts is not None:
            raise InvalidRequest(
                "this server returns several vectors per text (-pooling_strategy NONE or SPLADE): "
                "use /encode, /embed_all or /embed_sparse"
            )
        return reply.rows.astype(np.float32, copy=False), reply  # rows are float16 if -fp16 is set

    async def check_is_no_reranker(self, reply: EncodeReply) -> None:
        """Raise WrongModel if a reranker has computed the reply: its vectors mean nothing."""
        if (await self.model_of(reply)).kind == "reranker":
            raise WrongModel("the model is a reranker, so it gives no embeddings: use /rerank")

    async def _off_loop(self, function: Callable[[], _T]) -> _T:
        """Call a function: in a thread if the request is large."""
        return function() if self.held is None else await self.held.off_loop(function)

    async def model(self) -> Model:
        """Return the model that computes new requests. Raises Unavailable until a worker has loaded it."""
        return await self.models.newest()

    async def model_of(self, reply: EncodeReply) -> Model:
        """Return the model that has computed a reply. Raises Unavailable if the broker does not answer."""
        assert reply.usage is not None, "every request of a gateway asks for the usage"
        return await self.models.of(reply.usage.model)

    async def status(self) -> ServerStatus:
        """Return the broker's status. Raises TimeoutError or Unavailable if the broker does not answer."""
        return await server_status(self.client)

    async def tokenizer(self) -> Tokenizer:
        """Return the model's tokenizer. Raises Unavailable until a worker has loaded the model."""
        return await self.models.tokenizer()


async def server_status(client: VectorClient) -> ServerStatus:
    """Return the broker's status. Raises TimeoutError or Unavailable if the broker does not answer."""
    try:
        status = await asyncio.wait_for(client.server_status(), STATUS_TIMEOUT_S)
    except TimeoutError:
        raise Unavailable(f"the server did not answer within {STATUS_TIMEOUT_S:g} s") from None
    return cast("ServerStatus", status)
