"""For all tests: no access to the hub, no compiling, and tests that share servers run in the same process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.distribution import slowest_files_first

if TYPE_CHECKING:
    from xdist.remote import Producer
    from xdist.scheduler import LoadScopeScheduling

os.environ["HF_HUB_OFFLINE"] = "1"
# Compiling takes up to a minute of both cores. The tests of it set these variables themselves.
os.environ["BERT_SERVING_COMPILE"] = "off"
os.environ["BERT_SERVING_COMPILE_CACHE"] = "/nonexistent/bert-serving-compiled"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling | None:
    """Run tests that share servers in one process if pytest-xdist was started with --dist loadscope."""
    if config.getvalue("dist") != "loadscope":
        return None
    from tests.support.scheduling import SharedServersScheduling

    return SharedServersScheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the slowest files first, which shortens a run in several processes."""
    items.sort(key=lambda item: slowest_files_first(item.path))


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """The folder of the demo model."""
    from bert_serving.server.model.demo import find_demo_model

    return find_demo_model()
