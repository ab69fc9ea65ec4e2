"""Haystack's integration of Hugging Face's APIs."""

from haystack import Document
from haystack.utils import Secret
from haystack_integrations.components.embedders.huggingface_api import (
    HuggingFaceAPIDocumentEmbedder,
    HuggingFaceAPITextEmbedder,
    HuggingFaceTEISparseDocumentEmbedder,
)
from haystack_integrations.components.rankers.huggingface_api import HuggingFaceTEIRanker
from haystack_integrations.components.rankers.huggingface_api.ranker import TruncationDirection
from told import DOCUMENTS, KEY, QUERY, RANKER_URL, SPLADE_URL, TEXTS, URL, refusal, say

TEI = {"api_type": "text_embeddings_inference", "api_params": {"url": URL}}


def documents(texts: list[str]) -> list[Document]:
    return [Document(content=text, id=str(i)) for i, text in enumerate(texts)]


def embedded(key: str = KEY, **options: object) -> list[list[float]]:
    embedder = HuggingFaceAPIDocumentEmbedder(**TEI, token=Secret.from_token(key), progress_bar=False, **options)
    return [document.embedding for document in embedder.run(documents=documents(TEXTS))["documents"]]


def text(**options: object) -> list[float]:
    return HuggingFaceAPITextEmbedder(**TEI, token=Secret.from_token(KEY), **options).run(text=TEXTS[0])[
        "embedding"
    ]


def ranking(url: str, **options: object) -> list[object]:
    ranker = HuggingFaceTEIRanker(url=url, top_k=4)
    found = ranker.run(query=QUERY, documents=documents(DOCUMENTS), **options)["documents"]
    return [[int(document.id), document.score] for document in found]


sparse = HuggingFaceTEISparseDocumentEmbedder(api_base_url=SPLADE_URL, progress_bar=False)
say(
    vectors={"documents, normalized": embedded(normalize=True), "text, normalized": [text(normalize=True)]},
    plain={"documents": embedded(), "text": [text()]},
    sparse=[
        [document.sparse_embedding.indices, document.sparse_embedding.values]
        for document in sparse.run(documents=documents(DOCUMENTS))["documents"]
    ],
    ranking=ranking(RANKER_URL),
    cut_ranking=ranking(RANKER_URL, truncation_direction=TruncationDirection.LEFT),
    refusals={
        "wrong key": refusal(lambda: embedded("wrong")),
        "ranker, no key": refusal(lambda: ranking(URL)),
    },
)
