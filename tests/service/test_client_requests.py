"""Requests of third-party clients that differ from the documentation of their dialect get the right replies."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.support.running_server import RunningServer
from tests.support.waiting import HANG_S


@pytest.mark.parametrize(
    ("body", "dimension"),
    [
        # infinity_client 0.0.78 sends 0 if its caller gives no dimensions
        ({"input": ["x"], "model": "default/not-specified", "dimensions": 0, "modality": "text"}, 384),
        # litellm 1.106.2 sends this for infinity/<model> with dimensions=64
        ({"input": ["x"], "model": "demo", "output_dimension": 64}, 64),
        ({"input": ["x"], "model": "demo", "dimensions": 64, "user": None}, 64),
    ],
)
def test_dimensions_are_read_from_the_fields_that_infinitys_clients_send(
    server: RunningServer, body: dict[str, Any], dimension: int
) -> None:
    reply = httpx.post(f"{server.url}/embeddings", json=body, timeout=HANG_S)
    assert reply.status_code == 200, reply.text
    assert len(reply.json()["data"][0]["embedding"]) == dimension


def test_models_are_owned_by_infinity_as_infinity_client_requires(server: RunningServer) -> None:
    (model,) = httpx.get(f"{server.url}/models", timeout=HANG_S).json()["data"]
    assert model["owned_by"] == "infinity"
