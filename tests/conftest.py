"""What all tests share: the hub is off, and the demo model is the one in the environment."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """The folder of the demo model."""
    from bert_serving.server.model.demo import find_demo_model

    return find_demo_model()
