"""The OpenAPI document follows the model and the keys of the server."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from bert_serving.protocol import Unavailable
from bert_serving.server.gateway.dialects import tei, vertex
from bert_serving.server.gateway.docs_page import LiveDocument
from bert_serving.server.gateway.known_models import Model
from bert_serving.server.gateway.openapi import operations_of
from fastapi import APIRouter

from tests.support.gateway import make_service


class ModelsOfTest:
    """Stands for KnownModels. kind: of the model that is served; None: it is still being loaded."""

    def __init__(self, kind: str | None, poolings: tuple[str, ...] = ("REDUCE_MEAN",)) -> None:
        self.kind = kind
        self.poolings = poolings

    async def newest(self) -> Model:
        if self.kind is None:
            raise Unavailable("the model is still loading")
        labels = {"classifier": ["a", "b"], "reranker": ["a"]}.get(self.kind, [])
        facts: Any = {"kind": self.kind, "poolings": self.poolings, "fingerprint": self.kind, "labels": labels}
        return Model(facts, {})  # type: ignore[typeddict-item]


def live_document(models: ModelsOfTest) -> LiveDocument:
    service = replace(make_service(), models=models)
    router = APIRouter()
    tei.add_routes(router, service, predict_instances=vertex.predict_instances)
    return LiveDocument(service, operations_of(router))


def current(live: LiveDocument) -> dict[str, Any]:
    return asyncio.run(live.current())


def served(document: dict[str, Any]) -> set[str]:
    operations = {path: each for path, methods in document["paths"].items() for each in methods.values()}
    return {path for path, operation in operations.items() if operation["x-is-served"]}


def test_another_model_makes_another_document() -> None:
    models = ModelsOfTest(None)
    live = live_document(models)
    while_loading = current(live)
    assert served(while_loading) == while_loading["paths"].keys()
    models.kind = "reranker"
    of_reranker = current(live)
    assert served(of_reranker) == while_loading["paths"].keys() - {"/embed", "/similarity", "/embed_sparse"}
    assert current(live) is of_reranker
    models.kind = "embedding"
    assert "/embed" in served(current(live))
    operation = current(live)["paths"]["/rerank"]["post"]
    assert operation["summary"] == "Rerank (not with this model)"
    assert "Needs a reranker." in operation["description"]
    assert "The model that is served is an embedding model" in operation["description"]


@pytest.mark.parametrize(
    ("kind", "poolings", "abilities"),
    [
        ("embedding", ("REDUCE_MEAN",), {"embed"}),
        ("embedding", ("NONE",), set()),
        ("splade", ("SPLADE",), {"embed_sparse"}),
        ("splade", ("REDUCE_MAX",), {"embed", "embed_sparse"}),
        ("classifier", ("CLS_TOKEN",), {"embed", "classify"}),
        ("reranker", ("REDUCE_MEAN",), {"rerank", "classify"}),
    ],
)
def test_what_a_model_can_be_used_for(kind: str, poolings: tuple[str, ...], abilities: set[str]) -> None:
    assert asyncio.run(ModelsOfTest(kind, poolings).newest()).abilities == abilities
