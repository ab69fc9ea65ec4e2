"""Hugging Face text-embeddings-inference: /embed and its neighbours, and POST / by the shape of the body."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any, NamedTuple

from bert_serving.protocol import (
    EncodeReply,
    InvalidRequest,
    Overloaded,
    PayloadTooLarge,
    ServingError,
    Text,
    TextPair,
    Unauthorized,
    Unavailable,
    WorkerFailed,
    split_rows,
)
from fastapi import APIRouter, Response
from pydantic import BeforeValidator, Field, WithJsonSchema

from .. import rerank
from ..classify import label_scores, normalized
from ..dialect import Call, Dialect, Handler, NotJson, Unprocessable, usage_headers
from ..fields import Body, Dimensions, Side, Texts, num_chars
from ..output import Container, Dtype, binary_response, container_for, convert, encoded
from ..service import Service

_ERROR_TYPES: dict[type[ServingError], tuple[int, str]] = {
    NotJson: (400, "Validation"),
    Unauthorized: (401, "Unauthorized"),
    InvalidRequest: (422, "Validation"),
    Overloaded: (429, "Overloaded"),
    WorkerFailed: (424, "Backend"),
    Unavailable: (503, "Unhealthy"),
}


#: TEI's names of poolings.
_POOLINGS = {"REDUCE_MEAN": "mean", "CLS_TOKEN": "cls", "FIRST_TOKEN": "cls", "LAST_TOKEN": "last-token"}


class _Truncating(Body):
    truncate: bool | None = Field(None, description="cut what is too long (default), or refuse it")
    truncation_direction: Side = None
    prompt_name: str | None = None

    def options(self) -> dict[str, Any]:
        """Return the options of the request that these fields stand for."""
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
    sentences: list[str]


class SimilarityBody(Body):
    inputs: _Sentences
    parameters: _Truncating | None = None


class _Inputs(NamedTuple):
    """What /predict takes. is_single: it is one text or pair, and has one answer."""

    texts: list[Text]
    is_single: bool


def _predict_inputs(value: Any) -> _Inputs:
    """Return texts or pairs. [s1, s2] alone is one pair, as in TEI. Raises ValueError."""
    if isinstance(value, str):
        return _Inputs([value], is_single=True)
    if not isinstance(value, list) or not value:
        raise ValueError("must be a string, a pair of strings, or a list of lists of one or two strings")
    is_single = all(isinstance(item, str) for item in value)
    if is_single and len(value) > 2:
        raise ValueError("must be a list of lists for more than one text: [[text], [text, text_pair], ...]")
    items = [value] if is_single else value
    if not all(isinstance(item, list) and len(item) in (1, 2) for item in items):
        raise ValueError("must hold lists of one or two strings")
    if len({len(item) for item in items}) > 1:
        raise ValueError("must hold either texts or pairs, not both")
    texts = [item[0] if len(item) == 1 else TextPair(text=item[0], text_pair=item[1]) for item in items]
    return _Inputs(texts, is_single)


class PredictBody(_Truncating):
    inputs: Annotated[
        Any, BeforeValidator(_predict_inputs), WithJsonSchema({}), Field(examples=["I like it", [["a", "b"]]])
    ]
    raw_scores: bool | None = False


class TokenizeBody(Body):
    inputs: Annotated[list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]
    add_special_tokens: bool | None = True
    prompt_name: str | None = None


def _lists_of_ids(value: Any) -> Any:
    return [value] if isinstance(value, list) and value and type(value[0]) is int else value


class DecodeBody(Body):
    ids: Annotated[list[list[Annotated[int, Field(ge=0, lt=2**32)]]], BeforeValidator(_lists_of_ids)]
    skip_special_tokens: bool | None = True


class AnyBody(Body):
    """POST /: embed, similarity, rerank or predict, by what is in it and what the model is for."""

    inputs: Any = None
    query: str | None = None
    texts: list[str] | None = None


def add_routes(router: APIRouter, service: Service) -> None:
    """Add the routes to the router."""
    routes: list[tuple[str, Handler, type[Body]]] = [
        ("/embed", embed, EmbedBody),
        ("/embed_all", embed_all, EmbedAllBody),
        ("/embed_sparse", embed_sparse, EmbedAllBody),
        ("/similarity", similarity, SimilarityBody),
        ("/predict", predict, PredictBody),
        ("/tokenize", tokenize, TokenizeBody),
        ("/decode", decode, DecodeBody),
        ("/rerank", rerank.rerank, rerank.RerankBody),
    ]
    for path, handler, body in routes:
        TEI.add(router, service, [path], handler, body=body)
    TEI.add(router, service, ["/", "/invocations"], by_shape, body=AnyBody)
    TEI.add(router, service, ["/info"], info)
    TEI.add(router, service, ["/health", "/ping"], health, is_public=True)


async def embed(call: Call) -> Response:
    """Return a vector for each input."""
    body = await call.body(EmbedBody)
    container = container_for(call.request.headers, body.encoding_format)
    rows, reply = await call.service.vectors(
        body.inputs, normalize=body.normalize is not False, dimensions=body.dimensions, **body.options()
    )
    vectors = convert(rows, body.output_dtype or "float32")
    headers = usage_headers(reply, num_chars(body.inputs))
    response = binary_response(vectors, container, headers)
    return await call.json(encoded(vectors, container), headers=headers) if response is None else response


async def embed_all(call: Call) -> Response:
    """Return a vector for each token of each input, special tokens included."""
    body = await call.body(EmbedAllBody)
    reply = await call.service.encode(
        body.inputs, pooling_strategy="NONE", ragged=True, pairs=False, **body.options()
    )
    return await call.json(by_text(reply), headers=usage_headers(reply, num_chars(body.inputs)))


async def embed_sparse(call: Call) -> Response:
    """Return for each input the terms of the vocabulary that it has, and how much of each."""
    body = await call.body(EmbedAllBody)
    reply = await call.service.encode(
        body.inputs, pooling_strategy="SPLADE", ragged=True, pairs=False, **body.options()
    )
    found = [[{"index": int(i), "value": float(value)} for i, value in rows] for rows in by_text(reply)]
    return await call.json(found, headers=usage_headers(reply, num_chars(body.inputs)))


async def similarity(call: Call) -> Response:
    """Return the cosine of the source sentence with each of the sentences."""
    body = await call.body(SimilarityBody)
    texts = [body.inputs.source_sentence, *body.inputs.sentences]
    if len(texts) == 1:
        raise Unprocessable("inputs.sentences must not be empty")
    options = {} if body.parameters is None else body.parameters.options()
    rows, reply = await call.service.vectors(texts, normalize=True, **options)
    return await call.json(rows[1:] @ rows[0], headers=usage_headers(reply, num_chars(texts)))


async def predict(call: Call) -> Response:
    """Return the labels of each input with their scores, the best first."""
    body = await call.body(PredictBody)
    model = await call.service.model()
    texts, is_single = body.inputs
    logits, reply = await call.service.vectors(texts, pooling_strategy="LOGITS", **body.options())
    found = label_scores(logits if body.raw_scores else normalized(logits), model.labels)
    return await call.json(found[0] if is_single else found, headers=usage_headers(reply, num_chars(texts)))


async def tokenize(call: Call) -> Response:
    """Return the tokens of each input; start and stop count characters."""
    body = await call.body(TokenizeBody)
    prompts = (await call.service.model()).prompts
    if body.prompt_name is not None and body.prompt_name not in prompts:
        known = f"it has {', '.join(prompts) or 'none'}"
        raise Unprocessable(f"prompt_name must be one of the model's prompts; {known}, got {body.prompt_name!r}")
    texts = [prompts.get(body.prompt_name or "", "") + text for text in body.inputs]
    tokenizer = await call.service.tokenizer()
    encodings = await asyncio.to_thread(
        tokenizer.encode_batch, texts, add_special_tokens=body.add_special_tokens is not False
    )
    return await call.json([_tokens(text, encoding) for text, encoding in zip(texts, encodings, strict=True)])


async def decode(call: Call) -> Response:
    """Return the text of each list of token ids."""
    body = await call.body(DecodeBody)
    tokenizer = await call.service.tokenizer()
    size = tokenizer.get_vocab_size()
    if foreign := [i for ids in body.ids for i in ids if i >= size]:
        raise Unprocessable(f"token id {foreign[0]} is not in this model's vocabulary of {size}")
    skip = body.skip_special_tokens is not False
    return await call.json(await asyncio.to_thread(tokenizer.decode_batch, body.ids, skip_special_tokens=skip))


async def by_shape(call: Call) -> Response:
    """Embed, compare, rerank or classify, by the shape of the body and the kind of the model."""
    body = await call.body(AnyBody)
    if isinstance(body.inputs, dict):
        return await similarity(call)
    if body.query is not None:
        return await rerank.rerank(call)
    kind = (await call.service.model()).kind
    if kind in ("classifier", "reranker"):
        return await predict(call)
    return await (embed_sparse(call) if kind == "splade" else embed(call))


async def info(call: Call) -> Response:
    """Return what is served, and its limits."""
    model = await call.service.model()
    config = model.config
    ids = {str(i): label for i, label in enumerate(model.labels)}
    heads = {"id2label": ids, "label2id": {label: int(i) for i, label in ids.items()}}
    kinds = {"classifier": {"classifier": heads}, "reranker": {"reranker": heads}}
    pooling = "+".join(_POOLINGS.get(name, name.lower()) for name in config["poolings"])
    return await call.json(
        {
            "model_id": config["model_dir"],
            "model_sha": config["revision"],
            "model_dtype": config["dtype"],
            "served_model_name": call.service.model_name,
            "model_type": kinds.get(model.kind, {"embedding": {"pooling": pooling}}),
            "max_concurrent_requests": config["queue_capacity"],
            "max_input_length": config["max_seq_len"],
            "max_batch_tokens": config["max_batch_tokens"],
            "max_batch_requests": config["max_batch_size"],
            "max_client_batch_size": config["queue_capacity"],
            "auto_truncate": True,
            "tokenization_workers": config["num_worker"],
            "version": config["version"],
            "sha": None,
            "docker_label": None,
            "dimension": config["dimension"],
            "parity": config["parity"],
            "prompts": model.prompts,
        }
    )


async def health(call: Call) -> Response:
    """Whether every worker has computed something lately; 503 if not."""
    status = await call.service.status()
    if not status["ready"]:
        raise Unavailable("not every worker is ready")
    return await call.json({"status": "ready", "unix": time.time()})  # the time is for Infinity's clients


def by_text(reply: EncodeReply) -> list[Any]:
    """Return the rows of each text."""
    assert reply.counts is not None, "they were asked for"
    return split_rows(reply.rows, reply.counts)


def _tokens(text: str, encoding: Any) -> list[dict[str, Any]]:
    found = []
    columns = (encoding.ids, encoding.tokens, encoding.offsets, encoding.special_tokens_mask)
    for i, token, (start, stop), is_special in zip(*columns, strict=True):
        where = {"start": None, "stop": None} if is_special else {"start": start, "stop": stop}
        found.append(
            {"id": i, "text": token if is_special else text[start:stop], "special": bool(is_special), **where}
        )
    return found


def _error(error: ServingError) -> tuple[int, Any]:
    if isinstance(error, PayloadTooLarge):
        return error.http_status, {"error": error.message, "error_type": "Validation"}
    by_class = ((status, kind) for cls, (status, kind) in _ERROR_TYPES.items() if isinstance(error, cls))
    status, kind = next(by_class, (error.http_status, "Backend"))
    return status, {"error": error.message, "error_type": kind}


TEI = Dialect("Text Embeddings Inference", _error)
