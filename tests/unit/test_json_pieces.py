"""A large value is written in pieces, and the pieces together are the JSON of the value."""

from __future__ import annotations

import asyncio
import gzip
from typing import Any

import numpy as np
import orjson
import pytest
from bert_serving.server.gateway.json_pieces import dump, is_small, json_pieces
from bert_serving.server.gateway.responses import PiecesResponse

ROWS = np.random.default_rng(0).normal(size=(3000, 100)).astype(np.float32)


@pytest.mark.parametrize(
    "value",
    [
        ROWS,
        ROWS.reshape(-1),
        ROWS[:30].reshape(3, 10, 100),
        {"id": orjson.Fragment(b"1e400"), "result": ROWS, "status": 200},
        {"data": [{"embedding": row, "index": i} for i, row in enumerate(ROWS)]},
        [[{"text": f"token {i}", "id": i}] * 3 for i in range(5000)],
        {"texts": ["x" * 1000] * 1000, 'a "key"': None},
        ROWS[:0],
        {},
        [],
        "text",
    ],
    ids=["rows", "flat", "cube", "reply", "list", "tokens", "texts", "no rows", "no fields", "no items", "text"],
)
def test_the_pieces_are_the_json_of_the_value(value: object) -> None:
    pieces = list(json_pieces(value))
    assert b"".join(pieces) == dump(value)
    if not is_small(value):
        assert len(pieces) > 1
        assert max(map(len, pieces)) < 1 << 20


def test_an_iterator_is_written_as_an_array_without_being_read_ahead() -> None:
    taken: list[int] = []

    def items() -> Any:
        for i in range(100):
            taken.append(i)
            yield ["x" * 10_000]

    pieces = json_pieces(items())
    first = next(pieces)
    assert len(taken) < 50
    assert orjson.loads(first + b"".join(pieces)) == [["x" * 10_000]] * 100


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_response_in_pieces_arrives_whole(compress: bool, version: str) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    response = PiecesResponse(json_pieces(ROWS), 200, {"x-total-time": "1"}, gzip=compress)
    asyncio.run(response({"type": "http", "http_version": version}, None, send))
    body = b"".join(message["body"] for message in sent[1:])
    headers = dict(sent[0]["headers"])
    assert (gzip.decompress(body) if compress else body) == dump(ROWS)
    assert headers[b"content-type"] == b"application/json"
    assert headers.get(b"content-length") == (str(len(body)).encode() if version == "1.0" else None)
    assert (b"content-encoding" in headers) is compress
    assert [message["more_body"] for message in sent[1:]] == [True] * (len(sent) - 2) + [False]
