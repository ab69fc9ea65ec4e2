"""Vertex AI's envelope, {"instances": [...], "parameters": {...}} -> {"predictions": [...]}.

Vertex AI's own models for text embeddings have instances {"content", "task_type"}. Text Embeddings Inference puts
its own bodies into the list. It has no route of its own here: TEI's /vertex and /predict lead to it.
"""

from __future__ import annotations

import asyncio

from fastapi import Response
from pydantic import AliasChoices, Field

from ..context import RequestContext
from ..dialect import Handler
from ..errors import Unprocessable
from ..fields import Body, Dimensions, TextsBody
from ..prompts import prompt_for
from ..texts import Names
from ..usage import num_chars, usage_headers


class _Parameters(Body):
    auto_truncate: bool | None = Field(True, validation_alias=AliasChoices("autoTruncate", "auto_truncate"))
    dimensions: Dimensions = Field(
        None, validation_alias=AliasChoices("outputDimensionality", "output_dimensionality")
    )


class _Content(Body):
    content: object
    purpose: str | None = Field(None, validation_alias=AliasChoices("task_type", "taskType"))


class _ContentsBody(TextsBody):
    instances: list[_Content]
    parameters: _Parameters | None = None


class InstancesBody(TextsBody):
    instances: list[object]
    parameters: dict[str, object] | None = None


async def predict_instances(context: RequestContext, handle_body: Handler) -> Response:
    """Return a prediction for each instance. handle_body: answers an instance that is a body of TEI."""
    body = await context.body(InstancesBody)
    if not body.instances:
        raise Unprocessable("instances must not be empty")
    first = body.instances[0]
    if isinstance(first, dict) and "content" in first:
        return await _predict_contents(context)
    contexts = [context.for_part(instance) for instance in body.instances]
    await asyncio.gather(*map(handle_body, contexts))
    return await context.json({"predictions": [each.content for each in contexts]})


async def _predict_contents(context: RequestContext) -> Response:
    """Return Vertex AI's prediction for each text: its vector, number of tokens, and whether it was cut."""
    body = await context.body(_ContentsBody)
    parameters = body.parameters or _Parameters()
    texts = [instance.content for instance in body.instances]
    purposes = {instance.purpose for instance in body.instances}
    if len(purposes) > 1:
        raise Unprocessable("instances must have the same task_type in one request")
    rows, reply = await context.service.vectors(
        texts,
        Names("instances"),
        normalize=True,
        dimensions=parameters.dimensions,
        truncate="error" if parameters.auto_truncate is False else "right",
        prompt_name=prompt_for(purposes.pop(), (await context.service.model()).prompts),
    )
    assert reply.usage is not None, "every request of a gateway asks for the usage"
    truncated = set(reply.truncated)
    predictions = [
        {"embeddings": {"values": row, "statistics": {"token_count": count, "truncated": i in truncated}}}
        for i, (row, count) in enumerate(zip(rows, reply.usage.num_tokens, strict=True))
    ]
    content = {"predictions": context.service.notes.nulled(predictions), **context.service.notes.fields()}
    return await context.json(content, headers=usage_headers(reply, num_chars(texts)))
