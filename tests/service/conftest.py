"""Fixtures that the service tests share: running servers, a client, and the old client."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from bert_serving.client import BertClient

from tests.support.made_once import made_once
from tests.support.model_servers import ModelServers, running_model_servers
from tests.support.old_client import install_old_client, python_of
from tests.support.running_server import RunningServer
from tests.support.tiny_models import make_model


@pytest.fixture(scope="session")
def server() -> Iterator[RunningServer]:
    """A server with the demo model, for all tests that do not stop or overload it."""
    with RunningServer() as running:
        yield running.wait_ready()


@pytest.fixture
def client(server: RunningServer) -> Iterator[BertClient]:
    """A connected client of the server."""
    with BertClient(**server.ports) as connected:
        yield connected


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny BERT, for tests that start a server and need few or no vectors."""
    return make_model(tmp_path_factory.mktemp("tiny"), "bert")


@pytest.fixture(scope="session")
def old_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the old client."""
    return python_of(made_once(tmp_path_factory, "old-client", install_old_client))


@pytest.fixture(scope="session")
def model_servers(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServers]:
    """One server for each kind of model."""
    with running_model_servers(tmp_path_factory.mktemp("model-servers"), demo_model) as running:
        yield running
