"""Vertex AI's envelope, {"instances": [...], "parameters": {...}} -> {"predictions": [...]}.

Vertex AI's own models for text embeddings have instances {"content", "task_type"}. Text Embeddings Inference puts
its own bodies into the list. It has no route of its own here: TEI's /vertex and /predict lead to it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Annotated

from bert_serving.protocol import PayloadTooLarge, ServingError
from fastapi import Response
from pydantic import AliasChoices, Field

from ..context import NO_CONTENT, PartContext, RequestContext
from ..dialect import Handler
from ..errors import NoTexts, Unprocessable
from ..fields import Body, Dimensions, TextsBody
from ..prompts import prompt_for
from ..texts import Names, TextNotes
from ..usage import num_chars, usage_headers

_AT_ONCE = 16  # bodies that are computed at the same time
_MAX_BODIES = 1024


class _Parameters(Body):
    auto_truncate: bool | None = Field(True, validation_alias=AliasChoices("autoTruncate", "auto_truncate"))
    dimensions: Dimensions = Field(
        None, validation_alias=AliasChoices("outputDimensionality", "output_dimensionality")
    )


class _Content(Body):
    content: object
    purpose: str | None = Field(None, validation_alias=AliasChoices("task_type", "taskType"))


class _ContentsBody(TextsBody):
    instances: Annotated[list[_Content], Field(fail_fast=True)]
    parameters: _Parameters | None = None


class InstancesBody(TextsBody):
    instances: list[object]
    parameters: dict[str, object] | None = None


async def predict_instances(context: RequestContext, handle_body: Handler) -> Response:
    """Return a prediction for each instance. handle_body: answers an instance that is a body of TEI."""
    body = await context.body(InstancesBody)
    if not body.instances:
        raise NoTexts("instances must not be empty")
    first = body.instances[0]
    if isinstance(first, dict) and "content" in first:
        return await _predict_contents(context)
    if len(body.instances) > _MAX_BODIES:
        raise PayloadTooLarge(f"instances may have at most {_MAX_BODIES} bodies, got {len(body.instances)}")
    contents, notes = [], context.service.notes
    for start in range(0, len(body.instances), _AT_ONCE):
        bodies = body.instances[start : start + _AT_ONCE]
        parts = {i: context.for_part(each) for i, each in enumerate(bodies, start)}
        await _handle_together(parts, handle_body)
        for i, part in parts.items():
            contents.append(part.content)
            _add_notes(notes, i, part.service.notes)
    return await context.json({"predictions": contents, **notes.fields()})


async def _handle_together(parts: Mapping[int, PartContext], handle_body: Handler) -> None:
    """Handle some instances at the same time. The error of one ends all. parts: by index of the instance."""

    async def handle(index: int, part: PartContext) -> None:
        try:
            await handle_body(part)
            if part.content is NO_CONTENT:
                raise Unprocessable("raw and npy are not available in an instance: ask for JSON or base64")
        except ServingError as exc:
            exc.message = f"instances[{index}]: {exc.message}"
            raise

    tasks = [asyncio.create_task(handle(index, part)) for index, part in parts.items()]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def _add_notes(notes: TextNotes, index: int, own: TextNotes) -> None:
    """Add the notes of an instance to those of the whole request."""
    notes.num_dropped += own.num_dropped
    notes.compute_type = own.compute_type or notes.compute_type
    for error in own.errors.values():
        message = f"instances[{index}], text {error['index']}: {error['message']}"
        notes.errors[len(notes.errors)] = {"index": index, "code": error["code"], "message": message}


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
