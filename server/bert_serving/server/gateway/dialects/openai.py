"""OpenAI's embeddings API, which most clients use: POST /v1/embeddings, GET /v1/models, GET /v1/models/NAME.

Azure's clients have the same bodies at another path, and send the key as `api-key`. Jina's, Voyage's and Mistral's
have the same path, and more fields.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Literal, NotRequired

from fastapi import APIRouter, Response
from pydantic import AliasChoices, BeforeValidator, ConfigDict, Field
from typing_extensions import TypedDict

from ...number_formats import Dtype
from ..context import RequestContext
from ..dialect import Dialect
from ..fields import Dimensions, Texts, TextsBody
from ..late_chunking import chunk_vectors
from ..openai_format import OpenAIError, TokenUsage, describe_error, list_object
from ..openapi import Docs
from ..output import Container, binary_response, container_for, convert, encoded
from ..prompts import prompt_for
from ..service import Service
from ..texts import FailedTexts, Names
from ..usage import num_chars, usage_headers

OPENAI = Dialect(
    "OpenAI",
    describe_error,
    OpenAIError,
    "OpenAI's API for embeddings, also for Azure's clients, LangChain, LlamaIndex and many others: "
    '`OpenAI(base_url="http://HOST:PORT/v1", api_key="any")`. The only model answers to any name.',
)

_AZURE = "/openai/deployments/{deployment}/embeddings"


_EmbeddingType = Literal["float32", "float16", "int8", "uint8", "binary", "ubinary", "base64"]


def _text_of(value: object) -> object:
    """Return the text of one of Jina's inputs, {"text": ...}; any other input as it is."""
    return value["text"] if isinstance(value, dict) and value.keys() == {"text"} else value


def _inputs(value: object) -> object:
    if isinstance(value, list) and any(isinstance(each, dict) for each in value):
        return [_text_of(each) for each in value]
    return _text_of(value)


def _dtype(value: object) -> object:
    """Return an `output_dtype` or an `embedding_type`: Voyage, Mistral and Jina call float32 `float`."""
    if isinstance(value, list) and len(value) == 1:  # Jina also accepts a list
        value = value[0]
    return "float32" if value == "float" else value


class EmbeddingsBody(TextsBody):
    input: Annotated[Texts, BeforeValidator(_inputs)]
    model: object = None
    encoding_format: Container | None = None
    output_dtype: Annotated[Dtype | None, BeforeValidator(_dtype)] = Field(
        None, description="Jina's clients call it `embedding_type`, and may ask for `base64` there"
    )
    # Infinity's client sends 0 to request all components.
    dimensions: Annotated[Dimensions, BeforeValidator(lambda value: None if value == 0 else value)] = Field(
        None,
        validation_alias=AliasChoices("dimensions", "output_dimension"),
        description="Voyage's and Mistral's clients, and LiteLLM, call it `output_dimension`",
    )
    embedding_type: Annotated[_EmbeddingType | None, BeforeValidator(_dtype)] = None
    task: str | None = Field(None, description="purpose of the texts, which chooses one of the model's prompts")
    input_type: str | None = Field(None, description="what Voyage's clients call `task`")
    late_chunking: bool | None = Field(
        False, description="read the inputs as one text; each vector is pooled from the tokens of its input"
    )
    normalized: bool | None = True
    truncate: bool | None = Field(None, description="cut texts that are too long (default), or reject them")
    truncation: bool | None = Field(None, description="what Voyage's clients call `truncate`")
    user: object = None

    @property
    def container(self) -> Container | None:
        """The requested container."""
        return "base64" if self.embedding_type == "base64" else self.encoding_format

    @property
    def dtype(self) -> Dtype:
        """The number format of the vectors."""
        kind = None if self.embedding_type == "base64" else self.embedding_type
        return self.output_dtype or kind or "float32"  # clients decode base64 as float32, even with -fp16

    def options(self, prompts: Mapping[str, str]) -> dict[str, object]:
        """Return the options of Service.encode. prompts: the model's prompts."""
        return {
            "normalize": self.normalized is not False,
            "dimensions": self.dimensions,
            "truncate": "error" if self.truncate is False or self.truncation is False else "right",
            "prompt_name": prompt_for(self.task or self.input_type, prompts),
        }


class Embedding(TypedDict):
    object: Literal["embedding"]
    embedding: Annotated[list[float] | str | None, Field(description="numbers, base64 of them, or null")]
    index: int


class Embeddings(TypedDict):
    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: TokenUsage
    id: str
    created: int
    truncated: NotRequired[Annotated[list[int], Field(description="the inputs that were cut")]]
    errors: NotRequired[FailedTexts]


class ModelEntry(TypedDict):
    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]  # pydantic reads it; see extra_model_fields

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(TypedDict):
    object: Literal["list"]
    data: list[ModelEntry]


_EXAMPLES = {
    "texts": {"input": ["hello world", "one two three"], "model": "any"},
    "base64": {"input": "hello world", "model": "any", "encoding_format": "base64"},
    "int8": {"input": "hello world", "model": "any", "output_dtype": "int8"},
    "null for a bad text": {"input": ["hello world", ""], "model": "any", "on_error": "null"},
    "late chunking, as in Jina's API": {
        "input": ["hello world", "one two three"],
        "model": "any",
        "late_chunking": True,
    },
}


async def _no_fields(_: Service) -> Mapping[str, object]:
    return {}


def add_routes(
    router: APIRouter,
    service: Service,
    *,
    extra_model_fields: Callable[[Service], Awaitable[Mapping[str, object]]] = _no_fields,
) -> None:
    """Add the routes to the router.

    extra_model_fields: returns the fields that another dialect adds to an entry of /v1/models.
    """

    async def models(context: RequestContext) -> Response:
        """Return the one model that is served."""
        return await context.json({"object": "list", "data": [await entry(service.model_name)]})

    async def model(context: RequestContext) -> Response:
        """Return the model that is served, whatever the name: requests may have any name too."""
        return await context.json(await entry(context.request.path_params["name"]))

    async def entry(name: str) -> dict[str, object]:
        fields = {"id": name, "object": "model", "created": 0, "owned_by": "bert-embedding-service"}
        return {**fields, **await extra_model_fields(service)}

    paths = ["/v1/embeddings", "/embeddings", _AZURE]
    docs = Docs(Embeddings, _EXAMPLES, "arrays", needs=["embed"])
    OPENAI.add_routes(router, service, paths, embeddings, body=EmbeddingsBody, docs=docs)
    OPENAI.add_routes(router, service, ["/v1/models", "/models"], models, docs=Docs(ModelList))
    paths = ["/v1/models/{name:path}", "/models/{name:path}"]
    OPENAI.add_routes(router, service, paths, model, docs=Docs(ModelEntry))


async def embeddings(context: RequestContext) -> Response:
    """Return a vector of unit length for each input, and the number of tokens."""
    body = await context.body(EmbeddingsBody)
    container = container_for(context.request.headers, body.container)
    is_purposeful = body.task is not None or body.input_type is not None
    options = body.options((await context.service.model()).prompts if is_purposeful else {})
    if body.late_chunking:
        rows, reply = await chunk_vectors(context.service, body.input, Names("input"), **options)
    else:
        rows, reply = await context.service.vectors(body.input, Names("input"), **options)
    vectors = await context.off_loop(convert, rows, body.dtype)
    headers = usage_headers(reply, num_chars(body.input))
    if (response := binary_response(vectors, container, headers)) is not None:
        return response
    data = [
        {"object": "embedding", "embedding": vector, "index": i}
        for i, vector in enumerate(
            context.service.notes.nulled(await context.off_loop(encoded, vectors, container))
        )
    ]
    return await context.json(list_object(context.service, reply, data), headers=headers)
