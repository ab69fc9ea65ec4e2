"""Hugging Face text-embeddings-inference: /embed, /rerank, /predict and others. POST / chooses among them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, NotRequired, cast

from bert_serving.protocol import (
    InvalidRequest,
    Overloaded,
    PayloadTooLarge,
    Rows,
    ServingError,
    Text,
    TextPair,
    Unauthorized,
    Unavailable,
    WorkerFailed,
    split_rows,
)
from fastapi import APIRouter, Response
from pydantic import BeforeValidator, ConfigDict, Field, WithJsonSchema
from typing_extensions import TypedDict

from ...number_formats import Dtype
from ..classify import NAMED_BYTES, LabelScore, labelled
from ..context import RequestContext
from ..dialect import Dialect, Handler
from ..errors import NoTexts, UnreadableBody, WrongModel
from ..fields import Body, Dimensions, Side, TextList, Texts, TextsBody
from ..openapi import Docs
from ..output import Container, binary_response, container_for, convert, encoded
from ..rerank import Ranking, RankingContent, RerankBody, rank
from ..service import Service
from ..texts import FailedTexts, Names
from ..tokenizing import DecodeBody, Token, TokenizeBody, decode, tokenize
from ..usage import num_chars, usage_headers

_ERROR_TYPES: dict[type[ServingError], tuple[int, str]] = {
    UnreadableBody: (400, "Validation"),
    NoTexts: (400, "Empty"),
    WrongModel: (424, "Backend"),
    Unauthorized: (401, "Unauthorized"),
    InvalidRequest: (422, "Validation"),
    Overloaded: (429, "Overloaded"),
    WorkerFailed: (424, "Backend"),
    Unavailable: (503, "Unhealthy"),
}

_INPUTS = Names("inputs")

#: TEI's names for pooling strategies.
_POOLINGS = {"REDUCE_MEAN": "mean", "CLS_TOKEN": "cls", "FIRST_TOKEN": "cls", "LAST_TOKEN": "last-token"}


class _Truncating(TextsBody):
    truncate: bool | None = Field(None, description="truncate texts that are too long (default), or reject them")
    truncation_direction: Side = None
    prompt_name: str | None = None

    def options(self) -> dict[str, object]:
        """Return these fields as options of Service.encode."""
        side = "error" if self.truncate is False else self.truncation_direction or "right"
        return {"truncate": side, "prompt_name": self.prompt_name}


class EmbedBody(_Truncating):
    inputs: Texts
    normalize: bool | None = True
    dimensions: Dimensions = None
    encoding_format: Container | None = None
    output_dtype: Dtype | None = None


class EmbedAllBody(_Truncating):
    inputs: Texts


class _Sentences(Body):
    source_sentence: str
    sentences: TextList


class SimilarityBody(TextsBody):
    inputs: _Sentences
    parameters: _Truncating | None = None


class _Inputs(NamedTuple):
    """The inputs of /predict. is_single: the body has one text or pair instead of a list."""

    texts: list[Text]
    is_single: bool


def _predict_inputs(value: object) -> _Inputs:
    """Return texts or pairs. A list of two strings is one pair, as in TEI. Raises ValueError."""
    if isinstance(value, str):
        return _Inputs([value], is_single=True)
    if not isinstance(value, list):
        raise ValueError("must be a string, a pair of strings, or a list of lists of one or two strings")
    is_single = bool(value) and all(isinstance(item, str) for item in value)
    if is_single and len(value) > 2:
        raise ValueError("must be a list of lists for more than one text: [[text], [text, text_pair], ...]")
    items = [value] if is_single else value
    if not all(isinstance(item, list) and len(item) in (1, 2) for item in items):
        raise ValueError("must contain lists of one or two strings")
    texts = [item[0] if len(item) == 1 else TextPair(text=item[0], text_pair=item[1]) for item in items]
    return _Inputs(texts, is_single)


class PredictBody(_Truncating):
    # The value is an _Inputs. The type is object, because pydantic refuses TextPair, a typing.TypedDict, before
    # Python 3.12.
    inputs: Annotated[object, BeforeValidator(_predict_inputs), WithJsonSchema({})]
    raw_scores: bool | None = False


class AnyBody(TextsBody):
    """The body of POST /: a body of /embed, /embed_sparse, /similarity, /rerank or /predict."""

    inputs: object = None
    query: str | None = None
    texts: object = None
    instances: object = None


class VertexBody(TextsBody):
    instances: list[dict[str, object]] = Field(examples=[[{"content": "hello world"}]])
    parameters: dict[str, object] | None = None


class TeiError(TypedDict):
    error: str
    error_type: Literal["Validation", "Empty", "Backend", "Unauthorized", "Overloaded", "Unhealthy"]


class TeiTerm(TypedDict):
    index: int
    value: float


class TeiRank(TypedDict):
    index: int
    text: NotRequired[str]
    score: float | None


class TeiHealth(TypedDict):
    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]  # pydantic reads it; see extra_health_fields

    status: Literal["ready"]


class TeiInfo(TypedDict):
    """Facts about the model. model_type has one key: embedding, classifier or reranker."""

    model_id: str
    model_sha: str | None
    model_dtype: str
    served_model_name: str
    model_type: dict[str, dict[str, Any]]
    max_concurrent_requests: int
    max_input_length: int
    max_batch_tokens: int
    max_batch_requests: int
    max_client_batch_size: int
    auto_truncate: bool
    tokenization_workers: int
    version: str
    sha: None
    docker_label: None
    dimension: int
    parity: float
    prompts: dict[str, str]


class Predictions(TypedDict):
    """A prediction for each instance of Vertex AI; each has the form of the reply to that instance."""

    predictions: list[Any]
    errors: NotRequired[FailedTexts]


_SOME = ["hello world", "one two three"]
_VECTORS = list[list[float] | None] | list[str | None]
_TERMS = list[list[TeiTerm] | None]
_LABELS = list[LabelScore] | list[list[LabelScore] | None] | None
_RANKS = list[TeiRank]
_DOCS = {
    "/embed": Docs(
        _VECTORS,
        {
            "texts": {"inputs": _SOME},
            "int8": {"inputs": "hello world", "output_dtype": "int8"},
            "raw bytes": {"inputs": _SOME, "encoding_format": "raw"},
            "a file in NumPy's format": {"inputs": _SOME, "encoding_format": "npy"},
        },
        "arrays",
        needs=["embed"],
    ),
    "/embed_all": Docs(list[list[list[float]] | None], {"texts": {"inputs": _SOME}}),
    "/embed_sparse": Docs(_TERMS, {"texts": {"inputs": _SOME}}, needs=["embed_sparse"]),
    "/similarity": Docs(
        list[float | None],
        {"sentences": {"inputs": {"source_sentence": "hello world", "sentences": _SOME}}},
        needs=["embed"],
    ),
    "/predict": Docs(
        _LABELS | Predictions,
        {
            "a text": {"inputs": "hello world"},
            "texts": {"inputs": [["hello world"], ["one two three"]]},
            "pairs": {"inputs": [["hello", "hello world"], ["hello", "one two three"]]},
        },
        needs=["classify"],
    ),
    "/vertex": Docs(
        Predictions,
        {"bodies of POST /": {"instances": [{"inputs": "hello world"}, {"inputs": "one two three"}]}},
        needs=["embed", "embed_sparse", "classify", "rerank"],
    ),
    "/tokenize": Docs(list[list[Token]], {"texts": {"inputs": _SOME}}),
    "/decode": Docs(list[str], {"token ids": {"ids": [[5, 6, 7], [8, 9]]}}),
}
_RANK_EXAMPLES = {
    "texts, as in TEI": {"query": "hello", "texts": _SOME, "return_text": True},
    "documents, as in Infinity and Jina": {"query": "hello", "documents": _SOME, "top_n": 1},
}


def _ranking_content(_: Service, body: RerankBody, ranking: Ranking) -> object:
    """Return TEI's reply to a request for a ranking."""
    return [
        {"index": i, **({"text": body.candidates[i]} if body.return_text else {}), "score": score}
        for i, score in ranking.places
    ]


def _no_fields() -> Mapping[str, object]:
    return {}


def add_routes(
    router: APIRouter,
    service: Service,
    *,
    predict_instances: Callable[[RequestContext, Handler], Awaitable[Response]],
    documents_content: RankingContent = _ranking_content,
    documents_reply: Any = _RANKS,
    extra_health_fields: Callable[[], Mapping[str, object]] = _no_fields,
) -> None:
    """Add the routes to the router.

    documents_reply: the type of what documents_content returns. For the other arguments, see SharedHandlers.
    """
    shared = SharedHandlers(predict_instances, documents_content, extra_health_fields)
    routes: list[tuple[str, Handler, type[Body]]] = [
        ("/embed", embed, EmbedBody),
        ("/embed_all", embed_all, EmbedAllBody),
        ("/embed_sparse", embed_sparse, EmbedAllBody),
        ("/similarity", similarity, SimilarityBody),
        ("/predict", shared.predict, PredictBody),
        ("/vertex", shared.vertex, VertexBody),
        ("/tokenize", tokenize, TokenizeBody),
        ("/decode", decode, DecodeBody),
    ]
    for path, handler, body in routes:
        TEI.add_routes(router, service, [path], handler, body=body, docs=_DOCS[path])
    rankings = _RANKS | documents_reply
    docs = Docs(rankings, _RANK_EXAMPLES, needs=["rerank"])
    TEI.add_routes(router, service, ["/rerank"], shared.rerank, body=RerankBody, docs=docs)
    docs = Docs(
        _VECTORS | _TERMS | _LABELS | list[float | None] | rankings,
        {"texts or a pair": {"inputs": _SOME}},
        "arrays",
        needs=["embed", "embed_sparse", "classify", "rerank"],
    )
    TEI.add_routes(router, service, ["/", "/invocations"], shared.by_shape, body=AnyBody, docs=docs)
    TEI.add_routes(router, service, ["/info"], info, docs=Docs(TeiInfo))
    TEI.add_routes(router, service, ["/health", "/ping"], shared.health, is_public=True, docs=Docs(TeiHealth))


@dataclass(frozen=True, slots=True)
class SharedHandlers:
    """Handlers of routes that TEI shares with another dialect.

    predict_instances: answers a body of Vertex AI; calls the handler for each instance that is a body of its own.
    documents_content: returns the reply of /rerank to a body that has its texts in "documents".
    extra_health_fields: returns what the other dialect adds to /health.
    """

    predict_instances: Callable[[RequestContext, Handler], Awaitable[Response]]
    documents_content: RankingContent
    extra_health_fields: Callable[[], Mapping[str, object]]

    async def rerank(self, context: RequestContext) -> Response:
        """Return the index and the score of each text, highest score first."""
        body = await context.body(RerankBody)
        ranking = await rank(context, body)
        content = self.documents_content if body.texts is None else _ranking_content
        return await context.json(content(context.service, body, ranking), headers=ranking.headers)

    async def predict(self, context: RequestContext) -> Response:
        """Return the labels of each input with their scores, highest score first.

        A body with `instances` is answered as by /vertex.
        """
        if (await context.body(AnyBody)).instances is not None:
            return await self.vertex(context)
        return await predict(context)

    async def vertex(self, context: RequestContext) -> Response:
        """Return a prediction for each instance. An instance is a text in `content`, or a body of POST /."""
        return await self.predict_instances(context, self.by_shape)

    async def by_shape(self, context: RequestContext) -> Response:
        """Embed, compare, rerank or classify. The shape of the body and the kind of the model decide which."""
        body = await context.body(AnyBody)
        if isinstance(body.inputs, dict):
            return await similarity(context)
        if body.query is not None:
            return await self.rerank(context)
        kind = (await context.service.model()).kind
        if kind in ("classifier", "reranker"):
            return await predict(context)
        return await (embed_sparse(context) if kind == "splade" else embed(context))

    async def health(self, context: RequestContext) -> Response:
        """Return 200 if every worker has computed something recently, else 503."""
        status = await context.service.status()
        if not status["ready"]:
            raise Unavailable("not every worker is ready")
        return await context.json({"status": "ready", **self.extra_health_fields()})


async def embed(context: RequestContext) -> Response:
    """Return a vector for each input."""
    body = await context.body(EmbedBody)
    container = container_for(context.request.headers, body.encoding_format)
    rows, reply = await context.service.vectors(
        body.inputs, _INPUTS, normalize=body.normalize is not False, dimensions=body.dimensions, **body.options()
    )
    vectors = await context.off_loop(convert, rows, body.output_dtype or "float32")
    headers = usage_headers(reply, num_chars(body.inputs))
    if (response := binary_response(vectors, container, headers)) is not None:
        return response
    content = context.service.notes.nulled(await context.off_loop(encoded, vectors, container))
    return await context.json(content, headers=headers)


async def embed_all(context: RequestContext) -> Response:
    """Return a vector for each token of each input, special tokens included."""
    body = await context.body(EmbedAllBody)
    reply = await context.service.encode(
        body.inputs, _INPUTS, pooling_strategy="NONE", ragged=True, pairs=False, **body.options()
    )
    assert reply.counts is not None, "ragged is set"
    content = context.service.notes.nulled(split_rows(reply.rows, reply.counts))
    return await context.json(content, headers=usage_headers(reply, num_chars(body.inputs)))


async def embed_sparse(context: RequestContext) -> Response:
    """Return for each input the vocabulary indices of its terms, and the weight of each term."""
    body = await context.body(EmbedAllBody)
    reply = await context.service.encode(
        body.inputs, _INPUTS, pooling_strategy="SPLADE", ragged=True, pairs=False, **body.options()
    )
    assert reply.counts is not None, "ragged is set"
    context.hold(len(reply.rows) * NAMED_BYTES)
    content = await context.off_loop(_sparse, split_rows(reply.rows, reply.counts))
    return await context.json(
        context.service.notes.nulled(content), headers=usage_headers(reply, num_chars(body.inputs))
    )


def _sparse(terms: list[Rows]) -> list[list[dict[str, float]]]:
    return [[{"index": int(i), "value": float(value)} for i, value in of_text] for of_text in terms]


async def similarity(context: RequestContext) -> Response:
    """Return the cosine similarity of the source sentence to each of the other sentences."""
    body = await context.body(SimilarityBody)
    texts = [*body.inputs.sentences, body.inputs.source_sentence]
    if len(texts) == 1:
        raise NoTexts("inputs.sentences must not be empty")
    names = Names("inputs.sentences", others={len(texts) - 1: "inputs.source_sentence"})
    options = {} if body.parameters is None else body.parameters.options()
    rows, reply = await context.service.vectors(texts, names, normalize=True, **options)
    return await context.json(rows[:-1] @ rows[-1], headers=usage_headers(reply, num_chars(texts)))


async def predict(context: RequestContext) -> Response:
    """Return the labels of each input with their scores, highest score first."""
    body = await context.body(PredictBody)
    texts, is_single = cast("_Inputs", body.inputs)
    labels, reply = await labelled(context, texts, _INPUTS, raw=bool(body.raw_scores), **body.options())
    return await context.json(labels[0] if is_single else labels, headers=usage_headers(reply, num_chars(texts)))


async def info(context: RequestContext) -> Response:
    """Return facts about the model that is served, and the limits of a request."""
    model = await context.service.model()
    facts, server = model.facts, model.server
    ids = {str(i): label for i, label in enumerate(model.labels)}
    heads = {"id2label": ids, "label2id": {label: int(i) for i, label in ids.items()}}
    kinds = {"classifier": {"classifier": heads}, "reranker": {"reranker": heads}}
    pooling = "+".join(_POOLINGS.get(name, name.lower()) for name in facts["poolings"])
    return await context.json(
        {
            "model_id": context.service.model_name,
            "model_sha": server["revision"],
            "model_dtype": facts["dtype"],
            "served_model_name": context.service.model_name,
            "model_type": kinds.get(model.kind, {"embedding": {"pooling": pooling}}),
            "max_concurrent_requests": server["queue_capacity"],
            "max_input_length": facts["max_seq_len"],
            "max_batch_tokens": facts["max_batch_tokens"],
            "max_batch_requests": server["max_batch_size"],
            "max_client_batch_size": model.usual_batch_size,
            "auto_truncate": True,
            "tokenization_workers": server["num_worker"],
            "version": server["version"],
            "sha": None,
            "docker_label": None,
            "dimension": facts["dimension"],
            "parity": facts["parity"],
            "prompts": model.prompts,
        }
    )


def _describe_error(error: ServingError) -> tuple[int, object]:
    if isinstance(error, PayloadTooLarge):
        return error.http_status, {"error": error.message, "error_type": "Validation"}
    by_class = ((status, kind) for cls, (status, kind) in _ERROR_TYPES.items() if isinstance(error, cls))
    status, kind = next(by_class, (error.http_status, "Backend"))
    return status, {"error": error.message, "error_type": kind}


TEI = Dialect(
    "Text Embeddings Inference",
    _describe_error,
    TeiError,
    "The routes of Hugging Face's Text Embeddings Inference (TEI), for its clients at `http://HOST:PORT`: "
    "`InferenceClient` of huggingface_hub, LlamaIndex, Haystack, Chroma and others. /rerank is Infinity's too.",
)
