"""cohere's clients for both versions of its API."""

from cohere import Client, ClientV2
from told import DOCUMENTS, KEY, QUERY, RANKER_URL, TEXTS, URL, refusal, say

TYPES = ["float", "int8", "uint8", "binary", "ubinary", "base64"]
client = ClientV2(KEY, base_url=URL)
ranker = ClientV2("none", base_url=RANKER_URL)


def embed(texts: list[str], *types: str, client: ClientV2 = client, **options: object) -> object:
    return client.embed(
        model="demo", texts=texts, input_type="search_document", embedding_types=types, **options
    ).embeddings


each = embed(TEXTS, *TYPES)
say(
    vectors={
        "embed": embed(TEXTS, "float").float_,
        "with others": each.float_,
        "version 1": Client(KEY, base_url=URL).embed(texts=TEXTS, model="demo").embeddings,
    },
    types={"int8": each.int8, "uint8": each.uint8, "binary": each.binary, "ubinary": each.ubinary},
    base64=each.base64,
    short=embed(TEXTS, "float", output_dimension=64, truncate="END").float_,
    ranking=[
        [result.index, result.relevance_score]
        for result in ranker.rerank(model="ranker", query=QUERY, documents=DOCUMENTS, top_n=4).results
    ],
    refusals={
        "wrong key": refusal(lambda: embed(["x"], "float", client=ClientV2("wrong", base_url=URL))),
        "empty text": refusal(lambda: embed(["fine", ""], "float")),
        "too long": refusal(lambda: embed(["word " * 500], "float", truncate="NONE")),
        "no reranker": refusal(lambda: client.rerank(model="demo", query=QUERY, documents=DOCUMENTS)),
    },
)
