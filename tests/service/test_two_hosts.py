"""Server and client on two hosts: a line that is cut, and what the other host may and may not do."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from bert_serving.server.cli.key_folder import KeyFolder

from tests.support.certificates import Authority
from tests.support.code_blocks import CodeBlock, blocks_run_by
from tests.support.running_server import RunningServer, command
from tests.support.two_hosts import SERVER_IP, TwoHosts, are_permitted
from tests.support.waiting import HANG_S, wait_until

pytestmark = pytest.mark.skipif(not are_permitted(), reason="network namespaces are not permitted here")

# Arguments: IP, port, port_out, folder of the keys, and whether requests are sent again. Before each request, the
# script waits for a line of input.
CLIENT = """
import sys
from bert_serving.client import BertClient
ip, port, port_out, curve_dir = sys.argv[1], *map(int, sys.argv[2:4]), sys.argv[4]
retry = sys.argv[5] == "True"
with BertClient(ip, port, port_out, curve_dir=curve_dir, connect_timeout=60_000, retry=retry) as client:
    for _ in sys.stdin:
        try:
            print(client.encode(["hello world"]).shape, flush=True)
        except ConnectionError as error:
            print(type(error).__name__, error, flush=True)
"""

# What a block of a page becomes on two hosts: {code} with the functions that it calls. `$ON_SERVER` and
# `$ON_CLIENT` run a command on a host. A server runs beside the rest of the block, which waits until it is ready.
ON_TWO_HOSTS = r"""
set -eu
start() {{
    $ON_SERVER "$@" >> server.log 2>&1 &
    PID=$!
    trap 'kill $PID; wait $PID' EXIT
    wait_for 'all set'
}}
hang_up() {{
    lines=$(wc -l < server.log)
    kill -HUP "$1"
    wait_for 'read the'
}}
wait_for() {{
    until tail -n "+$((${{lines-0}} + 1))" server.log | grep -q "$1"; do kill -0 $PID; sleep 0.1; done
}}
scp() {{ cp -r "$2" "${{3#CLIENT:}}"; }}  # the hosts have the same files
{code}
"""

_NOTICED_S = 13.0  # a client notices a cut line after ten seconds without heartbeats


@dataclass(frozen=True)
class Site:
    """Two hosts, a server with CURVE on the first, and the keys of a client."""

    hosts: TwoHosts
    running: RunningServer
    keys: Path

    def on_client(self, name: str, *args: object) -> subprocess.CompletedProcess[str]:
        """Run a console script on the host of the client."""
        words = command(name, "-ip", SERVER_IP, "-port", self.running.port, *args)
        return subprocess.run(
            [*self.hosts.client, *words], capture_output=True, text=True, timeout=HANG_S, check=False
        )

    def status(self) -> dict[str, Any]:
        """Return the server's status, requested on its own host."""
        ports = ("-port", self.running.port, "-port_out", self.running.port_out)
        words = command("bert-serving-status", *ports, "-json", "-curve_dir", self.keys / "alice")
        done = subprocess.run(
            [*self.hosts.server, *words], capture_output=True, text=True, timeout=HANG_S, check=True
        )
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def client(self, *, retry: bool) -> subprocess.Popen[str]:
        """Start CLIENT on the host of the client."""
        address = (SERVER_IP, str(self.running.port), str(self.running.port_out), str(self.keys / "alice"))
        return subprocess.Popen(
            [*self.hosts.client, sys.executable, "-c", CLIENT, *address, str(retry)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )


@pytest.fixture(scope="module")
def hosts() -> Iterator[TwoHosts]:
    with TwoHosts() as made:
        yield made


@pytest.fixture(scope="module")
def site(hosts: TwoHosts, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    keys = tmp_path_factory.mktemp("keys")
    KeyFolder(keys).make(["alice"])
    flags = ("-host", "0.0.0.0", "-http_host", "127.0.0.1", "-curve_dir", keys)
    with RunningServer("-model_dir", tiny, "-cpu", *flags, prefix=hosts.server) as running:
        yield Site(hosts, running.wait_ready(), keys)


def ask(client: subprocess.Popen[str]) -> None:
    assert client.stdin is not None
    client.stdin.write("\n")
    client.stdin.flush()


def answer(client: subprocess.Popen[str]) -> str:
    assert client.stdout is not None
    return client.stdout.readline().strip()


@contextmanager
def line_cut_during_a_request(site: Site, client: subprocess.Popen[str]) -> Iterator[None]:
    """Let the client ask, and cut the line while the request is open. The worker is stopped inside the context."""
    worker = psutil.Process(site.status()["workers"][0]["pid"])
    worker.suspend()
    try:
        ask(client)
        wait_until(lambda: site.status()["open_requests"] == 1)
        site.hosts.cut_line()
        yield
    finally:
        worker.resume()


def test_a_request_is_sent_again_after_the_line_was_cut(site: Site) -> None:
    with site.client(retry=True) as client:
        ask(client)
        assert answer(client) == "(1, 64)"
        with line_cut_during_a_request(site, client):
            time.sleep(_NOTICED_S)
        site.hosts.mend_line()
        assert answer(client) == "(1, 64)"
        assert client.stdin is not None
        client.stdin.close()


def test_a_line_cut_during_a_request_is_an_error_and_the_client_works_again_afterwards(site: Site) -> None:
    with site.client(retry=False) as client:
        ask(client)
        assert answer(client) == "(1, 64)"
        with line_cut_during_a_request(site, client):
            assert answer(client).startswith(f"Unavailable the server at {SERVER_IP}")
        wait_until(lambda: site.status()["open_requests"] == 0)
        site.hosts.mend_line()
        ask(client)
        assert answer(client) == "(1, 64)"
        assert client.stdin is not None
        client.stdin.close()


def test_the_other_host_needs_a_known_key(site: Site, tmp_path: Path) -> None:
    KeyFolder(tmp_path).make(["mallory"])
    (tmp_path / "mallory" / "server.key").write_bytes((site.keys / "server.key").read_bytes())
    ports = ("-port_out", site.running.port_out, "-json")
    known = site.on_client("bert-serving-status", *ports, "-curve_dir", site.keys / "alice")
    assert json.loads(known.stdout)["ready"] is True
    for flags, said in (
        ((), "the server requires a key"),
        (("-curve_dir", tmp_path / "mallory"), "the server refused the key of this client"),
    ):
        refused = site.on_client("bert-serving-status", *ports, *flags)
        assert refused.returncode == 1
        assert said in refused.stderr


def test_http_on_loopback_cannot_be_reached_from_the_other_host(site: Site) -> None:
    code = "import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=60)"
    url = f"http://%s:{site.running.http_port}/live"
    here, there = [
        subprocess.run([*prefix, sys.executable, "-c", code, url % ip], capture_output=True, check=False)
        for prefix, ip in ((site.hosts.server, "127.0.0.1"), (site.hosts.client, SERVER_IP))
    ]
    assert here.returncode == 0
    assert b"Connection refused" in there.stderr


def test_even_a_known_client_cannot_stop_the_server_from_the_other_host(site: Site) -> None:
    done = site.on_client("bert-serving-terminate", "-timeout", 2000, "-curve_dir", site.keys / "alice")
    assert done.returncode == 1
    assert "started with -allow_remote_termination" in done.stderr
    assert site.status()["ready"] is True


def test_a_protected_server_gives_no_warning_and_an_open_one_names_both_ports(
    site: Site, hosts: TwoHosts, tiny: Path
) -> None:
    def warnings(running: RunningServer) -> list[str]:
        return [line for line in running.log.splitlines() if "can use this server" in line]

    assert warnings(site.running) == []
    flags = ("-host", "0.0.0.0", "-allow_remote_termination")
    with RunningServer("-model_dir", tiny, "-cpu", *flags, prefix=hosts.server) as opened:
        opened.wait_ready()
        zeromq, http = warnings(opened)
        assert ("-curve_dir" in zeromq, "-api_key_file" in http) == (True, True)
        # Without CURVE and with the flag, the other host may stop it.
        Site(hosts, opened, site.keys).on_client("bert-serving-terminate")
        assert opened.wait_end() == 0


@pytest.mark.parametrize("block", blocks_run_by(__file__), ids=str)
def test_the_commands_of_a_page_work_on_two_hosts(
    block: CodeBlock, hosts: TwoHosts, tiny: Path, tmp_path: Path
) -> None:
    Authority(tmp_path).issue(tmp_path / "cert.pem", tmp_path / "key.pem", ip=SERVER_IP)
    (tmp_path / ".curlrc").write_text('fail\nnoproxy = "*"\n')
    code = re.sub(r"^(?=.*\bSERVER\b)", "$ON_CLIENT ", block.code, flags=re.M)
    code = re.sub(r"\bSERVER\b", SERVER_IP, code)
    code = re.sub(r"^bert-serving-start", "start bert-serving-start", code, flags=re.M)
    code = code.replace("kill -HUP PID", "hang_up $PID")
    environment = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "CURL_HOME": str(tmp_path),
        "BERT_SERVING_MODEL_DIR": str(tiny),
        "BERT_SERVING_CPU": "true",
        "ON_SERVER": shlex.join(hosts.server),
        "ON_CLIENT": shlex.join(hosts.client),
    }
    with subprocess.Popen(
        ["bash", "-c", ON_TWO_HOSTS.format(code=code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=tmp_path,
        env={**os.environ, **environment},
        start_new_session=True,
    ) as script:
        try:
            said, _ = script.communicate(timeout=HANG_S)
        except subprocess.TimeoutExpired:
            os.killpg(script.pid, signal.SIGKILL)
            raise
    assert script.returncode == 0, said + (tmp_path / "server.log").read_text()
