"""The blocking and the asyncio client have the same methods. Their channels have the same methods, too."""

from __future__ import annotations

import inspect

import pytest
from bert_serving.client import AsyncBertClient, BertClient
from bert_serving.client.aio_channel import AsyncChannel
from bert_serving.client.channel import Channel


def parameters(function: object) -> list[str]:
    return [str(parameter) for parameter in inspect.signature(function).parameters.values()]  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["__init__", "send", "reply_to", "close"])
def test_both_channels_have_the_same_methods(name: str) -> None:
    assert parameters(getattr(AsyncChannel, name)) == parameters(getattr(Channel, name))


@pytest.mark.parametrize("name", ["encode_tokens", "encode_spans", "ask", "close"])
def test_both_clients_have_the_same_methods(name: str) -> None:
    assert parameters(getattr(AsyncBertClient, name)) == parameters(getattr(BertClient, name))


def test_encode_differs_only_in_the_parameter_blocking() -> None:
    of_blocking = parameters(BertClient.encode)
    of_blocking.remove("blocking: 'bool' = True")
    assert parameters(AsyncBertClient.encode) == of_blocking


def test_only_a_gateway_names_the_flow_of_a_request() -> None:
    of_asyncio = parameters(AsyncBertClient.encode_reply)
    for name in ("flow: 'str | None' = None", "flow_share: 'float | None' = None"):
        of_asyncio.remove(name)
    assert of_asyncio == parameters(BertClient.encode_reply)


def test_the_blocking_client_has_all_public_names_of_the_asyncio_client() -> None:
    public = {name for name in dir(AsyncBertClient) if not name.startswith("_")}
    assert public <= set(dir(BertClient))
