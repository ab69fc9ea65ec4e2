"""Handlers that use the model's tokenizer: TEI's /tokenize and /decode."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

from bert_serving.protocol import PayloadTooLarge, shortened
from fastapi import Response
from pydantic import BeforeValidator, Field
from typing_extensions import TypedDict

from .context import RequestContext
from .errors import Unprocessable
from .fields import Body

if TYPE_CHECKING:
    from tokenizers import Encoding

_ENCODED_BYTES = 100  # of a token in the tokenizer's result
_TOKEN_BYTES = 400  # of a token's description
_MAX_SMALL_TOKENS = 256  # more tokens than this are described while the response is sent


class TokenizeBody(Body):
    inputs: Annotated[
        list[str],
        Field(fail_fast=True),
        BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
    ]
    add_special_tokens: bool | None = True
    prompt_name: str | None = None


def _lists_of_ids(value: object) -> object:
    return [value] if isinstance(value, list) and value and type(value[0]) is int else value


_Ids = Annotated[list[Annotated[int, Field(ge=0, lt=2**32)]], Field(fail_fast=True)]


class DecodeBody(Body):
    ids: Annotated[list[_Ids], Field(fail_fast=True), BeforeValidator(_lists_of_ids)]
    skip_special_tokens: bool | None = True


class Token(TypedDict):
    """A token. start and stop are positions in characters; a special token has none."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


async def tokenize(context: RequestContext) -> Response:
    """Return the tokens of each input. start and stop are positions in characters."""
    body = await context.body(TokenizeBody)
    prompts = (await context.service.model()).prompts
    if body.prompt_name is not None and body.prompt_name not in prompts:
        known = f"it has {', '.join(prompts) or 'none'}"
        raise Unprocessable(
            f"prompt_name must be one of the model's prompts; {known}, got {shortened(body.prompt_name)}"
        )
    prompt = prompts.get(body.prompt_name or "", "")
    _check_size(context, sum(map(len, body.inputs)) + len(body.inputs) * (len(prompt) + 1), "characters")
    texts = [prompt + text for text in body.inputs]
    # A character is at most four tokens, one for each of its bytes; and special tokens are added to each text.
    context.hold(4 * (sum(map(len, texts)) + len(texts)) * _ENCODED_BYTES)
    tokenizer = await context.service.tokenizer()
    encodings = await asyncio.to_thread(
        tokenizer.encode_batch, texts, add_special_tokens=body.add_special_tokens is not False
    )
    context.hold(max(map(len, encodings), default=0) * _TOKEN_BYTES)  # one text is described at a time
    tokens = map(_tokens, texts, encodings)
    is_small = sum(map(len, encodings)) <= _MAX_SMALL_TOKENS
    return await context.json(list(tokens) if is_small else tokens)


async def decode(context: RequestContext) -> Response:
    """Return the text of each list of token ids."""
    body = await context.body(DecodeBody)
    _check_size(context, sum(map(len, body.ids)) + len(body.ids), "ids")
    tokenizer = await context.service.tokenizer()
    size = tokenizer.get_vocab_size()
    if unknown := [largest for ids in body.ids if (largest := max(ids, default=0)) >= size]:
        raise Unprocessable(f"token id {unknown[0]} is not in this model's vocabulary of {size}")
    skip = body.skip_special_tokens is not False
    return await context.json(await asyncio.to_thread(tokenizer.decode_batch, body.ids, skip_special_tokens=skip))


def _check_size(context: RequestContext, size: int, unit: str) -> None:
    """Raise PayloadTooLarge if a request has too much for the tokenizer. size: with one more for each text."""
    most = context.service.limits.max_tokenize_chars
    if size > most:
        raise PayloadTooLarge(f"this route accepts at most {most} {unit} in one request, got {size}")


def _tokens(text: str, encoding: Encoding) -> list[dict[str, object]]:
    tokens: list[dict[str, object]] = []
    columns = (encoding.ids, encoding.tokens, encoding.offsets, encoding.special_tokens_mask)
    for i, token, (start, stop), is_special in zip(*columns, strict=True):
        where = {"start": None, "stop": None} if is_special else {"start": start, "stop": stop}
        tokens.append(
            {"id": i, "text": token if is_special else text[start:stop], "special": bool(is_special), **where}
        )
    return tokens
