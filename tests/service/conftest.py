from __future__ import annotations

from collections.abc import Iterator

import pytest
from bert_serving.client import BertClient
from running_server import RunningServer


@pytest.fixture(scope="session")
def server() -> Iterator[RunningServer]:
    """One server with the demo model for all tests that do it no harm."""
    with RunningServer() as running:
        yield running.wait_ready()


@pytest.fixture
def client(server: RunningServer) -> Iterator[BertClient]:
    with BertClient(**server.ports) as connected:
        yield connected
