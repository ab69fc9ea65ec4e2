"""SIGHUP replaces the workers one at a time, and each loads the model's folder as it is now."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from bert_serving.client import BertClient

from tests.support.running_server import RunningServer
from tests.support.tiny_models import make_classifier, make_model
from tests.support.waiting import HANG_S, wait_until

TEXTS = [f"{word} fox {number}" for word in ("the quick", "a lazy", "one brown") for number in range(40)]
_NUM_CLIENTS = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the model. The tests change its files."""
    return make_model(tmp_path_factory.mktemp("model"), "bert")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[RunningServer]:
    """A server with two workers."""
    with RunningServer("-model_dir", folder, "-num_worker", 2, "-dtype", "float32", "-cpu") as running:
        yield running.wait_ready()


def status_of(running: RunningServer) -> dict[str, Any]:
    with BertClient(**running.ports, ignore_all_checks=True) as client:
        return client.server_status


def reload(running: RunningServer) -> None:
    """Send SIGHUP and wait until every worker was replaced."""
    old = set(running.worker_pids())
    running.signal(signal.SIGHUP)
    wait_until(lambda: len(new := set(running.worker_pids())) == len(old) and not new & old, lambda: running.log)


class Caller(threading.Thread):
    """A client that sends the texts again and again. replies: what it got. error: why it stopped too early."""

    def __init__(self, running: RunningServer, is_over: threading.Event) -> None:
        super().__init__()
        self.replies: list[np.ndarray] = []
        self.error: Exception | None = None
        self._running = running
        self._is_over = is_over

    def run(self) -> None:
        try:
            with BertClient(**self._running.ports, retry=False) as client:
                while not self._is_over.is_set():
                    self.replies.append(client.encode(TEXTS))
        except Exception as exc:
            self.error = exc


def test_a_folder_that_cannot_be_loaded_leaves_the_workers_running(server: RunningServer, folder: Path) -> None:
    weights = folder / "model.safetensors"
    kept = weights.read_bytes()
    pids = server.worker_pids()
    with BertClient(**server.ports) as client:
        before = client.encode(TEXTS)
        weights.write_bytes(b"not weights")
        server.signal(signal.SIGHUP)
        server.wait_for("was not replaced, it continues: its successor ended:")
        assert np.abs(client.encode(TEXTS) - before).max() < 1e-4
    weights.write_bytes(kept)
    assert (server.worker_pids(), status_of(server)["ready"]) == (pids, True)
    assert server.log.count("replacing worker-") == 1  # the reload has stopped


def test_a_reload_fails_no_request_and_mixes_no_models(server: RunningServer, folder: Path) -> None:
    """Each reply comes from the old model or from the new one, never from both."""
    is_over = threading.Event()
    callers = [Caller(server, is_over) for _ in range(_NUM_CLIENTS)]
    with BertClient(**server.ports) as client:
        old_model, old = status_of(server)["model"], client.encode(TEXTS)
        for caller in callers:
            caller.start()
        make_model(folder, "bert", seed=1)
        reload(server)
        is_over.set()
        for caller in callers:
            caller.join(HANG_S)
        new_model, new = status_of(server)["model"], client.encode(TEXTS)
    assert [caller.error for caller in callers] == [None] * _NUM_CLIENTS
    assert new_model != old_model
    assert np.abs(old - new).max() > 0.1
    replies = [reply for caller in callers for reply in caller.replies]
    from_old = [bool(np.abs(reply - old).max() < 1e-4) for reply in replies]
    from_new = [bool(np.abs(reply - new).max() < 1e-4) for reply in replies]
    assert all(a != b for a, b in zip(from_old, from_new, strict=True))
    assert any(from_old)
    assert any(from_new)
    assert {worker["fingerprint"] for worker in status_of(server)["workers"]} == {new_model}
    assert "does not answer" not in server.log


def test_a_worker_that_was_started_again_after_a_change_makes_the_others_follow(
    server: RunningServer, folder: Path
) -> None:
    """Without SIGHUP too, vectors of two models never meet: the workers with the older model are replaced."""
    make_model(folder, "bert", seed=2)
    old_model = status_of(server)["model"]
    pids = server.worker_pids()
    os.kill(pids[0], signal.SIGKILL)
    wait_until(lambda: not set(pids) & set(server.worker_pids()), lambda: server.log)
    wait_until(lambda: len(server.worker_pids()) == 2, lambda: server.log)
    status = status_of(server)
    assert {worker["fingerprint"] for worker in status["workers"]} == {status["model"]} != {old_model}


def test_gateways_follow_the_model_and_a_hangup_during_the_start_does_no_harm(tmp_path: Path) -> None:
    make_classifier(tmp_path, "bert", id2label={0: "no", 1: "yes"})
    with RunningServer("-model_dir", tmp_path, "-cpu", "-drain_timeout", 1) as running:
        running.wait_for("worker_timeout = ")
        running.signal(signal.SIGHUP)
        running.wait_ready()
        running.wait_for("worker-0 was replaced")  # the reload begins once the server is ready

        def labels() -> set[str]:
            reply = httpx.post(f"{running.url}/predict", json={"inputs": "a fox"}, timeout=HANG_S)
            return {each["label"] for each in reply.raise_for_status().json()}

        assert labels() == {"no", "yes"}
        make_classifier(tmp_path, "bert", id2label={0: "cat", 1: "dog", 2: "fox"})
        reload(running)
        assert labels() == {"cat", "dog", "fox"}
        running.signal(signal.SIGTERM)
        assert running.wait_end() == 0
        running.assert_nothing_left()
