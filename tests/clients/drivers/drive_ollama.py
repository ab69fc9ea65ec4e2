"""The package ollama, called with and without asyncio."""

import asyncio

from ollama import AsyncClient, Client
from told import KEY, TEXTS, URL, refusal, say

HEADERS = {"Authorization": f"Bearer {KEY}"}
client = Client(URL, headers=HEADERS)
reply = client.embed("demo", TEXTS, keep_alive="5m", options={"num_ctx": 512})

say(
    vectors={
        "embed": reply.embeddings,
        "async": asyncio.run(AsyncClient(URL, headers=HEADERS).embed("demo", TEXTS)).embeddings,
        "one string": client.embed("demo", TEXTS[0]).embeddings,
        "embeddings, the old call": [client.embeddings("demo", TEXTS[0]).embedding],
    },
    short=client.embed("demo", TEXTS, dimensions=64).embeddings,
    models=[model.model for model in client.list().models],
    facts=[
        reply.model,
        reply.prompt_eval_count > len(TEXTS),
        reply.total_duration > 0,
        client.show("demo").capabilities,
        client.ps().models[0].model,
        client.pull("demo").status,
    ],
    refusals={
        "wrong key": refusal(lambda: Client(URL).embed("demo", "x")),
        "empty text": refusal(lambda: client.embed("demo", ["fine", ""])),
        "too long": refusal(lambda: client.embed("demo", "word " * 500, truncate=False)),
    },
)
