"""What every dialect asks for: vectors, facts of the model, its tokenizer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    check_spans,
    check_texts,
    options_from_json,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer

STATUS_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Model:
    """What a worker says of the model.

    kind: "embedding", "splade", "classifier" or "reranker". config: the server's settings, and a worker's facts.
    """

    kind: str
    labels: tuple[str, ...]
    prompts: dict[str, str]
    config: dict[str, Any]


@dataclass(slots=True)
class Service:
    """The server behind a gateway.

    model_name: what replies call the model. tokenizer_path: a file that the first worker writes. api_keys: any
    one is enough; none: nobody is asked.
    """

    client: AsyncBertClient
    model_name: str
    tokenizer_path: Path
    max_body_bytes: int
    api_keys: tuple[str, ...] = ()
    _model: Model | None = field(default=None, init=False)
    _tokenizer: Tokenizer | None = field(default=None, init=False)

    async def encode(
        self, texts: Sequence[Text], spans: Sequence[Spans] | None = None, **options: Any
    ) -> EncodeReply:
        """Return the reply to texts, with its usage and without padding. Raises ServingError, TimeoutError."""
        try:
            check_texts(texts)
            if spans is not None:
                check_spans(spans, len(texts))
            asked = options_from_json(options)
        except (TypeError, ValueError) as exc:
            raise InvalidRequest(str(exc)) from exc
        return await self.encode_reply(texts, asked, spans)

    async def encode_reply(
        self, texts: Sequence[Text], options: EncodeOptions, spans: Sequence[Spans] | None = None
    ) -> EncodeReply:
        """Return the reply to texts that were checked."""
        _, reply = await self.client.encode_reply(texts, replace(options, show_usage=True), spans)
        return reply

    async def vectors(self, texts: Sequence[Text], **options: Any) -> tuple[Rows, EncodeReply]:
        """Return a vector for each text, (B, D) float32, and the whole reply."""
        reply = await self.encode(texts, ragged=True, pairs=False, **options)
        if reply.counts is not None:
            raise InvalidRequest(
                "this server gives any number of rows for a text (-pooling_strategy NONE or SPLADE): "
                "see /encode, /embed_all or /embed_sparse"
            )
        return reply.rows.astype(np.float32, copy=False), reply  # they are float16 under -fp16

    async def model(self) -> Model:
        """Return what is known of the model. Raises Unavailable until a worker has loaded it."""
        if self._model is None:
            status = await self.status()
            ready = [worker for worker in status["workers"] if worker["state"] == "ready"]
            if not ready:
                raise Unavailable("the model is still loading", retry_after_ms=1000)
            facts = ready[0]
            self._model = Model(
                facts["kind"], tuple(facts.get("labels", ())), facts.get("prompts", {}), {**status, **facts}
            )
        return self._model

    async def status(self) -> dict[str, Any]:
        """Return the broker's status. Raises TimeoutError or Unavailable where it does not answer."""
        try:
            return await asyncio.wait_for(self.client.server_status(), STATUS_TIMEOUT_S)
        except asyncio.TimeoutError:
            raise Unavailable("the server does not answer") from None

    async def tokenizer(self) -> Tokenizer:
        """Return the model's tokenizer. Raises Unavailable until a worker has loaded it."""
        if self._tokenizer is None:
            from tokenizers import Tokenizer  # only where it is asked for: it takes memory

            model = await self.model()
            tokenizer = await asyncio.to_thread(Tokenizer.from_file, str(self.tokenizer_path))
            tokenizer.encode_special_tokens = model.config["splits_specials"]
            self._tokenizer = tokenizer
        return self._tokenizer
