"""An id comes back as it was sent, and only the id is parsed a second time."""

from __future__ import annotations

import json

import orjson
import pytest
from bert_serving.protocol import InvalidRequest
from bert_serving.server.gateway.echo import echo


def echoed(raw: bytes) -> str:
    return orjson.dumps(echo(raw, json.loads(raw)["id"])).decode()


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b'{"id": 1.50, "texts": ["x"]}', "1.50"),
        (b'{"texts": ["x", "\\"id\\": 2.0,"], "id":1e400}', "1e400"),
        (b'{"texts": [{"id": 2.0}], "id" : [ 1.10 , {"id": 3.0} ] }', '[1.10,{"id":3.0}]'),
        (b'{"id": 1.0, "id": 2.00}', "2.00"),
        (b'{"\\u0069d": 1.70, "other": {}}', "1.70"),
        (b'{"a": "\\\\", "id": {"b": "}"}, "c": "\\\\\\""}', '{"b":"}"}'),
        ('{"a": "\u00e9{", "id": [0.10], "z": "\u20ac"}'.encode(), "[0.10]"),
        (b' {"id":-0.0}\n', "-0.0"),
    ],
)
def test_the_id_is_found_wherever_it_is(raw: bytes, said: str) -> None:
    assert echoed(raw) == said


def test_only_the_id_is_parsed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = json.dumps({"texts": [[i] * 10 for i in range(10_000)], "id": 1.5}).encode()
    parsed: list[int] = []
    loads = json.loads

    def counted(text: str, **options: object) -> object:
        parsed.append(len(text))
        return loads(text, **options)

    monkeypatch.setattr(json, "loads", counted)
    assert orjson.dumps(echo(raw, 1.5)) == b"1.5"
    assert sum(parsed) < 100


def test_an_id_may_not_be_a_document() -> None:
    with pytest.raises(InvalidRequest, match="id may have at most 65536 characters"):
        echoed(json.dumps({"id": [0.5] * 100_000}).encode())
