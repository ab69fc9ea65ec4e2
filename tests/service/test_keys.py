"""API keys from a file: whom a running server lets in, what it tells, and what it reads again."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import httpx
import psutil
import pytest
from bert_serving.server.keys import hash_of
from prometheus_client.parser import text_string_to_metric_families

from tests.support.running_server import RunningServer, free_ports, run_start
from tests.support.waiting import HANG_S, wait_until

T = TypeVar("T")

ALICE, BOB, CAROL = "alices-key-0123456789", "bobs-key-0123456789", "carols-key-0123456789"
KEYS = f"alice {ALICE} share=0.2\nbob {hash_of(BOB)} texts_per_minute=4\n"


@dataclass(frozen=True)
class Keyed:
    """A running server that requires keys, and their file."""

    running: RunningServer
    file: Path

    def get(self, path: str, key: str | None = None) -> httpx.Response:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        return httpx.get(self.running.url + path, headers=headers, timeout=HANG_S)

    def embed(self, path: str, key: str, num_texts: int) -> httpx.Response:
        texts = ["hello"] * num_texts
        body = {"input": texts} if path.startswith("/v1") else {"inputs": texts}
        headers = {"Authorization": f"Bearer {key}"}
        return httpx.post(self.running.url + path, json=body, headers=headers, timeout=HANG_S)

    def is_gateway(self, process: psutil.Process) -> bool:
        ports = [connection.laddr.port for connection in process.net_connections("tcp")]
        return process.pid != self.running.process.pid and self.running.http_port in ports


def each_process(keyed: Keyed, ask: Callable[[psutil.Process], T | None]) -> list[T]:
    """Return what a function returns for the server and its children, without None."""
    answers = []
    server = psutil.Process(keyed.running.process.pid)
    for process in (server, *server.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):  # after SIGHUP, workers end at any time
            answers.append(ask(process))
    return [answer for answer in answers if answer is not None]


@pytest.fixture(scope="module")
def keyed(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text(KEYS)
    with RunningServer("-model_dir", tiny, "-cpu", "-api_key_file", file, "-protect_metrics") as running:
        yield Keyed(running.wait_ready(), file)


@pytest.fixture(autouse=True)
def _same_keys(keyed: Keyed) -> Iterator[None]:
    """Let each test begin with the same keys, whatever the tests before did to the file."""
    yield
    keyed.file.write_text(KEYS)


def test_every_key_of_the_file_is_accepted_and_no_other(keyed: Keyed) -> None:
    assert [keyed.get("/v1/models", key).status_code for key in (ALICE, BOB)] == [200, 200]
    for wrong in (None, CAROL, "alice", hash_of(ALICE), hash_of(BOB)):
        assert keyed.get("/v1/models", wrong).status_code == 401


@pytest.mark.parametrize("path", ["/metrics", "/status/server", "/status/client"])
def test_routes_for_administrators_require_a_key(keyed: Keyed, path: str) -> None:
    assert keyed.get(path).status_code == 401
    assert keyed.get(path, ALICE).status_code == 200


def test_probes_require_none(keyed: Keyed) -> None:
    assert [keyed.get(path).status_code for path in ("/live", "/ready")] == [200, 200]


def test_a_key_beyond_its_texts_per_minute_gets_429_with_a_retry_time(keyed: Keyed) -> None:
    statuses = [keyed.embed("/embed", BOB, 4).status_code for _ in range(2)]
    assert 429 in statuses
    for path in ("/embed", "/v1/embeddings"):
        refused = keyed.embed(path, BOB, 4)
        assert refused.status_code == 429
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert "the API key 'bob' may send 4 texts per minute" in refused.text
    assert keyed.embed("/embed", ALICE, 40).status_code == 200


def test_requests_are_counted_by_the_name_of_their_key(keyed: Keyed) -> None:
    def count() -> dict[str, float]:
        families = text_string_to_metric_families(keyed.get("/metrics", ALICE).text)
        samples = [sample for family in families for sample in family.samples]
        return {s.labels["key"]: s.value for s in samples if s.name == "bert_serving_http_key_requests_total"}

    before = count()
    keyed.get("/v1/models", BOB)
    keyed.get("/v1/models", CAROL)
    after = count()
    assert (after.keys(), after["bob"] - before["bob"]) == ({"alice", "bob"}, 1)


def test_a_stream_that_waits_for_its_key_ends_when_its_caller_leaves(keyed: Keyed) -> None:
    head = f"POST /encode/stream HTTP/1.1\r\nHost: x\r\nX-Api-Key: {BOB}\r\nContent-Length: 1000000\r\n\r\n"
    with socket.create_connection(("127.0.0.1", keyed.running.http_port)) as caller:
        caller.sendall(head.encode() + b'"a text of some words"\n' * 3000)
        time.sleep(0.5)  # the gateway has taken these lines, and reads no more of them than it may hold
        caller.sendall(b'"a text of some words"\n' * 4000)
        time.sleep(0.5)
    wait_until(lambda: 'route="/encode/stream",status="499"' in keyed.get("/metrics", ALICE).text)


def test_a_stream_waits_for_its_key_only_until_its_deadline(keyed: Keyed) -> None:
    headers = {"Authorization": f"Bearer {BOB}", "X-Request-Timeout-Ms": "100"}
    body = b'"a"\n' * 1000
    reply = httpx.post(f"{keyed.running.url}/encode/stream", content=body, headers=headers, timeout=HANG_S)
    last = json.loads(reply.text.splitlines()[999])
    assert (last["id"], last["error"]["code"]) == (999, "deadline_exceeded")


def test_the_log_tells_the_process_that_gets_sighup(keyed: Keyed) -> None:
    assert f"server process {keyed.running.process.pid}\n" in keyed.running.log


def test_the_file_is_read_again_on_sighup_and_a_bad_file_changes_nothing(keyed: Keyed) -> None:
    keyed.file.write_text(f"carol {CAROL}\n")
    keyed.running.signal(signal.SIGHUP)
    wait_until(lambda: keyed.get("/v1/models", CAROL).status_code == 200)
    assert keyed.get("/v1/models", ALICE).status_code == 401
    keyed.file.write_text(f"carol {CAROL} speed=1\n")
    keyed.running.signal(signal.SIGHUP)
    keyed.running.wait_for("kept the present API keys")
    assert keyed.get("/v1/models", CAROL).status_code == 200
    keyed.file.write_text(KEYS)
    keyed.running.signal(signal.SIGHUP)
    wait_until(lambda: keyed.get("/v1/models", ALICE).status_code == 200)
    assert keyed.get("/v1/models", CAROL).status_code == 401


def test_a_new_gateway_does_not_accept_a_removed_key_again(keyed: Keyed) -> None:
    """Not even if the file has an error when the gateway starts."""
    keyed.file.write_text(f"alice {ALICE}\n")
    keyed.running.signal(signal.SIGHUP)
    wait_until(lambda: keyed.get("/v1/models", BOB).status_code == 401)
    keyed.file.write_text("alice\n")
    (gateway,) = each_process(keyed, lambda process: process if keyed.is_gateway(process) else None)
    gateway.kill()
    psutil.wait_procs([gateway], timeout=HANG_S)
    assert (
        keyed.get("/v1/models", ALICE).status_code == 200
    )  # the connection waits until the new gateway accepts it
    assert keyed.get("/v1/models", BOB).status_code == 401
    keyed.file.write_text(KEYS)
    keyed.running.signal(signal.SIGHUP)
    wait_until(lambda: keyed.get("/v1/models", BOB).status_code == 200)


def test_no_key_and_no_hash_is_in_the_log_or_in_the_list_of_processes(keyed: Keyed) -> None:
    commands = each_process(keyed, psutil.Process.cmdline)
    assert len(commands) >= 3  # the server, a worker and a gateway
    shown = [keyed.running.log, *(word for command in commands for word in command)]
    shown.append(keyed.get("/status/server", ALICE).text)
    for secret in (ALICE, BOB, CAROL, hash_of(ALICE), hash_of(BOB)):
        assert not [text for text in shown if secret in text]


def test_a_bad_file_ends_the_start_in_one_line(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("alice")
    flags = ["-http_port", *free_ports(1), "-api_key_file", tmp_path / "keys"]
    done = run_start("-model_dir", tiny, "-cpu", *flags)
    assert done.returncode == 1
    assert "line 1: there is only one word; expected NAME KEY" in done.stderr
    assert "Traceback" not in done.stderr
