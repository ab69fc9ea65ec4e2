"""The three clients work with a real server."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
import zmq
from bert_serving.client import (
    AsyncBertClient,
    BertClient,
    ConcurrentBertClient,
    InvalidRequest,
    Overloaded,
)

from tests.support.cutting_proxy import Proxy
from tests.support.running_server import RunningServer, command, free_ports
from tests.support.sentences import numbered
from tests.support.waiting import HANG_S, wait_until

TEXTS = ["First do it", "then do it right", "then do it better"]


@pytest.fixture(scope="module")
def small_queue_server() -> Iterator[RunningServer]:
    with RunningServer("-queue_capacity", "600", "-flow_share", "1") as running:
        yield running.wait_ready()


@pytest.fixture(scope="module")
def vectors(server: RunningServer) -> np.ndarray:
    with BertClient(**server.ports) as client:
        return client.encode(TEXTS)


def close(a: np.ndarray, b: np.ndarray) -> bool:
    """Return whether both are equal, except for bfloat16 rounding, which depends on the batch."""
    return a.shape == b.shape and bool(np.abs(a - b).max() < 0.01)


def test_encode_returns_unit_rows_that_the_caller_may_change(client: BertClient) -> None:
    rows = client.encode(TEXTS)
    assert (rows.shape, rows.dtype) == ((3, 384), np.float32)
    assert np.abs(np.linalg.norm(rows, axis=1) - 1).max() < 1e-3
    rows += 1


def test_rows_come_back_in_the_callers_order(client: BertClient, vectors: np.ndarray) -> None:
    texts = [TEXTS[i % 3] + " " * (i % 2) for i in range(700)]
    assert close(client.encode(texts), np.stack([vectors[i % 3] for i in range(700)]))


def test_list_output(server: RunningServer, vectors: np.ndarray) -> None:
    with BertClient(**server.ports, output_fmt="list") as client:
        rows = client.encode(TEXTS)
        assert type(rows) is list
        assert type(rows[0][0]) is float
        assert close(np.array(rows), vectors)
        client.encode(TEXTS, blocking=False)
        client.encode(TEXTS, blocking=False)
        assert len(client.fetch_all(concat=True)) == 6


def test_tokenized_texts_and_tokens_in_the_reply(client: BertClient, vectors: np.ndarray) -> None:
    rows, tokens = client.encode([["first", "do", "it"], ["hello"]], is_tokenized=True, show_tokens=True)
    assert close(rows[:1], vectors[:1])
    assert tokens == [["[CLS]", "first", "do", "it", "[SEP]"], ["[CLS]", "hello", "[SEP]"]]


def test_pairs_and_ids_are_encoded(client: BertClient) -> None:
    rows = client.encode(["first ||| second"])
    assert close(client.encode([{"text": "first", "text_pair": "second"}]), rows)
    ids = [[101, 7592, 102]]  # [CLS] hello [SEP]
    assert client.encode(ids, is_tokenized=True, show_tokens=True)[1][0][-2:] == ["hello", "[SEP]"]


def test_fetch_all_sorts_and_concatenates(client: BertClient, vectors: np.ndarray) -> None:
    assert client.fetch_all() is None
    for i in range(6):
        client.encode([TEXTS[i % 3]] * (i + 1), blocking=False)
    parts = client.fetch_all()
    assert [len(part) for part in parts] == [1, 2, 3, 4, 5, 6]
    assert all(close(part[:1], vectors[i % 3 : i % 3 + 1]) for i, part in enumerate(parts))
    client.encode(TEXTS, blocking=False)
    client.encode(TEXTS[:1], blocking=False)
    assert client.fetch_all(concat=True).shape == (4, 384)


def test_fetch_yields_ids_and_ends_when_nothing_is_pending(client: BertClient) -> None:
    before = client.status["num_request"]
    for _ in range(4):
        client.encode(TEXTS, blocking=False)
    assert client.status["num_pending_request"] > 0
    assert {response.id for response in client.fetch()} == {before + i for i in range(1, 5)}
    assert list(client.fetch()) == []
    assert client.status["num_pending_request"] == 0


def test_a_blocking_call_leaves_the_results_of_earlier_requests_to_fetch(
    client: BertClient, vectors: np.ndarray
) -> None:
    client.encode(TEXTS * 20, blocking=False)
    assert close(client.encode(TEXTS), vectors)
    (rows,) = client.fetch_all()
    assert len(rows) == 60


def test_encode_async_with_a_slow_producer_returns_every_batch(client: BertClient) -> None:
    def slowly() -> Iterator[list[str]]:
        for i in range(4):
            time.sleep(0.15)
            yield [f"batch {i}"] * (i + 1)

    assert sorted(len(r.embedding) for r in client.encode_async(slowly(), delay=0)) == [1, 2, 3, 4]
    assert len(list(client.encode_async(slowly(), max_num_batch=2))) == 2


def test_encode_async_raises_what_the_producer_raises(client: BertClient) -> None:
    def broken() -> Iterator[list[str]]:
        yield ["fine"]
        raise KeyError("producer")

    results = client.encode_async(broken())
    assert len(next(results).embedding) == 1
    with pytest.raises(KeyError, match="producer"):
        next(results)


def test_config_status_and_the_clients_status(client: BertClient, server: RunningServer) -> None:
    config = client.server_config
    assert (config["server_version"], config["max_seq_len"], config["num_worker"]) == ("1.10.0", 256, 1)
    assert config["show_tokens_to_client"] is False
    assert config["client"] == client.status["identity"].decode()
    assert (config["pooling_strategy"], config["pooling"], config["pooling_layer"]) == (2, ["auto"], [-1])
    client.encode(["one", "two"])
    status = client.server_status
    assert status["ready"] is True
    assert status["workers"][0]["device"] == "cpu"
    statistic = status["statistic"]
    assert statistic["num_total_request"] >= 4
    assert statistic["num_active_client"] >= 1
    assert statistic["max_size_per_request"] >= 2
    assert statistic["avg_request_per_second"] > 0
    assert client.status["port"] == server.port


def test_attributes_of_a_client(server: RunningServer) -> None:
    with BertClient(**server.ports) as client:
        assert (client.length_limit, client.token_info_available, client.request_id) == (256, False, 1)
        client.encode(TEXTS, blocking=False)
        assert client.encode(TEXTS[:1]).shape == (1, 384)
        assert (client.request_id, client.pending_request) == (3, {2})
        while client.pending_request:  # scripts check in this way whether there are results to fetch
            assert [response.id for response in client.fetch()] == [2]
        assert client.status["pending_request"] == client.pending_request == set()
    with BertClient(**server.ports, ignore_all_checks=True) as client:
        assert (client.length_limit, client.token_info_available, client.request_id) == (0, False, 0)


def test_the_configuration_is_printed_on_request(
    server: RunningServer, capsys: pytest.CaptureFixture[str]
) -> None:
    BertClient(**server.ports, show_server_config=True).close()
    assert "                server_version = '1.10.0'\n" in capsys.readouterr().out


def test_a_timeout_holds_for_fetching_too_and_costs_no_result(server: RunningServer) -> None:
    with BertClient(**server.ports) as client:
        with server.paused_workers():
            client.timeout = 5
            client.encode(TEXTS, blocking=False)
            for fetch in (client.fetch_all, lambda: next(client.fetch())):
                with pytest.raises(TimeoutError, match="did not reply in time"):
                    fetch()
        client.timeout = -1
        (rows,) = client.fetch_all()
        assert rows.shape == (3, 384)


@pytest.mark.parametrize(
    ("texts", "error"),
    [
        ("a string", TypeError),
        (None, TypeError),
        ([], ValueError),
        (["fine", ""], ValueError),
        (["fine", 3], TypeError),
        ([["tokens"], "text"], TypeError),
        (["fine", "  "], ValueError),
        (["nul \0"], ValueError),
        (["lone \ud800"], ValueError),
        ([["tokens"]], TypeError),
    ],
)
def test_bad_texts_are_refused_before_they_are_sent(client: BertClient, texts: object, error: type) -> None:
    sent = client.status["num_request"]
    with pytest.raises(error):
        client.encode(texts)  # type: ignore[call-overload]
    assert client.status["num_request"] == sent


def test_blank_texts_are_refused_even_with_ignore_all_checks(server: RunningServer) -> None:
    with BertClient(**server.ports, ignore_all_checks=True) as client:
        for refused in (
            lambda: client.encode([" "]),
            lambda: client.encode([["fine", " "]], is_tokenized=True),
            lambda: client.encode_tokens([" "]),
            lambda: client.encode_spans([" "], [[(0, 1)]]),
        ):
            with pytest.raises(ValueError, match="is blank: ' '"):
                refused()
        assert client.request_id == 0


def test_a_blank_text_over_http_is_no_error(server: RunningServer) -> None:
    reply = httpx.post(f"{server.url}/encode", json={"id": 1, "texts": ["fine", "  "]}, timeout=HANG_S)
    assert (reply.status_code, len(reply.json()["result"])) == (200, 2)


def test_a_warning_names_texts_that_were_cut(client: BertClient) -> None:
    with pytest.warns(UserWarning, match=r"1 of 2 texts are longer .* first is texts\[1\]"):
        client.encode(["short", "long " * 500])


def test_one_client_serves_many_threads(client: BertClient, vectors: np.ndarray) -> None:
    def ask(i: int) -> bool:
        return close(client.encode([TEXTS[i % 3]]), vectors[i % 3 : i % 3 + 1])

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(ask, range(200)))


def test_concurrent_client_encodes_and_refuses_to_fetch(server: RunningServer, vectors: np.ndarray) -> None:
    with ConcurrentBertClient(max_concurrency=2, **server.ports) as client, ThreadPoolExecutor(8) as pool:
        assert all(close(rows, vectors) for rows in pool.map(lambda _: client.encode(TEXTS), range(20)))
        assert client.server_config["server_version"] == "1.10.0"
        for refused in (client.fetch, client.fetch_all, client.encode_async):
            with pytest.raises(NotImplementedError):
                refused()


def test_concurrent_client_tells_how_many_may_call_and_waits_no_longer_than_its_timeout(
    server: RunningServer,
) -> None:
    with ConcurrentBertClient(max_concurrency=2, **server.ports) as client, ThreadPoolExecutor(2) as pool:
        assert client.available_bc == [client, client]
        with server.paused_workers():
            busy = [pool.submit(client.encode, TEXTS) for _ in range(2)]
            wait_until(lambda: len(client.pending_request) == 2)
            assert client.available_bc == []
            client.timeout = 5
            with pytest.raises(TimeoutError, match="too many concurrent calls: max_concurrency=2"):
                client.encode(TEXTS)
        assert [future.result(HANG_S).shape for future in busy] == [(3, 384)] * 2
        assert len(client.available_bc) == 2


def _encode_in_child(client: BertClient, queue: multiprocessing.SimpleQueue[object]) -> None:
    queue.put((client.encode(TEXTS), client.status["identity"]))


def test_a_client_works_on_both_sides_of_a_fork(client: BertClient, vectors: np.ndarray) -> None:
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    children = [context.Process(target=_encode_in_child, args=(client, queue)) for _ in range(3)]
    for child in children:
        child.start()
    here = client.encode(TEXTS)
    answers = [queue.get() for _ in children]
    for child in children:
        child.join(HANG_S)
    assert [child.exitcode for child in children] == [0, 0, 0]
    assert close(here, vectors)
    assert all(close(rows, vectors) for rows, _ in answers)
    assert len({identity for _, identity in answers} | {client.status["identity"]}) == 4


@pytest.mark.parametrize("identity", ["name", "0cea2867-890a-4286-b54f-7548ab5732c3"])
def test_other_clients_with_the_same_identity_receive_the_replies(server: RunningServer, identity: str) -> None:
    with BertClient(**server.ports, identity=identity) as one, zmq.Context() as zmq_, zmq_.socket(zmq.SUB) as ear:
        ear.subscribe(identity.encode())
        ear.connect(f"tcp://127.0.0.1:{server.port_out}")

        def asks_and_hears() -> bool:  # a subscription takes a while to reach the server
            one.encode(TEXTS)
            return bool(ear.poll(100))

        wait_until(asks_and_hears)
        assert ear.recv_multipart()[0].startswith(identity.encode())


@pytest.mark.parametrize(
    ("first", "second"), [("embedding-client", "embedding-client-2"), ("the-same-name", "the-same-name")]
)
def test_clients_with_similar_or_equal_names_never_get_each_others_vectors(
    server: RunningServer, vectors: np.ndarray, first: str, second: str
) -> None:
    def ask(identity: str, i: int) -> bool:
        with BertClient(**server.ports, identity=identity) as client:
            return all(close(client.encode([TEXTS[i]]), vectors[i : i + 1]) for _ in range(20))

    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(ask, [first, second], [0, 1]))


def _fetch_in_child(client: BertClient, queue: multiprocessing.SimpleQueue[object]) -> None:
    queue.put((client.fetch_all(), list(client.fetch())))


def test_a_child_process_does_not_fetch_what_its_parent_sent(client: BertClient) -> None:
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    client.encode(numbered("a sentence to wait for", 500), blocking=False)
    child = context.Process(target=_fetch_in_child, args=(client, queue))
    child.start()
    assert queue.get() == (None, [])
    child.join(HANG_S)
    assert child.exitcode == 0
    assert client.fetch_all()[0].shape == (500, 384)


def _many_threads_in_child(client: BertClient, queue: multiprocessing.SimpleQueue[object]) -> None:
    with ThreadPoolExecutor(16) as pool:
        queue.put([rows.shape for rows in pool.map(lambda _: client.encode(TEXTS), range(16))])


@pytest.mark.parametrize("kind", [BertClient, ConcurrentBertClient])
def test_a_fork_while_threads_encode_leaves_both_sides_working(
    server: RunningServer, kind: type[BertClient]
) -> None:
    context = multiprocessing.get_context("fork")
    options = {"max_concurrency": 2} if kind is ConcurrentBertClient else {}
    with kind(**server.ports, **options) as client, ThreadPoolExecutor(4) as pool:  # type: ignore[arg-type]
        here = [pool.submit(client.encode, TEXTS * 4) for _ in range(40)]
        queue = context.SimpleQueue()
        children = [context.Process(target=_many_threads_in_child, args=(client, queue)) for _ in range(3)]
        for child in children:
            child.start()
        assert [queue.get() for _ in children] == [[(3, 384)] * 16] * 3
        assert all(future.result().shape == (12, 384) for future in here)
        for child in children:
            child.join(HANG_S)
        assert [child.exitcode for child in children] == [0, 0, 0]


def test_threads_that_fetch_together_share_the_results_and_all_return(client: BertClient) -> None:
    for i in range(5):
        client.encode([f"text {i}"], blocking=False)
    with ThreadPoolExecutor(4) as pool:
        fetched = list(pool.map(lambda _: [r.id for r in client.fetch()], range(4)))
    assert len({i for ids in fetched for i in ids}) == 5


def test_an_error_among_the_results_loses_none_of_the_others(client: BertClient) -> None:
    client.encode(["first"], blocking=False)
    client.encode(["x"] * 262_145, blocking=False)
    client.encode(["last"], blocking=False)
    wait_until(lambda: client.server_status["open_requests"] == 0)
    with pytest.raises(InvalidRequest, match="262144"):
        client.fetch_all()
    assert len(client.fetch_all()) == 2


def test_leaving_encode_async_early_ends_its_thread(client: BertClient) -> None:
    given = []

    def forever() -> Iterator[list[str]]:
        while True:
            given.append(1)
            yield ["text"]

    for response in client.encode_async(forever()):
        assert response.embedding.shape == (1, 384)
        if len(given) > 30:
            break
    wait_until(lambda: all(thread.name != "producer" for thread in threading.enumerate()))


def test_encode_async_of_two_threads_in_one_client_ends_in_both(client: BertClient) -> None:
    with ThreadPoolExecutor(2) as pool:
        counts = list(pool.map(lambda _: len(list(client.encode_async([["a"]] * 60))), range(2)))
    assert sum(counts) == 120


def test_encode_async_says_when_it_ran_out_of_time(server: RunningServer) -> None:
    with BertClient(**server.ports) as client, server.paused_workers():
        client.timeout = 100
        with pytest.raises(TimeoutError):
            list(client.encode_async(([text] for text in TEXTS), delay=0))


def test_encode_async_sends_more_than_the_queue_holds(small_queue_server: RunningServer) -> None:
    with BertClient(**small_queue_server.ports) as client:
        batches = ([f"batch {i}"] * 32 for i in range(40))
        assert sum(len(response.embedding) for response in client.encode_async(batches)) == 40 * 32


def test_a_short_identity_is_answered_too(server: RunningServer, vectors: np.ndarray) -> None:
    with BertClient(**server.ports, identity=b"me") as client:
        assert close(client.encode(TEXTS), vectors)


def test_an_unreachable_server_is_a_timeout_error_with_host_and_port() -> None:
    port, port_out = free_ports(2)
    start = time.monotonic()
    with pytest.raises(TimeoutError, match=f"localhost:{port}.*localhost:{port_out}"):
        BertClient(port=port, port_out=port_out, connect_timeout=1000)
    assert time.monotonic() - start < 8  # the default timeout is ten seconds


def test_the_default_connect_timeout_is_at_most_ten_seconds() -> None:
    port, port_out = free_ports(2)
    start = time.monotonic()
    with pytest.raises(TimeoutError):
        BertClient(port=port, port_out=port_out)
    assert time.monotonic() - start < 40


@pytest.mark.parametrize(
    ("port", "port_out", "trouble"),
    [
        ("port_out", "port", "port_out is not a server's port for results; .* swapped"),
        ("port_out", "port_out", "port accepts no requests"),
        ("unused", "port_out", "port accepts no requests"),
        ("port", "unused", "no server replies at port_out"),
    ],
)
def test_a_wrong_port_is_an_error_that_names_the_port(
    server: RunningServer, port: str, port_out: str, trouble: str
) -> None:
    ports = server.ports | {"unused": free_ports(1)[0]}
    addresses = rf"localhost:{ports[port]} \(port\), localhost:{ports[port_out]} \(port_out\)"
    with pytest.raises(TimeoutError, match=f"{addresses}: {trouble}"):
        BertClient(port=ports[port], port_out=ports[port_out], connect_timeout=3000)


@pytest.mark.parametrize("kind", [BertClient, ConcurrentBertClient])
def test_a_signal_handler_may_close_the_client_that_it_interrupts_but_not_use_it(
    client: BertClient, kind: type[BertClient]
) -> None:
    options = {"max_concurrency": 1} if kind is ConcurrentBertClient else {}
    client.encode(["the context is there"])
    before = num_files()
    refusals: list[str] = []

    def handle(*_: object) -> None:
        with pytest.raises(RuntimeError, match="a signal handler") as refusal:
            interrupted.encode(TEXTS)
        refusals.append(refusal)
        interrupted.close()

    with socket.create_server(("127.0.0.1", 0)) as silent, ThreadPoolExecutor(1) as pool:
        port = silent.getsockname()[1]
        interrupted = kind(ip="127.0.0.1", port=port, port_out=port, ignore_all_checks=True, **options)  # type: ignore[arg-type]
        previous = signal.signal(signal.SIGUSR1, handle)
        try:
            accepted = pool.submit(lambda: (silent.accept()[0].close(), _interrupt_the_main_thread()))
            with pytest.raises(ConnectionError, match="closed"):
                interrupted.encode(TEXTS)
            accepted.result()
        finally:
            signal.signal(signal.SIGUSR1, previous)
    assert len(refusals) == 1
    wait_for_files(before)


def _interrupt_the_main_thread() -> None:
    ident = threading.main_thread().ident
    assert ident is not None
    signal.pthread_kill(ident, signal.SIGUSR1)


def test_a_timeout_holds_and_the_late_reply_is_forgotten(server: RunningServer, vectors: np.ndarray) -> None:
    with BertClient(**server.ports) as client:
        client.timeout = 300
        with server.paused_workers(), pytest.raises(TimeoutError):
            client.encode(numbered("a long sentence " * 30, 2000))
        client.timeout = -1
        assert close(client.encode(TEXTS), vectors)
        assert client.status["num_pending_request"] == 0
        assert client.fetch_all() is None


def test_bad_constructor_arguments_and_closed_clients(server: RunningServer) -> None:
    with pytest.raises(AttributeError, match="output_fmt"):
        BertClient(output_fmt="tuple")
    client = BertClient(**server.ports)
    client.close()
    client.close()
    with pytest.raises(ConnectionError, match="closed"):
        client.encode(TEXTS)


def num_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def wait_for_files(count: int) -> None:
    wait_until(lambda: num_files() <= count)  # ZeroMQ closes its files in the background


def test_many_clients_in_one_process_need_six_files_each_and_give_them_back(
    client: BertClient, server: RunningServer
) -> None:
    client.encode(["the context is there"])
    before = num_files()
    clients = [BertClient(**server.ports) for _ in range(20)]
    assert all(each.encode(["hello"]).shape == (1, 384) for each in clients)
    assert num_files() - before <= 20 * 6
    for each in clients:
        each.close()
    wait_for_files(before)


def test_ten_threads_of_a_concurrent_client_need_as_many_files_as_one(
    client: BertClient, server: RunningServer
) -> None:
    client.encode(["the context is there"])
    before = num_files()
    with ConcurrentBertClient(max_concurrency=10, **server.ports) as shared, ThreadPoolExecutor(10) as pool:
        assert all(rows.shape == (1, 384) for rows in pool.map(lambda _: shared.encode(["hello"]), range(40)))
        assert num_files() - before <= 6


_OPEN_TOO_MANY = """
import resource, sys
from bert_serving.client import BertClient
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
clients = []
try:
    while True:
        clients.append(BertClient(port=int(sys.argv[1]), port_out=int(sys.argv[2])))
except OSError as exc:
    print(len(clients), exc)
    clients.pop().close()
    print(clients[0].encode(["still there"]).shape)
"""


def test_too_many_files_are_an_error_that_says_so(server: RunningServer) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _OPEN_TOO_MANY, str(server.port), str(server.port_out)],
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    error, shape = done.stdout.splitlines()
    assert int(error.split()[0]) >= 5
    assert "too many open files: a client needs 6, and this process may open 64 (ulimit -n)" in error
    assert shape == "(1, 384)"


def test_requests_that_were_lost_on_their_way_are_sent_again(server: RunningServer, vectors: np.ndarray) -> None:
    with Proxy(server.port) as proxy, BertClient(port=proxy.port, port_out=server.port_out) as client:
        proxy.is_discarding = True
        client.encode(TEXTS * 100, blocking=False)
        proxy.lose(2000)
        (found,) = client.fetch_all() or []
        assert close(found, np.tile(vectors, (100, 1)))


def test_a_caller_gets_its_vectors_or_without_retry_an_error_if_the_request_was_lost_on_its_way(
    server: RunningServer, vectors: np.ndarray
) -> None:
    async def ask(port: int, retry: bool) -> None:
        async with AsyncBertClient(port=port, port_out=server.port_out, retry=retry) as client:
            await client.server_config()
            proxy.is_discarding = True
            asking = asyncio.create_task(client.encode(TEXTS * 100))
            await asyncio.to_thread(proxy.lose, 2000)
            if retry:
                assert close((await asking)[:3], vectors)
                return
            with pytest.raises(ConnectionError, match="went away"):
                await asking
            assert close(await client.encode(TEXTS), vectors)

    with Proxy(server.port) as proxy:
        ports = {"port": proxy.port, "port_out": server.port_out}
        with BertClient(**ports, retry=False) as client, ThreadPoolExecutor(1) as pool:
            proxy.is_discarding = True
            asking = pool.submit(client.encode, TEXTS * 100)
            proxy.lose(2000)
            with pytest.raises(ConnectionError, match="went away"):
                asking.result(HANG_S)
            assert close(client.encode(TEXTS), vectors)
        for retry in (False, True):
            asyncio.run(ask(proxy.port, retry))


def test_async_client(server: RunningServer, vectors: np.ndarray) -> None:
    async def main() -> None:
        async with AsyncBertClient(**server.ports) as client:
            rows = await asyncio.gather(*(client.encode([TEXTS[i % 3]]) for i in range(100)))
            assert all(close(row, vectors[i % 3 : i % 3 + 1]) for i, row in enumerate(rows))
            tokens = (await client.encode([["hello"]], is_tokenized=True, show_tokens=True))[1]
            assert tokens == [["[CLS]", "hello", "[SEP]"]]
            assert (await client.server_config())["server_version"] == "1.10.0"
            assert (await client.server_status())["ready"] is True
            with pytest.raises(ValueError, match="empty string"):
                await client.encode([""])
            assert client.status["num_pending_request"] == 0

    asyncio.run(main())


def test_async_client_times_out_and_is_cancelled(server: RunningServer) -> None:
    async def main() -> None:
        async with AsyncBertClient(**server.ports) as client:
            client.timeout = 200
            with pytest.raises(TimeoutError):
                await client.encode(numbered("a long sentence " * 30, 2000))
            client.timeout = -1
            task = asyncio.create_task(client.encode(TEXTS))
            while client.status["num_pending_request"] == 0:
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert client.status["num_pending_request"] == 0

    with server.paused_workers():
        asyncio.run(main())


def test_async_client_outlives_its_event_loop(server: RunningServer) -> None:
    client = AsyncBertClient(**server.ports)
    for _ in range(3):
        assert asyncio.run(client.encode(["hello"])).shape == (1, 384)
    asyncio.run(client.close())


def test_async_client_of_a_running_loop_refuses_another_loop_and_loses_nothing(server: RunningServer) -> None:
    client = AsyncBertClient(**server.ports)
    started = threading.Event()

    async def main() -> object:
        pending = asyncio.create_task(client.encode(TEXTS))
        while client.status["num_pending_request"] == 0:
            await asyncio.sleep(0.001)
        started.set()
        return (await asyncio.wait_for(pending, HANG_S)).shape

    with ThreadPoolExecutor(1) as pool:
        with server.paused_workers():
            first = pool.submit(asyncio.run, main())
            assert started.wait(HANG_S)
            with pytest.raises(RuntimeError, match="belongs to another event loop, which is still running"):
                asyncio.run(client.encode(["hello"]))
            with pytest.raises(RuntimeError, match="belongs to another event loop, which is still running"):
                asyncio.run(client.close())
        assert first.result(HANG_S) == (3, 384)
    assert asyncio.run(client.encode(["hello"])).shape == (1, 384)
    asyncio.run(client.close())
    asyncio.run(client.close())


def test_async_client_that_is_closed_while_it_connects() -> None:
    port, port_out = free_ports(2)

    async def main() -> None:
        client = AsyncBertClient(port=port, port_out=port_out)
        asking = asyncio.create_task(client.encode(["x"]))
        await asyncio.sleep(0.1)
        await client.close()
        with pytest.raises(ConnectionError, match="closed"):
            await asyncio.wait_for(asking, HANG_S)

    asyncio.run(main())


def test_ipv6() -> None:
    with RunningServer("-host", "::1") as running:
        running.wait_ready()
        with BertClient(ip="::1", **running.ports) as client:
            assert client.encode(["x"]).shape == (1, 384)
        assert httpx.get(f"http://[::1]:{running.http_port}/ready", timeout=HANG_S).status_code == 200
        done = subprocess.run(
            command("bert-serving-terminate", "-ip", "::1", "-port", running.port),
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0
        assert running.wait_end() == 0


def test_async_client_names_an_unreachable_server() -> None:
    port, port_out = free_ports(2)

    async def main() -> None:
        async with AsyncBertClient(port=port, port_out=port_out, connect_timeout=500) as client:
            with pytest.raises(TimeoutError, match=f"localhost:{port}"):
                await client.encode(["x"])

    asyncio.run(main())


def test_calls_that_the_full_queue_refuses_are_repeated_until_they_are_answered(
    small_queue_server: RunningServer,
) -> None:
    def ask(client: BertClient, i: int) -> tuple[int, ...]:
        # Equal texts are computed once, so other calls would have room in the queue.
        return client.encode(numbered(f"call {i} with a text", 400)).shape

    with BertClient(**small_queue_server.ports, timeout=HANG_S * 1000) as client, ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, [client] * 8, range(8))) == [(400, 384)] * 8
    with BertClient(**small_queue_server.ports, retry=False) as client, ThreadPoolExecutor(8) as pool:
        with small_queue_server.paused_workers():
            calls = [pool.submit(ask, client, i) for i in range(8)]
            wait_until(lambda: any(call.done() for call in calls))
        errors = [error for call in calls if (error := call.exception(HANG_S)) is not None]
    assert 0 < len(errors) < 8
    assert {type(error) for error in errors} == {Overloaded}


def test_a_client_that_leaves_cancels_nothing_of_others_with_its_identity(server: RunningServer) -> None:
    with BertClient(**server.ports, identity="shared") as stays, ThreadPoolExecutor(2) as pool:
        with server.paused_workers():
            waiting = pool.submit(stays.encode, TEXTS)
            with BertClient(**server.ports, identity="shared") as leaves:
                leaving = pool.submit(leaves.encode, TEXTS)
                wait_until(lambda: leaves.pending_request and stays.pending_request)
            with pytest.raises(ConnectionError, match="closed"):
                leaving.result(HANG_S)
        assert waiting.result(HANG_S).shape == (3, 384)


def test_a_list_too_long_is_refused_and_the_rest_goes_on(small_queue_server: RunningServer) -> None:
    with BertClient(**small_queue_server.ports) as client:
        expected = client.encode(TEXTS)
        with pytest.raises(InvalidRequest, match="at most 600 texts, got 601"):
            client.encode(["x"] * 601)
        assert close(client.encode(TEXTS), expected)
