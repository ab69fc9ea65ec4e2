"""The server as the dialects see it: it returns vectors, facts about the model, and the model's tokenizer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from bert_serving.client import AsyncBertClient
from bert_serving.protocol import (
    EncodeOptions,
    EncodeReply,
    InvalidRequest,
    Rows,
    Spans,
    Text,
    Unavailable,
    check_texts,
    options_from_json,
)

from .keys import Keyring
from .known_models import KnownModels, Model, ServerStatus

if TYPE_CHECKING:
    from tokenizers import Tokenizer

STATUS_TIMEOUT_S = 5.0


@dataclass(slots=True)
class Service:
    """A gateway's access to the broker and to facts about the model.

    model_name: the name of the model in replies. tokenizer_dir: see KnownModels. keys: the accepted API keys.
    protects_metrics: whether /metrics requires a key too.
    """

    client: AsyncBertClient
    model_name: str
    tokenizer_dir: Path
    max_body_bytes: int
    keys: Keyring = field(default_factory=Keyring)
    protects_metrics: bool = False
    _models: KnownModels = field(init=False)

    def __post_init__(self) -> None:
        self._models = KnownModels(self.status, self.tokenizer_dir)

    async def encode(self, texts: Sequence[object], **options: object) -> EncodeReply:
        """Check the texts and the options; return the reply, including its usage.

        Raises ServingError or TimeoutError.
        """
        try:
            check_texts(texts)
            checked = options_from_json(options)
        except (TypeError, ValueError) as exc:
            raise InvalidRequest(str(exc)) from exc
        return await self.encode_reply(cast("Sequence[Text]", texts), checked)

    async def encode_reply(
        self, texts: Sequence[Text], options: EncodeOptions, spans: Sequence[Spans] | None = None
    ) -> EncodeReply:
        """Return the reply to texts that have already been checked, including its usage.

        Raises ServingError or TimeoutError; Overloaded if the caller's API key has sent too many texts.
        """
        with self.keys.charge(len(texts)):
            _, reply = await self.client.encode_reply(texts, replace(options, show_usage=True), spans)
        return reply

    async def vectors(self, texts: Sequence[object], **options: object) -> tuple[Rows, EncodeReply]:
        """Return one vector for each text, (B, D) float32, and the whole reply.

        Raises ServingError or TimeoutError; InvalidRequest if the server's pooling gives several vectors per text.
        """
        reply = await self.encode(texts, ragged=True, pairs=False, **options)
        if reply.counts is not None:
            raise InvalidRequest(
                "this server returns several vectors per text (-pooling_strategy NONE or SPLADE): "
                "use /encode, /embed_all or /embed_sparse"
            )
        return reply.rows.astype(np.float32, copy=False), reply  # rows are float16 if -fp16 is set

    async def model(self) -> Model:
        """Return the model that computes new requests. Raises Unavailable until a worker has loaded it."""
        return await self._models.newest()

    async def model_of(self, reply: EncodeReply) -> Model:
        """Return the model that has computed a reply. Raises Unavailable if the broker does not answer."""
        assert reply.usage is not None, "every request of a gateway asks for the usage"
        return await self._models.of(reply.usage.model)

    async def status(self) -> ServerStatus:
        """Return the broker's status. Raises TimeoutError or Unavailable if the broker does not answer."""
        try:
            status = await asyncio.wait_for(self.client.server_status(), STATUS_TIMEOUT_S)
        except asyncio.TimeoutError:
            raise Unavailable(f"the server did not answer within {STATUS_TIMEOUT_S:g} s") from None
        return cast("ServerStatus", status)

    async def tokenizer(self) -> Tokenizer:
        """Return the model's tokenizer. Raises Unavailable until a worker has loaded the model."""
        return await self._models.tokenizer()
