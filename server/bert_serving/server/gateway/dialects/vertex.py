"""Vertex AI's envelope, {"instances": [...], "parameters": {...}} -> {"predictions": [...]}.

Vertex AI's own models for text embeddings have instances {"content", "task_type"}. Text Embeddings Inference puts
its own bodies into the list. It has no route of its own here: TEI's /vertex and /predict lead to it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from bert_serving.protocol import ServingError
from fastapi import Response
from pydantic import AliasChoices, Field

from ..context import PartContext, RequestContext
from ..dialect import Handler
from ..errors import Unprocessable
from ..fields import Body, Dimensions, TextsBody
from ..prompts import prompt_for
from ..texts import Names, TextNotes
from ..usage import num_chars, usage_headers

_AT_ONCE = 16  # instances that are computed at the same time


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
    for start in range(0, len(contexts), _AT_ONCE):
        await _handle_together(contexts, range(start, min(start + _AT_ONCE, len(contexts))), handle_body)
    notes = context.service.notes
    for i, each in enumerate(contexts):
        _add_notes(notes, i, each.service.notes)
    return await context.json({"predictions": [each.content for each in contexts], **notes.fields()})


async def _handle_together(contexts: Sequence[PartContext], indices: range, handle_body: Handler) -> None:
    """Handle some of the instances at the same time. The error of one ends all."""

    async def handle(index: int) -> None:
        try:
            await handle_body(contexts[index])
        except ServingError as exc:
            exc.message = f"instances[{index}]: {exc.message}"
            raise

    tasks = [asyncio.create_task(handle(index)) for index in indices]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def _add_notes(notes: TextNotes, index: int, own: TextNotes) -> None:
    """Add the notes of an instance to those of the whole request. Of its errors, the first is kept."""
    notes.num_dropped += own.num_dropped
    notes.compute_type = own.compute_type or notes.compute_type
    for error in list(own.errors.values())[:1]:
        message = f"instances[{index}]: {error['message']}"
        notes.errors[index] = {"index": index, "code": error["code"], "message": message}


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
