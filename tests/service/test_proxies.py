"""Behind a proxy: a UNIX socket for HTTP, and a prefix before all paths, which the proxy strips or leaves."""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from bert_serving.server.broker.ports import PortInUse
from bert_serving.server.supervisor.listeners import listen_unix

from tests.support.gateway import make_connection_limits
from tests.support.running_server import RunningServer
from tests.support.small_gateway import SmallGateway, read_all
from tests.support.waiting import HANG_S, wait_until

PREFIX = "/some/prefix"


@dataclass(frozen=True)
class Proxied:
    """A running server with a UNIX socket, a port and a prefix."""

    running: RunningServer
    socket: Path

    def client(self, *, on_socket: bool = False) -> httpx.Client:
        if on_socket:
            transport = httpx.HTTPTransport(uds=str(self.socket))
            return httpx.Client(transport=transport, base_url="http://localhost", timeout=HANG_S)
        return httpx.Client(base_url=self.running.url, timeout=HANG_S)


@pytest.fixture(scope="module")
def proxied(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxied]:
    path = tmp_path_factory.mktemp("s") / "http"
    flags = ["-http_socket", path, "-root_path", PREFIX, "-http_trusted_proxies", "unix"]
    with RunningServer("-model_dir", tiny, "-cpu", *flags) as running:
        yield Proxied(running.wait_ready(), path)


# -- the prefix ----------------------------------------------------------------------------------------


@pytest.fixture(params=["strips the prefix", "leaves the prefix"])
def seen(request: pytest.FixtureRequest) -> str:
    """What a proxy of this kind puts before the path that the server gets."""
    return "" if request.param == "strips the prefix" else PREFIX


def test_the_documentation_page_loads_its_files_and_the_document(proxied: Proxied, seen: str) -> None:
    with proxied.client() as client:
        page = client.get(f"{seen}/docs").raise_for_status().text
        urls = re.findall(r"(?:href=|src=|url: )[\"']([^\"']+)[\"']", page)
        assert len(urls) >= 3
        for url in urls:  # what a browser asks the proxy for
            assert url.startswith(f"{PREFIX}/")
            assert client.get(seen + url.removeprefix(PREFIX)).status_code == 200, url


def test_the_page_sends_its_requests_to_the_prefix(proxied: Proxied, seen: str) -> None:
    with proxied.client() as client:
        document = client.get(f"{seen}/openapi.json").raise_for_status().json()
        (server,) = document["servers"]
        assert server["url"] == PREFIX
        tried = server["url"] + "/embed"  # "Try it out"
        assert "/embed" in document["paths"]
        vectors = client.post(seen + tried.removeprefix(PREFIX), json={"inputs": ["hello"]})
        assert len(vectors.raise_for_status().json()) == 1


def test_a_browser_gets_the_page_and_its_files(proxied: Proxied, seen: str) -> None:
    with proxied.client() as client:
        page = client.get(f"{seen}/", headers={"Accept": "text/html"}).text
        assert f'<meta name="root" content="{PREFIX}" />' in page
        paths = re.findall(r'(?:src|href)="([^"]+)"', page)
        assert len(paths) == 7
        for path in paths:
            assert path.startswith(f"{PREFIX}/page/")
            assert client.get(seen + path.removeprefix(PREFIX)).status_code == 200, path


def test_the_prefix_alone_is_the_root(proxied: Proxied) -> None:
    with proxied.client() as client:
        assert client.get(PREFIX).json() == client.get(f"{PREFIX}?a=b").json() == {"status": "live"}


def test_a_path_that_only_begins_like_the_prefix_is_not_found(proxied: Proxied) -> None:
    with proxied.client() as client:
        assert client.get(f"{PREFIX}s/live").status_code == 404


def test_errors_have_the_format_of_their_path(proxied: Proxied, seen: str) -> None:
    with proxied.client() as client:
        assert "error" in client.get(f"{seen}/v1/no-such-path").json()
        body = {"texts": ["hello"], "model": "m", "input_type": "search_query"}
        meta = client.post(f"{seen}/v1/embed", json=body).raise_for_status().json()["meta"]
        assert meta["api_version"] == {"version": "1"}


def test_metrics_have_the_routes_without_the_prefix(proxied: Proxied, seen: str) -> None:
    with proxied.client() as client:
        client.post(f"{seen}/embed", json={"inputs": ["hello"]})
        text = client.get(f"{seen}/metrics").text
    assert 'route="/embed",status="200"' in text
    assert PREFIX not in text


def test_a_stream_under_the_prefix_may_be_slow(seen: str) -> None:
    """Less than 1 KiB/s, but always something within body_timeout_s. Pauses are short compared with this limit."""
    head = f"POST {seen}/slow HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 9\r\n\r\n"
    with (
        SmallGateway(make_connection_limits(body_timeout_s=2.5), root_path=PREFIX) as gateway,
        gateway.connect(head.encode()) as caller,
    ):
        for _ in range(9):
            time.sleep(0.5)
            caller.sendall(b"x")
        assert read_all(caller).endswith(b"\r\n\r\n9")


# -- the socket ----------------------------------------------------------------------------------------


def test_the_socket_and_the_port_serve_the_same(proxied: Proxied) -> None:
    replies = []
    for on_socket in (False, True):
        with proxied.client(on_socket=on_socket) as client:
            replies.append(client.post("/embed", json={"inputs": ["hello"]}).raise_for_status().json())
    assert replies[0] == replies[1]


def test_the_log_names_the_socket(proxied: Proxied) -> None:
    said = f"HTTP is ready on 127.0.0.1 port {proxied.running.http_port} and {proxied.socket}"
    assert said in proxied.running.log


@pytest.mark.parametrize(("trusted", "second"), [("", b"unix"), ("unix", b"10.1.2.3")])
def test_callers_on_the_socket_have_one_name_or_the_one_that_a_trusted_proxy_says(
    tmp_path: Path, trusted: str, second: bytes
) -> None:
    ask = b"GET /who HTTP/1.1\r\nHost: x\r\nConnection: close\r\n%s\r\n"
    limits = make_connection_limits()
    with (
        listen_unix(str(tmp_path / "http")) as listener,
        SmallGateway(limits, listener=listener, trusted_proxies=trusted) as gateway,
    ):
        assert gateway.ask(ask % b"").endswith(b"\r\n\r\nunix")
        assert gateway.ask(ask % b"X-Forwarded-For: 10.1.2.3\r\n").endswith(b"\r\n\r\n" + second)


def test_a_caller_on_the_socket_that_leaves_is_noticed(proxied: Proxied) -> None:
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(str(proxied.socket))
        caller.sendall(b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
    with proxied.client(on_socket=True) as client:
        wait_until(lambda: 'route="/embed",status="499"' in client.get("/metrics").text)


def test_a_server_may_serve_http_on_its_socket_only(tiny: Path, tmp_path: Path) -> None:
    """A file that a killed server has left behind is replaced, and a server that ends removes its file."""
    path = tmp_path / "http"
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
    with RunningServer("-model_dir", tiny, "-cpu", "-http_socket", path, http=False) as running:
        running.wait_ready()
        with httpx.Client(
            transport=httpx.HTTPTransport(uds=str(path)), base_url="http://localhost", timeout=HANG_S
        ) as client:
            assert client.get("/ready", timeout=HANG_S).status_code == 200
        running.signal(signal.SIGTERM)
        assert running.wait_end() == 0
        running.assert_nothing_left()
    assert not path.exists()


# -- the file of a socket ------------------------------------------------------------------------------


def test_a_socket_in_use_is_an_error_and_goes_on(tmp_path: Path) -> None:
    path = str(tmp_path / "http")
    with listen_unix(path) as listener, socket.socket(socket.AF_UNIX) as caller:
        with (
            pytest.raises(PortInUse, match=r"cannot listen on .*http \(http_socket\): it is in use"),
            listen_unix(path),
        ):
            pass
        caller.connect(path)
        listener.accept()[0].close()


def test_a_busy_socket_is_in_use_too(tmp_path: Path) -> None:
    path = str(tmp_path / "http")
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(path)
        listener.listen(0)
        waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
        waiting.connect(path)  # no other connection fits into the queue
        with pytest.raises(PortInUse, match="in use"), listen_unix(path):
            pass


def test_another_file_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "http"
    path.write_text("precious")
    with pytest.raises(PortInUse, match="there is a file that is not a socket"), listen_unix(str(path)):
        pass
    assert path.read_text() == "precious"


@pytest.mark.parametrize(
    ("name", "said"), [("no/such/folder", "No such file or directory"), ("a" * 200, "path too long")]
)
def test_a_path_that_cannot_be_used_is_an_error(tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(PortInUse, match=said), listen_unix(str(tmp_path / name)):
        pass


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o755), (0o007, 0o770), (0o077, 0o700)])
def test_the_umask_decides_who_may_connect(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        with listen_unix(str(tmp_path / "http")):
            assert stat.S_IMODE((tmp_path / "http").stat().st_mode) == mode
    finally:
        os.umask(before)


def test_the_file_of_another_server_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "http"
    with ExitStack() as stack:
        with listen_unix(str(path)):
            path.unlink()
            stack.enter_context(listen_unix(str(path)))
        assert path.exists()
    assert not path.exists()
