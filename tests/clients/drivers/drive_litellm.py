"""litellm, which calls the server as several of its providers."""

import asyncio
import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # otherwise litellm downloads a list of prices

import litellm
from told import DOCUMENTS, KEY, QUERY, RANKER_URL, TEXTS, URL, refusal, say

PROVIDERS = {
    "openai": {"model": "openai/demo", "api_base": f"{URL}/v1", "encoding_format": "float"},
    "hosted_vllm": {"model": "hosted_vllm/demo", "api_base": f"{URL}/v1"},
    "infinity": {"model": "infinity/demo", "api_base": URL},
    "huggingface": {"model": "huggingface/demo", "api_base": f"{URL}/embed", "input_type": "embed"},
    "huggingface, root": {"model": "huggingface/demo", "api_base": URL, "input_type": "embed"},
}


def rows(reply: litellm.EmbeddingResponse) -> list[list[float]]:
    return [item["embedding"] for item in reply.data]


def embed(provider: str, key: str = KEY, **options: object) -> list[list[float]]:
    return rows(litellm.embedding(**PROVIDERS[provider], input=TEXTS, api_key=key, max_retries=0, **options))


def ranking(provider: str, api_base: str) -> list[object]:
    reply = litellm.rerank(
        model=f"{provider}/ranker", query=QUERY, documents=DOCUMENTS, top_n=4, api_base=api_base, api_key="none"
    )
    return [[result["index"], result["relevance_score"], result["document"]["text"]] for result in reply.results]


# litellm asks for similarities if the name of the model contains "sentence-transformers".
similar = litellm.embedding(
    model="huggingface/sentence-transformers/x", input_type="similarity", api_base=URL, api_key=KEY, input=TEXTS
)
say(
    vectors={
        **{provider: embed(provider) for provider in PROVIDERS},
        "async": rows(asyncio.run(litellm.aembedding(**PROVIDERS["hosted_vllm"], input=TEXTS, api_key=KEY))),
    },
    short={provider: embed(provider, dimensions=64) for provider in ("hosted_vllm", "infinity")},
    similarity=rows(similar),
    rankings={
        "infinity": ranking("infinity", RANKER_URL),
        "huggingface": ranking("huggingface", RANKER_URL),
        "cohere": ranking("cohere", f"{RANKER_URL}/v2/rerank"),
        "hosted_vllm": ranking("hosted_vllm", f"{RANKER_URL}/v1"),  # without /v1, the reply has Infinity's format
    },
    refusals={
        **{f"{provider}, wrong key": refusal(lambda p=provider: embed(p, "wrong")) for provider in PROVIDERS},
        "rerank, no key": refusal(lambda: ranking("infinity", URL)),
    },
)
