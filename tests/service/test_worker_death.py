"""A worker may die at any instant; no accepted request is lost."""

from __future__ import annotations

import os
import signal
import threading
import time

import httpx
import numpy as np
from bert_serving.client import BertClient
from running_server import RunningServer


def test_work_of_a_killed_worker_is_done_by_its_successor() -> None:
    texts = [f"sentence number {i} of a long job" for i in range(3000)]
    with RunningServer("-dtype", "float32") as running, BertClient(**running.wait_ready().ports) as client:
        (pid,) = running.worker_pids()
        expected = client.encode(texts[:50])
        client.encode(texts, blocking=False)
        while client.server_status["num_batch"] < 4:
            time.sleep(0.01)
        os.kill(pid, signal.SIGKILL)
        (rows,) = client.fetch_all()
        assert rows.shape == (3000, 384)
        assert np.abs(rows[:50] - expected).max() < 1e-5
        assert running.worker_pids() != [pid]
        assert "worker-0 died, exit code -9" in running.log
        running.signal(signal.SIGTERM)
        assert running.wait_end() == 0


def test_a_hung_worker_is_replaced_and_readiness_tells() -> None:
    with RunningServer("-worker_timeout", "3") as running, BertClient(**running.wait_ready().ports) as client:
        (pid,) = running.worker_pids()
        os.kill(pid, signal.SIGSTOP)
        rows: list[np.ndarray] = []
        asking = threading.Thread(target=lambda: rows.append(client.encode(["who answers?"])))
        asking.start()
        running.wait_for("worker-0 does not answer: replacing it", 15)
        assert httpx.get(f"{running.url}/ready").status_code == 503
        asking.join(60)
        assert rows[0].shape == (1, 384)
        assert httpx.get(f"{running.url}/ready").status_code == 200


def test_two_workers_share_a_job() -> None:
    with RunningServer("-num_worker", "2") as running, BertClient(**running.wait_ready().ports) as client:
        assert len(running.worker_pids()) == 2
        before = client.server_status["num_batch"]
        assert client.encode(["some words to share between them"] * 2000).shape == (2000, 384)
        assert client.server_status["num_batch"] - before >= 2
        threads = {int(p.num_threads()) for p in running.family}
        assert threads
