"""LlamaIndex's classes for TEI (vectors and ranking) and for servers with OpenAI's API."""

import asyncio

from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.embeddings.text_embeddings_inference import TextEmbeddingsInference
from llama_index.postprocessor.tei_rerank import TextEmbeddingInference
from told import DOCUMENTS, KEY, QUERY, RANKER_URL, TEXTS, URL, refusal, say

tei = TextEmbeddingsInference(model_name="demo", base_url=URL, auth_token=KEY)
like = OpenAILikeEmbedding(model_name="demo", api_base=f"{URL}/v1", api_key=KEY, max_retries=0)


def ranking(url: str, **options: object) -> list[object]:
    ranker = TextEmbeddingInference(base_url=url, top_n=4, **options)
    nodes = [NodeWithScore(node=TextNode(text=text, id_=str(i))) for i, text in enumerate(DOCUMENTS)]
    return [[int(node.node_id), node.score] for node in ranker.postprocess_nodes(nodes, QueryBundle(QUERY))]


def without_key() -> object:
    return OpenAILikeEmbedding(model_name="demo", api_base=f"{URL}/v1", max_retries=0).get_query_embedding("x")


say(
    vectors={
        "tei texts": tei.get_text_embedding_batch(TEXTS),
        "tei async": asyncio.run(tei.aget_text_embedding_batch(TEXTS)),
        "tei query": [tei.get_query_embedding(TEXTS[0])],
        "openai-like texts": like.get_text_embedding_batch(TEXTS),
        "openai-like async": asyncio.run(like.aget_text_embedding_batch(TEXTS)),
        "openai-like query": [like.get_query_embedding(TEXTS[0])],
    },
    short=OpenAILikeEmbedding(
        model_name="demo", api_base=f"{URL}/v1", api_key=KEY, dimensions=64
    ).get_text_embedding_batch(TEXTS),
    ranking=ranking(RANKER_URL),
    # This client does not check the status, and returns the body of the error in place of vectors.
    error=TextEmbeddingsInference(model_name="demo", base_url=URL, auth_token="wrong")._call_api(["x"]),
    refusals={"openai-like, no key": refusal(without_key)},
)
