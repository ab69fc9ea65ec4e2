"""The servers that the clients call, and the expected vectors. All servers compute in float32 on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpus import DOCUMENTS, KEY, QUERY, TEXTS
from environments import python_of

from tests.support.running_server import RunningServer
from tests.support.tiny_models import make_classifier, make_masked
from tests.support.waiting import HANG_S

_DRIVERS = Path(__file__).parent / "drivers"
_FLAGS = ["-cpu", "-dtype", "float32"]

Drive = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def server() -> Iterator[RunningServer]:
    """A server with the demo model that requires KEY."""
    with RunningServer(*_FLAGS, "-api_key", KEY) as running:
        yield running.wait_ready()


@pytest.fixture(scope="session")
def open_server() -> Iterator[RunningServer]:
    """A server with the demo model that requires no key, for clients that cannot send a key."""
    with RunningServer(*_FLAGS) as running:
        yield running.wait_ready()


@pytest.fixture(scope="session")
def ranker_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_classifier(tmp_path_factory.mktemp("ranker"), "bert", num_labels=1)


@pytest.fixture(scope="session")
def ranker(ranker_folder: Path) -> Iterator[RunningServer]:
    """A server with a random cross-encoder."""
    with RunningServer(*_FLAGS, "-model_dir", ranker_folder) as running:
        yield running.wait_ready()


@pytest.fixture(scope="session")
def sparse_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_masked(tmp_path_factory.mktemp("sparse"), "bert")


@pytest.fixture(scope="session")
def sparse_server(sparse_folder: Path) -> Iterator[RunningServer]:
    """A server with a random SPLADE model."""
    with RunningServer(*_FLAGS, "-model_dir", sparse_folder, "-pooling_strategy", "SPLADE") as running:
        yield running.wait_ready()


@pytest.fixture(scope="session")
def reference(demo_model: Path) -> Any:
    """The demo model in sentence-transformers."""
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(demo_model), device="cpu")


@pytest.fixture(scope="session")
def expected(reference: Any) -> np.ndarray:
    """The vectors that sentence-transformers gives for TEXTS."""
    return np.asarray(reference.encode(TEXTS))


@pytest.fixture(scope="session")
def expected_ranking(ranker_folder: Path) -> list[tuple[int, float]]:
    """The indices of DOCUMENTS and their scores in sentence-transformers, the best first."""
    from sentence_transformers import CrossEncoder

    scores = CrossEncoder(str(ranker_folder), device="cpu").predict([(QUERY, text) for text in DOCUMENTS])
    ranking = sorted(enumerate(scores.tolist()), key=lambda found: -found[1])
    gaps = -np.diff([score for _, score in ranking])
    assert gaps.min() > 0.001, ranking  # otherwise the order would depend on rounding
    return ranking


@pytest.fixture
def drive(server: RunningServer, tmp_path: Path) -> Drive:
    """A function that runs a driver in an environment and returns the answers that the driver prints."""

    def run(driver: str, environment: str, **servers: RunningServer) -> dict[str, Any]:
        urls = {name: each.url for name, each in servers.items()}
        told = {"url": server.url, "key": KEY, "texts": TEXTS, "query": QUERY, "documents": DOCUMENTS, **urls}
        done = subprocess.run(
            [python_of(environment), _DRIVERS / f"drive_{driver}.py"],
            input=json.dumps(told),
            capture_output=True,
            text=True,
            timeout=HANG_S,
            cwd=tmp_path,
            # The driver gets no proxies and no tokens. It also gets no HF_HUB_OFFLINE, because huggingface_hub
            # sends no request if this variable is set.
            env={"PATH": os.defpath, "HOME": str(tmp_path), "LANG": "C.UTF-8"},
            check=False,
        )
        assert done.returncode == 0, done.stderr
        printed: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return printed

    return run
