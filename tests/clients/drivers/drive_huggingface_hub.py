"""huggingface_hub's InferenceClient."""

import asyncio

from huggingface_hub import AsyncInferenceClient, InferenceClient
from told import KEY, TEXTS, URL, refusal, say

client = InferenceClient(URL, token=KEY)


async def embed_async() -> object:
    async with AsyncInferenceClient(URL, token=KEY) as client:
        return await client.feature_extraction(TEXTS)


say(
    vectors={
        "feature_extraction": client.feature_extraction(TEXTS),
        "async": asyncio.run(embed_async()),
        "/embed": InferenceClient(f"{URL}/embed", token=KEY).feature_extraction(TEXTS),
        "one string": client.feature_extraction(
            TEXTS[0], normalize=True, truncate=True, truncation_direction="right"
        ),
    },
    short=client.feature_extraction(TEXTS, dimensions=64),
    similarity=client.sentence_similarity(TEXTS[0], other_sentences=TEXTS[1:]),
    refusals={
        "wrong key": refusal(lambda: InferenceClient(URL, token="wrong").feature_extraction("x")),
        "empty text": refusal(lambda: client.feature_extraction(["fine", ""])),
        "too long": refusal(lambda: client.feature_extraction("word " * 500, truncate=False)),
    },
)
