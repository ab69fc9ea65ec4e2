"""infinity_client, which is generated from Infinity's OpenAPI schema."""

from infinity_client import AuthenticatedClient
from infinity_client.api.default import classify, embeddings, health, models, rerank
from infinity_client.models import ClassifyInput, OpenAIEmbeddingInputText, RerankInput
from told import DOCUMENTS, KEY, QUERY, RANKER_URL, TEXTS, URL, refusal, say

client = AuthenticatedClient(base_url=URL, token=KEY)
ranker = AuthenticatedClient(base_url=RANKER_URL, token="none")
wrong = AuthenticatedClient(base_url=URL, token="wrong", raise_on_unexpected_status=True)


def embed(texts: list[str] | str, **options: object) -> object:
    return embeddings.sync(client=client, body=OpenAIEmbeddingInputText(texts, **options))


def rows(reply: object) -> list[list[float]]:
    return [item.embedding for item in reply.data]


reply = embed(TEXTS, model="demo")
ranked = rerank.sync(client=ranker, body=RerankInput(QUERY, DOCUMENTS, return_documents=True, top_n=4))
labels = classify.sync(client=ranker, body=ClassifyInput(DOCUMENTS)).data
found = models.sync(client=client)
say(
    vectors={"list": rows(reply), "one string": rows(embed(TEXTS[0]))},
    short=rows(embed(TEXTS, dimensions=64)),
    facts=[reply.usage.prompt_tokens > len(TEXTS), reply.created > 1e9, len(reply.id) > 10],
    models=[[model.id, model.capabilities, model.stats.to_dict()["batch_size"]] for model in found.data],
    health=list(health.sync(client=client).to_dict()),
    ranking=[[result.index, result.relevance_score] for result in ranked.results],
    texts=[result.document for result in ranked.results],
    labels=[[label.label, label.score] for of_text in labels for label in of_text],
    # 422 is the only error status for which this client parses the body.
    error=embed(["fine", ""]).to_dict(),
    refusals={
        "wrong key": refusal(lambda: embeddings.sync(client=wrong, body=OpenAIEmbeddingInputText("x"))),
    },
)
