"""The package openai, called with and without asyncio."""

import asyncio

from openai import AsyncOpenAI, AzureOpenAI, OpenAI
from told import KEY, TEXTS, URL, refusal, say

MODEL = "demo"


def embed(client: OpenAI, texts: object = TEXTS, **options: object) -> list[list[float]]:
    return [item.embedding for item in client.embeddings.create(model=MODEL, input=texts, **options).data]


async def embed_async() -> list[list[float]]:
    async with AsyncOpenAI(base_url=f"{URL}/v1", api_key=KEY) as client:
        reply = await client.embeddings.create(model=MODEL, input=TEXTS)
        return [item.embedding for item in reply.data]


azure = AzureOpenAI(
    azure_endpoint=URL, azure_deployment=MODEL, api_key=KEY, api_version="2024-10-21", max_retries=0
)
with OpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0) as client:
    say(
        vectors={
            "base64, its default": embed(client),
            "float": embed(client, encoding_format="float"),
            "async": asyncio.run(embed_async()),
            "without /v1": embed(client.with_options(base_url=URL)),
            "one string": embed(client, TEXTS[0]),
            "Azure": embed(azure),
        },
        short=embed(client, dimensions=64),
        usage=client.embeddings.create(model=MODEL, input=["hello world", "hello"], user="me").usage.to_dict(),
        models=[*(model.id for model in client.models.list()), client.models.retrieve("any").id],
        refusals={
            "wrong key": refusal(lambda: embed(client.with_options(api_key="wrong"))),
            "empty text": refusal(lambda: embed(client, ["fine", ""])),
            "no such path": refusal(lambda: client.post("/nope", cast_to=object)),
            "foreign ids": refusal(lambda: embed(client, [[15339, 99999]])),
        },
    )
