"""Requests of many clients share batches, and a small request does not wait for a large one to end."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np
from bert_serving.client import BertClient

from tests.support.running_server import RunningServer
from tests.support.waiting import wait_until

NUM_CLIENTS = 16
NUM_REQUESTS = 100
LARGE = 80 * 256


def test_single_sentences_that_wait_together_are_computed_together(server: RunningServer) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(BertClient(**server.ports)) for _ in range(NUM_CLIENTS)]
        before = clients[0].server_status["num_batch"]
        with server.paused_workers():
            for i, client in enumerate(clients):
                client.encode([f"client {i} waits"], blocking=False)
            wait_until(lambda: clients[0].server_status["open_requests"] == NUM_CLIENTS)
        for client in clients:
            (rows,) = client.fetch_all() or []
            assert rows.shape == (1, 384)
        # The first texts were sent at once, in two batches. The others waited until the worker took the next one.
        assert clients[0].server_status["num_batch"] - before <= 3


def test_single_sentences_of_16_clients_merge_and_never_mix(server: RunningServer) -> None:
    texts = [f"client {c} says {word}" for c in range(NUM_CLIENTS) for word in ("one", "two", "three", "four")]
    with BertClient(**server.ports) as client:
        expected = client.encode(texts).reshape(NUM_CLIENTS, 4, -1)
        before = client.server_status

    def run(c: int) -> int:
        with BertClient(**server.ports) as client:
            wrong = 0
            for i in range(NUM_REQUESTS):
                row = client.encode([texts[c * 4 + i % 4]])[0]
                # Of all expected vectors, that of the same text must be nearest, and equal except for rounding.
                nearest = int(np.argmax(expected.reshape(len(texts), -1) @ row))
                wrong += nearest != c * 4 + i % 4 or float(row @ expected[c, i % 4]) < 0.9999
            return wrong

    with ThreadPoolExecutor(NUM_CLIENTS) as pool:
        assert sum(pool.map(run, range(NUM_CLIENTS))) == 0
    with BertClient(**server.ports) as client:
        after = client.server_status
    num_batches = after["num_batch"] - before["num_batch"]
    num_texts = after["statistic"]["num_total_seq"] - before["statistic"]["num_total_seq"]
    assert num_texts == NUM_CLIENTS * NUM_REQUESTS
    assert num_batches < num_texts


def test_a_large_job_delays_a_single_sentence_by_the_batches_in_flight_only(server: RunningServer) -> None:
    """The delay is counted in batches, not seconds. At most two batches are in flight when a sentence arrives.

    The large job has 80 batches, so it must still be running when the last of the ten single sentences is done.
    """
    done = threading.Event()

    def run_large() -> None:
        with BertClient(**server.ports) as client:
            rows = client.encode([f"sentence {i} of a large job" for i in range(LARGE)])
            assert rows.shape == (LARGE, 384)
        done.set()

    large = threading.Thread(target=run_large)
    with BertClient(**server.ports) as client:
        client.encode(["warm"])
        first = client.server_status["num_batch"]
        large.start()
        wait_until(lambda: client.server_status["num_batch"] >= first + 3)
        waited = []
        for i in range(10):
            before = client.server_status["num_batch"]
            client.encode([f"urgent {i}"])
            # At most 4 batches: 2 in flight, 1 with this text, and 1 that may end before the status arrives.
            waited.append(client.server_status["num_batch"] - before)
            assert not done.is_set()
        # Not all of them, because the server computes more batches while a busy machine pauses this process.
        assert sorted(waited)[6] <= 2 + 1 + 1, waited
    large.join()
    assert done.is_set()


def test_short_texts_pass_a_long_one_that_is_being_computed(server: RunningServer) -> None:
    """The long text has about 30 micro-batches. A short text waits for one or two of them."""
    long_text = "a long text has many words " * 10_000
    done = threading.Event()
    rows = []

    def run_long() -> None:
        with BertClient(**server.ports) as client:
            rows.append(client.encode([long_text], long_text="chunk"))
        done.set()

    long = threading.Thread(target=run_long)
    with BertClient(**server.ports) as client:
        alone = client.encode(["a short text"])
        long.start()
        for _ in range(8):
            assert np.abs(client.encode(["a short text"]) - alone).max() < 1e-5
        assert not done.is_set()
    long.join()
    assert rows[0].shape == (1, 384)
