"""What the tests of the service share: running servers, clients of them, and the old client."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from bert_serving.client import BertClient

from tests.support.old_client import install_old_client
from tests.support.running_server import RunningServer
from tests.support.zoo import Zoo, running_zoo


@pytest.fixture(scope="session")
def server() -> Iterator[RunningServer]:
    """One server with the demo model for all tests that do it no harm."""
    with RunningServer() as running:
        yield running.wait_ready()


@pytest.fixture
def client(server: RunningServer) -> Iterator[BertClient]:
    with BertClient(**server.ports) as connected:
        yield connected


@pytest.fixture(scope="session")
def old_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the old client."""
    return install_old_client(tmp_path_factory.mktemp("old-client"))


@pytest.fixture(scope="session")
def zoo(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zoo]:
    with running_zoo(tmp_path_factory.mktemp("zoo"), demo_model) as running:
        yield running
