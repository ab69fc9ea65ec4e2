"""A worker may die at any moment, and no accepted request is lost."""

from __future__ import annotations

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import numpy as np
import psutil
from bert_serving.client import BertClient, WorkerFailed

from tests.support.running_server import RunningServer
from tests.support.sentences import numbered
from tests.support.tiny_models import make_model
from tests.support.waiting import HANG_S, wait_until

_PAUSE_S = 35  # a child is silent after 30 s


def test_work_of_a_killed_worker_is_done_by_its_successor() -> None:
    texts = [f"sentence number {i} of a long job" for i in range(1500)]
    with RunningServer("-dtype", "float32") as running, BertClient(**running.wait_ready().ports) as client:
        (pid,) = running.worker_pids()
        expected = client.encode(texts[:50])
        client.encode(texts, blocking=False)
        wait_until(lambda: client.server_status["num_batch"] >= 2)
        os.kill(pid, signal.SIGKILL)
        (rows,) = client.fetch_all()
        assert rows.shape == (1500, 384)
        assert np.abs(rows[:50] - expected).max() < 1e-5
        assert running.worker_pids() != [pid]
        assert "worker-0 died, exit code -9" in running.log
        running.signal(signal.SIGTERM)
        assert running.wait_end() == 0


def test_a_server_whose_workers_are_killed_again_and_again_recovers(tiny: Path) -> None:
    """Three processes in a row are killed before they are ready. A request waits until one of them survives."""
    with RunningServer("-model_dir", tiny, "-cpu") as running, BertClient(**running.wait_ready().ports) as client:
        known = children_of(running)
        (worker,) = running.worker_pids()
        replies: list[np.ndarray] = []
        asking = threading.Thread(target=lambda: replies.append(client.encode(["who answers?"])))
        for number in range(4):
            os.kill(worker, signal.SIGKILL)
            wait_until(lambda: running.log.count("worker-0 died, exit code -9") > number, lambda: running.log)  # noqa: B023
            if number == 0:
                assert httpx.get(f"{running.url}/ready", timeout=HANG_S).status_code == 503
                asking.start()
            if number < 3:
                wait_until(lambda: children_of(running) - known, lambda: running.log)
                (worker,) = children_of(running) - known
                known.add(worker)
        asking.join(HANG_S)
        assert [rows.shape for rows in replies] == [(1, 64)]
        assert httpx.get(f"{running.url}/ready", timeout=HANG_S).status_code == 200


def children_of(running: RunningServer) -> set[int]:
    return {process.pid for process in psutil.Process(running.process.pid).children()}


def test_a_worker_that_grows_is_replaced_and_no_request_fails(tiny: Path, tmp_path: Path) -> None:
    module, grows = tmp_path / "own.py", tmp_path / "grows"
    module.write_text(_GROWING.format(flag=str(grows)))
    flags = ("-model_dir", tiny, "-cpu", "-model_module", module, "-max_worker_rss", 1024)
    with RunningServer(*flags) as running, BertClient(**running.wait_ready().ports) as client:
        (pid,) = running.worker_pids()
        expected = client.encode(["who answers?"])
        grows.touch()
        while running.worker_pids() == [pid]:
            assert np.abs(client.encode(["who answers?"]) - expected).max() < 1e-5
            with suppress(psutil.NoSuchProcess):  # it may just have been replaced
                if psutil.Process(pid).memory_info().rss > 1100 << 20:
                    grows.unlink(missing_ok=True)  # large enough; and the successor must not grow
        assert np.abs(client.encode(["who answers?"]) - expected).max() < 1e-5
        wait_until(lambda: "worker-0 was replaced" in running.log, lambda: running.log)


#: A module that takes 1 GB a second while a file exists.
_GROWING = """
import pathlib, threading, time

def grow():
    held = []
    while True:
        if pathlib.Path({flag!r}).exists():
            held.append(b"x" * (50 << 20))
        time.sleep(0.05)

threading.Thread(target=grow, daemon=True).start()
"""


def test_a_pause_of_the_whole_server_kills_nobody(tiny: Path) -> None:
    """A pause is longer than the time after which a child is silent. A gateway that pauses alone is replaced."""
    with RunningServer("-model_dir", tiny, "-cpu", "-worker_timeout", 20) as running, ThreadPoolExecutor() as pool:
        pids = running.wait_ready().worker_pids()
        with BertClient(**running.ports) as client, BertClient(**running.ports) as watcher:
            asking = pool.submit(client.encode, numbered("the quick brown fox", 20_000))
            wait_until(lambda: watcher.server_status["open_requests"] > 0)
            os.killpg(running.process.pid, signal.SIGSTOP)
            time.sleep(_PAUSE_S)
            os.killpg(running.process.pid, signal.SIGCONT)
            asking.exception(HANG_S)  # this client may have given up, because the server did not answer
        with BertClient(**running.ports) as client:
            assert client.encode(["the quick brown fox"]).shape == (1, 64)
        assert running.worker_pids() == pids
        assert "does not answer" not in running.log
        (gateway,) = [
            process
            for process in running.family
            if "spawn_main" in " ".join(process.cmdline()) and process.pid not in pids
        ]
        gateway.suspend()
        running.wait_for("gateway does not answer: replacing it")
        wait_until(lambda: running.log.count("HTTP is ready") == 2, lambda: running.log)
        assert httpx.get(f"{running.url}/ready", timeout=HANG_S).status_code == 200
        assert running.worker_pids() == pids


def test_a_hung_worker_is_replaced_and_readiness_tells() -> None:
    with RunningServer("-worker_timeout", "3") as running, BertClient(**running.wait_ready().ports) as client:
        (pid,) = running.worker_pids()
        os.kill(pid, signal.SIGSTOP)
        rows: list[np.ndarray] = []
        asking = threading.Thread(target=lambda: rows.append(client.encode(["who answers?"])))
        asking.start()
        running.wait_for("worker-0 does not answer: replacing it")
        assert httpx.get(f"{running.url}/ready", timeout=HANG_S).status_code == 503
        asking.join(HANG_S)
        assert rows[0].shape == (1, 384)
        assert httpx.get(f"{running.url}/ready", timeout=HANG_S).status_code == 200


def test_a_poisonous_text_fails_alone(tmp_path: Path) -> None:
    """In this model, one word has a NaN vector. The request with this word gets an error, all others get rows."""
    make_model(tmp_path, "bert", poison="lazy")
    with RunningServer("-model_dir", tmp_path) as running, BertClient(**running.wait_ready().ports) as client:
        expected = client.encode(["the quick brown dog"])
        for i in range(40):
            client.encode(["a lazy fox" if i == 17 else "the quick brown dog"] * (i % 3 + 1), blocking=False)
        num_rows = 0
        errors: list[str] = []
        while (results := client.fetch()) and len(errors) < 2:
            try:
                for response in results:
                    assert np.abs(response.embedding - expected).max() < 0.05
                    num_rows += len(response.embedding)
                break
            except WorkerFailed as error:  # raised in place of a result; the loop fetches the other results
                errors.append(str(error))
        assert num_rows == sum(i % 3 + 1 for i in range(40) if i != 17)
        assert len(errors) == 1
        assert "no finite vector" in errors[0]
        assert running.log.count("worker-0 is ready") == 1


def test_two_workers_share_a_job() -> None:
    with RunningServer("-num_worker", "2") as running, BertClient(**running.wait_ready().ports) as client:
        assert len(running.worker_pids()) == 2
        before = client.server_status["num_batch"]
        assert client.encode(numbered("some words to share between them", 600)).shape == (600, 384)
        assert client.server_status["num_batch"] - before >= 2
