"""Repeated texts are computed once: in one request, for two clients at once, and again later with -cache_mb."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from bert_serving.client import BertClient, InvalidRequest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.running_server import RunningServer
from tests.support.tiny_models import make_model
from tests.support.waiting import HANG_S, wait_until

TEXTS = [f"a fox and {number} lazy dogs" for number in range(60)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the model. The last test changes its files."""
    return make_model(tmp_path_factory.mktemp("model"), "bert")


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[RunningServer]:
    """A server with a cache of 1 MiB."""
    with RunningServer("-model_dir", folder, "-dtype", "float32", "-cpu", "-cache_mb", 1) as server:
        yield server.wait_ready()


@pytest.fixture
def client(running: RunningServer) -> Iterator[BertClient]:
    with BertClient(**running.ports) as connected:
        yield connected


class Counts:
    """Tells by how much metrics have grown since the last call."""

    def __init__(self, server: RunningServer) -> None:
        self._url = f"{server.url}/metrics"
        self._last = self.now()

    def now(self) -> dict[str, float]:
        families = text_string_to_metric_families(httpx.get(self._url, timeout=HANG_S).text)
        return {s.name.removeprefix("bert_serving_"): s.value for family in families for s in family.samples}

    def grown(self, *names: str) -> list[float]:
        before, self._last = self._last, self.now()
        return [self._last[name] - before[name] for name in names]


@pytest.fixture
def counts(running: RunningServer) -> Counts:
    return Counts(running)


def test_equal_texts_of_one_request_are_computed_once(client: BertClient, counts: Counts) -> None:
    texts = ["one request", *["again"] * 50, "one request", "alone"]
    rows = client.encode(texts)
    assert counts.grown("texts_total", "shared_texts_total") == [3, 50]
    assert np.array_equal(rows, rows[[0, *[1] * 50, 0, 52]])
    assert len(np.unique(rows, axis=0)) == 3


def test_a_text_is_found_in_the_cache_bit_for_bit(
    running: RunningServer, client: BertClient, counts: Counts
) -> None:
    rows = client.encode(TEXTS)
    assert counts.grown("texts_total", "cache_hits_total", "cache_misses_total") == [60, 0, 60]
    assert np.array_equal(client.encode(TEXTS[::-1]), rows[::-1])
    assert np.array_equal(client.encode(["new", *TEXTS[:5], "newer"])[1:6], rows[:5])
    reply = (
        httpx.post(f"{running.url}/encode", json={"id": 1, "texts": [TEXTS[7]]}, timeout=HANG_S)
        .raise_for_status()
        .json()
    )
    assert np.array_equal(np.float32(reply["result"]), rows[7:8])
    assert counts.grown("texts_total", "cache_hits_total") == [2, 66]


def test_other_options_have_other_vectors(client: BertClient, counts: Counts) -> None:
    rows = client.encode(TEXTS[:3])
    counts.grown()
    assert not np.array_equal(client.encode(TEXTS[:3], pooling_strategy="CLS_TOKEN"), rows)
    assert counts.grown("texts_total") == [3]


def test_vectors_of_tokens_and_errors_are_computed_each_time(client: BertClient, counts: Counts) -> None:
    for _ in range(2):
        client.encode(["tokens"] * 2, pooling_strategy="NONE")
        client.encode_tokens(["tokens"] * 2)
        client.encode_spans(["tokens"] * 2, [[(0, 2)], [(0, 2)]])
        with pytest.raises(InvalidRequest):
            client.encode(["too long " * 600], truncate="error")
    assert counts.grown("texts_total", "shared_texts_total", "cache_hits_total", "cache_misses_total") == [
        12,
        0,
        0,
        2,
    ]


def test_the_cache_never_has_more_bytes_than_its_limit(client: BertClient, counts: Counts) -> None:
    for start in range(0, 6000, 500):
        client.encode([f"text number {number}" for number in range(start, start + 500)])
        assert 0 < counts.now()["cache_bytes"] <= counts.now()["cache_capacity_bytes"] == 1 << 20
    counts.grown()
    client.encode(["text number 5999", "text number 0"])
    assert counts.grown("cache_hits_total", "cache_misses_total") == [1, 1]
    assert counts.now()["cache_texts"] < 6000


def test_a_model_never_gets_the_vectors_of_another_one(
    running: RunningServer, client: BertClient, folder: Path, counts: Counts
) -> None:
    old = client.encode(TEXTS)
    make_model(folder, "bert", seed=1)
    pids = running.worker_pids()
    running.signal(signal.SIGHUP)
    wait_until(lambda: not set(pids) & set(running.worker_pids()), lambda: running.log)
    wait_until(lambda: "worker-0 was replaced" in running.log, lambda: running.log)
    assert counts.now()["cache_texts"] == 0
    new = client.encode(TEXTS)
    assert np.abs(new - old).max() > 0.1
    assert np.array_equal(client.encode(TEXTS), new)


def test_clients_that_send_the_same_texts_at_once_share_vectors(tiny: Path) -> None:
    with RunningServer("-model_dir", tiny, "-cpu") as server:
        server.wait_ready()
        counts, num_rounds = Counts(server), 0

        def send(texts: list[str], found: list[np.ndarray], barrier: threading.Barrier) -> None:
            with BertClient(**server.ports) as client:
                barrier.wait()
                found.append(client.encode(texts))

        def share() -> bool:
            nonlocal num_rounds
            num_rounds += 1
            texts = [f"{num_rounds} {text}" for text in TEXTS * 10]
            found: list[np.ndarray] = []
            barrier = threading.Barrier(2)
            threads = [threading.Thread(target=send, args=(texts, found, barrier)) for _ in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert np.abs(found[0] - found[1]).max() < 1e-3
            computed, shared = counts.grown("texts_total", "shared_texts_total")
            assert computed + shared == 2 * len(texts)
            return computed < 1.5 * len(TEXTS)  # of 60 different texts

        wait_until(share)
        assert counts.now()["cache_texts"] == counts.now()["cache_hits_total"] == 0


def test_a_cache_larger_than_the_other_limits_disconnects_nobody(tmp_path: Path) -> None:
    wide = make_model(tmp_path / "wide", "bert", hidden_size=1024, num_hidden_layers=2)
    limits = ["-memory_mb", 16, "-max_message_mb", 1, "-cache_mb", 64]
    with RunningServer("-model_dir", wide, "-dtype", "float32", "-cpu", *limits) as server:
        with BertClient(**server.wait_ready().ports) as client:
            for start in range(0, 7_200, 400):
                client.encode([f"dog {number}" for number in range(start, start + 400)])
        metrics = httpx.get(f"{server.url}/metrics").text
        (cached,) = (
            float(line.split()[1]) for line in metrics.splitlines() if line.startswith("bert_serving_cache_bytes ")
        )
        assert cached > 28 << 20  # more than -memory_mb and the messages that may be unread
        assert "disconnected all clients" not in server.log
