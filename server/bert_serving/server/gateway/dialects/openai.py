"""OpenAI's embeddings API, which most clients use: POST /v1/embeddings, GET /v1/models, GET /v1/models/NAME.

Azure's clients have the same bodies at another path, and send the key as `api-key`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated

from fastapi import APIRouter, Response
from pydantic import AliasChoices, BeforeValidator, Field

from ..context import RequestContext
from ..dialect import Dialect
from ..fields import Body, Dimensions, Texts
from ..openai_format import describe_error, list_object
from ..output import Container, Dtype, binary_response, container_for, convert, encoded
from ..service import Service
from ..usage import num_chars, usage_headers

OPENAI = Dialect("OpenAI", describe_error)

_AZURE = "/openai/deployments/{deployment}/embeddings"


class EmbeddingsBody(Body):
    input: Texts
    model: object = None
    encoding_format: Container | None = None
    output_dtype: Dtype | None = None
    # Infinity's client sends 0 to request all components. LiteLLM sends output_dimension to Infinity servers.
    dimensions: Annotated[Dimensions, BeforeValidator(lambda value: None if value == 0 else value)] = Field(
        None, validation_alias=AliasChoices("dimensions", "output_dimension")
    )
    user: object = None


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

    OPENAI.add_routes(router, service, ["/v1/embeddings", "/embeddings", _AZURE], embeddings, body=EmbeddingsBody)
    OPENAI.add_routes(router, service, ["/v1/models", "/models"], models)
    OPENAI.add_routes(router, service, ["/v1/models/{name:path}", "/models/{name:path}"], model)


async def embeddings(context: RequestContext) -> Response:
    """Return a vector of unit length for each input, and the number of tokens."""
    body = await context.body(EmbeddingsBody)
    container = container_for(context.request.headers, body.encoding_format)
    rows, reply = await context.service.vectors(body.input, normalize=True, dimensions=body.dimensions)
    dtype = body.output_dtype or "float32"  # clients decode base64 as float32, even with -fp16
    vectors = await context.off_loop(convert, rows, dtype)
    headers = usage_headers(reply, num_chars(body.input))
    if (response := binary_response(vectors, container, headers)) is not None:
        return response
    data = [
        {"object": "embedding", "embedding": vector, "index": i}
        for i, vector in enumerate(await context.off_loop(encoded, vectors, container))
    ]
    return await context.json(list_object(context.service, reply, data), headers=headers)
