"""For all tests: access to the hub is disabled, and tests that share the same servers run in the same process."""

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
