"""pymilvus-model's functions for TEI, which cannot send an API key."""

from pymilvus.model.dense import TEIEmbeddingFunction
from pymilvus.model.reranker import TEIRerankFunction
from told import DOCUMENTS, OPEN_URL, QUERY, RANKER_URL, TEXTS, URL, refusal, say

embed = TEIEmbeddingFunction(api_url=OPEN_URL)
rank = TEIRerankFunction(api_url=RANKER_URL)
ranked = rank(QUERY, DOCUMENTS)
say(
    vectors={
        "documents": embed.encode_documents(TEXTS),
        "queries": embed.encode_queries(TEXTS),
        "call": embed(TEXTS),
    },
    dim=embed.dim,
    ranking=[[result.index, result.score] for result in ranked],
    texts=[result.text for result in ranked],
    refusals={
        "no key": refusal(lambda: TEIEmbeddingFunction(api_url=URL)(["x"])),
        "empty text": refusal(lambda: embed(["fine", ""])),
        "ranker, no key": refusal(lambda: TEIRerankFunction(api_url=URL)(QUERY, DOCUMENTS)),
        "no documents": refusal(lambda: rank(QUERY, [])),
    },
)
