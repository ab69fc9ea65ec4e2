"""langchain-openai, langchain-community and langchain-ollama.

By default, langchain-openai sends token ids of tiktoken's cl100k. LlamaIndex's package contains this tokenizer, so
nothing is downloaded.
"""

import asyncio
import os
from importlib.util import find_spec
from pathlib import Path

from langchain_community.embeddings import InfinityEmbeddings
from langchain_ollama import OllamaEmbeddings
from langchain_openai import OpenAIEmbeddings
from told import KEY, OPEN_URL, TEXTS, URL, refusal, say

os.environ["TIKTOKEN_CACHE_DIR"] = str(
    Path(find_spec("llama_index.core").origin).parent / "_static/tiktoken_cache"
)


def openai(**options: object) -> OpenAIEmbeddings:
    settings = {"base_url": f"{URL}/v1", "api_key": KEY, "max_retries": 0, "check_embedding_ctx_length": False}
    return OpenAIEmbeddings(model="demo", **{**settings, **options})


def ollama(key: str = KEY, **options: object) -> OllamaEmbeddings:
    headers = {"Authorization": f"Bearer {key}"}
    return OllamaEmbeddings(model="demo", base_url=URL, client_kwargs={"headers": headers}, **options)


infinity = InfinityEmbeddings(model="demo", infinity_api_url=OPEN_URL)
say(
    vectors={
        "openai documents": openai().embed_documents(TEXTS),
        "openai documents, in parts": openai(chunk_size=7).embed_documents(TEXTS),
        "openai query": [openai().embed_query(TEXTS[0])],
        "openai async": asyncio.run(openai().aembed_documents(TEXTS)),
        "infinity documents": infinity.embed_documents(TEXTS),
        "infinity documents, in parts": infinity.embed_documents([*TEXTS, *["short"] * 300])[: len(TEXTS)],
        "infinity async": asyncio.run(infinity.aembed_documents(TEXTS)),
        "infinity query": [infinity.embed_query(TEXTS[0])],
        "ollama documents": ollama().embed_documents(TEXTS),
        "ollama query": [ollama().embed_query(TEXTS[0])],
        "ollama async": asyncio.run(ollama().aembed_documents(TEXTS)),
    },
    short={
        "openai": openai(dimensions=64).embed_documents(TEXTS),
        "ollama": ollama(dimensions=64).embed_documents(TEXTS),
    },
    refusals={
        "foreign ids": refusal(lambda: openai(check_embedding_ctx_length=True).embed_documents(TEXTS)),
        "openai, wrong key": refusal(lambda: openai(api_key="wrong").embed_query("x")),
        "infinity, no key": refusal(
            lambda: InfinityEmbeddings(model="demo", infinity_api_url=URL).embed_query("x")
        ),
        "ollama, wrong key": refusal(lambda: ollama("wrong").embed_query("x")),
    },
)
