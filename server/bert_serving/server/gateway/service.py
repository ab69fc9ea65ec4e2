"""The server as the dialects see it: it returns vectors, facts about the model, and the model's tokenizer."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, cast

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

if TYPE_CHECKING:
    from tokenizers import Tokenizer

STATUS_TIMEOUT_S = 5.0


class WorkerStatus(TypedDict, total=False):
    """The fields that the gateway reads from a worker's entry in the broker's status.

    A worker that is not ready has only `name` and `state`. Only models with a classification head have `labels`.
    """

    name: str
    state: str
    kind: str  # "embedding", "splade", "classifier" or "reranker"
    labels: list[str]
    prompts: dict[str, str]
    poolings: list[str]
    dtype: str
    dimension: int
    max_seq_len: int
    max_batch_tokens: int
    parity: float
    splits_specials: bool


class ServerStatus(TypedDict):
    """The fields that the gateway reads from the broker's status, which is the reply to SHOW_STATUS."""

    ready: bool
    workers: list[WorkerStatus]
    queue_texts: int
    open_requests: int
    model_dir: str
    revision: str | None
    queue_capacity: int
    flow_share: float
    max_batch_size: int
    num_worker: int
    version: str


@dataclass(frozen=True, slots=True)
class Model:
    """The model that is served. server: the broker's status, read once. facts: a ready worker's entry in it."""

    facts: WorkerStatus
    server: ServerStatus

    @property
    def kind(self) -> str:
        """One of "embedding", "splade", "classifier" and "reranker"."""
        return self.facts["kind"]

    @property
    def labels(self) -> Sequence[str]:
        """The labels of a classification head; empty for other models."""
        return self.facts.get("labels", ())

    @property
    def prompts(self) -> Mapping[str, str]:
        """The model's prompts by their names."""
        return self.facts.get("prompts", {})


@dataclass(slots=True)
class Service:
    """A gateway's access to the broker and to facts about the model.

    model_name: the name of the model in replies. tokenizer_path: file with the model's tokenizer; the first worker
    writes this file. api_keys: a request must have one of these keys; if there are none, no API key is required.
    """

    client: AsyncBertClient
    model_name: str
    tokenizer_path: Path
    max_body_bytes: int
    api_keys: tuple[str, ...] = ()
    _model: Model | None = field(default=None, init=False)
    _tokenizer: Tokenizer | None = field(default=None, init=False)

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

        Raises ServingError or TimeoutError.
        """
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
        """Return what is known about the model. Raises Unavailable until a worker has loaded it."""
        if self._model is None:
            status = await self.status()
            ready = next((worker for worker in status["workers"] if worker["state"] == "ready"), None)
            if ready is None:
                raise Unavailable("the model is still loading", retry_after_ms=1000)
            self._model = Model(ready, status)
        return self._model

    async def status(self) -> ServerStatus:
        """Return the broker's status. Raises TimeoutError or Unavailable if the broker does not answer."""
        try:
            status = await asyncio.wait_for(self.client.server_status(), STATUS_TIMEOUT_S)
        except asyncio.TimeoutError:
            raise Unavailable(f"the server did not answer within {STATUS_TIMEOUT_S:g} s") from None
        return cast("ServerStatus", status)

    async def tokenizer(self) -> Tokenizer:
        """Return the model's tokenizer. Raises Unavailable until a worker has loaded the model."""
        if self._tokenizer is None:
            from tokenizers import Tokenizer  # imported late: it takes memory, and only some requests need it

            model = await self.model()
            tokenizer = await asyncio.to_thread(Tokenizer.from_file, str(self.tokenizer_path))
            tokenizer.encode_special_tokens = model.facts["splits_specials"]
            self._tokenizer = tokenizer
        return self._tokenizer
