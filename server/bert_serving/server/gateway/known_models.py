"""What a gateway knows about the models that workers serve. The model changes when the server reloads it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict

from bert_serving.protocol import Unavailable

if TYPE_CHECKING:
    from tokenizers import Tokenizer

#: What a model may be used for. embed: it has one vector for each text.
Ability = Literal["embed", "embed_sparse", "rerank", "classify"]

_USUAL_S = 30.0  # half of the time for which most clients wait
_FRESH_S = 2.0  # for this long after a reload, requests that need no vectors may be answered for the old model


class WorkerStatus(TypedDict, total=False):
    """The fields that the gateway reads from a worker's entry in the broker's status.

    A worker that is not ready has only `name` and `state`. Only models with a classification head have `labels`.
    """

    name: str
    state: str
    fingerprint: str
    kind: str  # "embedding", "splade", "classifier" or "reranker"
    labels: list[str]
    prompts: dict[str, str]
    poolings: list[str]
    device: str
    dtype: str
    tokens_per_s: int
    dimension: int
    max_seq_len: int
    max_batch_tokens: int
    parity: float
    splits_specials: bool


class ServerStatus(TypedDict):
    """The fields that the gateway reads from the broker's status, which is the reply to SHOW_STATUS.

    model: fingerprint of the newest model.
    """

    ready: bool
    model: str
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
    """A model that is served. facts: the entry of a worker with this model in the broker's status `server`."""

    facts: WorkerStatus
    server: ServerStatus

    @property
    def kind(self) -> str:
        """One of "embedding", "splade", "classifier" and "reranker"."""
        return self.facts["kind"]

    @property
    def abilities(self) -> frozenset[Ability]:
        """What the model can be used for."""
        abilities: dict[Ability, bool] = {
            "embed": self.kind != "reranker" and not {"NONE", "SPLADE"} & {*self.facts["poolings"]},
            "embed_sparse": self.kind == "splade",
            "rerank": self.kind == "reranker",
            "classify": bool(self.labels),
        }
        return frozenset(name for name, has in abilities.items() if has)

    @property
    def labels(self) -> Sequence[str]:
        """The labels of a classification head; empty for other models."""
        return self.facts.get("labels", ())

    @property
    def usual_batch_size(self) -> int:
        """The number of texts of the greatest length that all workers together compute in _USUAL_S.

        Clients take it for the size of their batches. Larger requests work too, but callers may give up waiting.
        """
        rate = sum(worker.get("tokens_per_s", 0) for worker in self.server["workers"])
        most = int(self.server["queue_capacity"] * self.server["flow_share"])
        return max(1, min(most, int(rate * _USUAL_S) // self.facts["max_seq_len"]))

    @property
    def prompts(self) -> Mapping[str, str]:
        """The model's prompts by their names."""
        return self.facts.get("prompts", {})


class KnownModels:
    """The models that this gateway has seen lately, by fingerprint, and their tokenizers.

    read_status: requests the broker's status. tokenizer_dir: the folder in which each worker writes its tokenizer.
    fetch_tokenizer: writes the tokenizer of a model, given by its fingerprint, to a file in this folder; None: the
    workers see the folder, and do it themselves.
    """

    def __init__(
        self,
        read_status: Callable[[], Awaitable[ServerStatus]],
        tokenizer_dir: Path,
        fetch_tokenizer: Callable[[str, Path], Awaitable[None]] | None = None,
    ) -> None:
        self._read_status = read_status
        self._tokenizer_dir = tokenizer_dir
        self._fetch_tokenizer = fetch_tokenizer
        self._models: dict[str, Model] = {}
        self._newest: Model | None = None
        self._read_at = 0.0
        self._tokenizer: tuple[str, Tokenizer] | None = None

    async def newest(self) -> Model:
        """Return the model that computes new requests. Raises Unavailable until a worker has loaded it."""
        if self._newest is None or time.monotonic() > self._read_at + _FRESH_S:
            await self._read()
        if self._newest is None:
            raise Unavailable("the model is still loading", retry_after_ms=1000)
        return self._newest

    async def of(self, fingerprint: str) -> Model:
        """Return the model that has computed a reply. Raises Unavailable if the broker does not answer."""
        if fingerprint not in self._models:
            await self._read()
        return self._models[fingerprint] if fingerprint in self._models else await self.newest()

    @property
    def compute_type(self) -> str | None:
        """What the newest model runs on, "cpu" or "gpu"; None if no model is known yet."""
        if self._newest is None:
            return None
        return "cpu" if self._newest.facts["device"] == "cpu" else "gpu"

    async def tokenizer(self) -> Tokenizer:
        """Return the tokenizer of the newest model.

        Raises Unavailable until a worker has loaded the model, and if no worker could write the tokenizer.
        """
        facts = (await self.newest()).facts
        fingerprint = facts["fingerprint"]
        if self._tokenizer is None or self._tokenizer[0] != fingerprint:
            from tokenizers import Tokenizer  # imported late: it takes memory, and only some requests need it

            path = self._tokenizer_dir / f"tokenizer-{fingerprint}.json"
            if self._fetch_tokenizer is not None:
                await self._fetch_tokenizer(fingerprint, path)
            if not path.exists():
                raise Unavailable("the server has no tokenizer file, because its disk was full; its log says more")
            tokenizer = await asyncio.to_thread(Tokenizer.from_file, str(path))
            tokenizer.encode_special_tokens = facts["splits_specials"]
            self._tokenizer = fingerprint, tokenizer
        return self._tokenizer[1]

    async def _read(self) -> None:
        """Read the status, unless the broker does not answer and an older status is known."""
        self._read_at = time.monotonic()  # already now, so that other requests do not read it too
        try:
            status = await self._read_status()
        except Unavailable:
            if self._newest is None:
                raise
            return
        found = {worker["fingerprint"]: Model(worker, status) for worker in status["workers"] if "kind" in worker}
        if self._newest is not None:  # its replies may still be on their way
            found = {self._newest.facts["fingerprint"]: self._newest, **found}
        self._models = found
        self._newest = found.get(status["model"], self._newest)
