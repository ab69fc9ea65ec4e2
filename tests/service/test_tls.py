"""HTTP with TLS: callers that trust the authority get replies, and SIGHUP changes the certificate."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from tests.support.certificates import Authority
from tests.support.image import health_check
from tests.support.running_server import RunningServer, free_ports, run_start
from tests.support.waiting import HANG_S, wait_until

NUM_GATEWAYS = 2


@dataclass(frozen=True)
class Encrypted:
    """A running server with TLS, the files of its certificate, and the authority that signs its certificates."""

    running: RunningServer
    authority: Authority
    cert: Path
    key: Path

    @property
    def url(self) -> str:
        return f"https://localhost:{self.running.http_port}"

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, verify=self.authority.client_context, timeout=HANG_S)

    def serial(self) -> int:
        """Return the serial number of the certificate that a new connection gets."""
        with (
            socket.create_connection(("127.0.0.1", self.running.http_port), HANG_S) as plain,
            self.authority.client_context.wrap_socket(plain, server_hostname="localhost") as connection,
        ):
            certificate = connection.getpeercert()
        return int(certificate["serialNumber"], 16)

    def renew(self) -> int:
        """Write a new certificate and send SIGHUP; return its serial number."""
        serial = self.authority.issue(self.cert, self.key)
        self.running.signal(signal.SIGHUP)
        return serial

    def gateways(self) -> list[psutil.Process]:
        found = []
        for process in psutil.Process(self.running.process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):  # after SIGHUP, workers end at any time
                ports = [connection.laddr.port for connection in process.net_connections("tcp")]
                found += [process] if self.running.http_port in ports else []
        return found


@pytest.fixture(scope="module")
def encrypted(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Encrypted]:
    folder = tmp_path_factory.mktemp("tls")
    authority, cert, key = Authority(folder), folder / "cert.pem", folder / "key.pem"
    authority.issue(cert, key)
    flags = ["-tls_cert", cert, "-tls_key", key, "-http_workers", NUM_GATEWAYS, "-http_socket", folder / "http"]
    with RunningServer("-model_dir", tiny, "-cpu", *flags) as running:
        yield Encrypted(running.wait_ready(), authority, cert, key)


def test_callers_get_vectors(encrypted: Encrypted) -> None:
    with encrypted.client() as client:
        reply = client.post("/embed", json={"inputs": ["hello"] * 3})
        assert len(reply.raise_for_status().json()) == 3
        assert "timeout=" in reply.headers["keep-alive"]


def test_a_large_body_and_a_large_response_arrive_whole(encrypted: Encrypted) -> None:
    texts = [f"text {number}" for number in range(20_000)]
    with encrypted.client() as client:
        vectors = client.post("/embed", json={"inputs": texts}).raise_for_status().json()
        raw = client.post("/embed", json={"inputs": texts}, headers={"Accept": "application/octet-stream"})
    assert len(vectors) == len(texts)
    assert len(raw.raise_for_status().content) == 4 * len(texts) * len(vectors[0])


def test_the_log_says_that_the_port_has_tls(encrypted: Encrypted) -> None:
    assert f"HTTP is ready on 127.0.0.1 port {encrypted.running.http_port} with TLS" in encrypted.running.log


def test_the_unix_socket_has_no_tls(encrypted: Encrypted) -> None:
    transport = httpx.HTTPTransport(uds=str(encrypted.cert.parent / "http"))
    with httpx.Client(transport=transport, base_url="http://localhost", timeout=HANG_S) as client:
        assert len(client.post("/embed", json={"inputs": "hello"}).raise_for_status().json()) == 1


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl_gets_vectors(encrypted: Encrypted) -> None:
    body = json.dumps({"inputs": "hello"})
    trust = ["--cacert", str(encrypted.authority.file)]
    done = subprocess.run(
        ["curl", "-sS", *trust, f"{encrypted.url}/embed", "-H", "Content-Type: application/json", "-d", body],
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=True,
    )
    assert len(json.loads(done.stdout)) == 1


def test_the_health_check_of_the_image_works_with_tls(encrypted: Encrypted) -> None:
    subprocess.run(health_check(encrypted.running.http_port), timeout=HANG_S, check=True)


def test_callers_that_do_not_trust_the_certificate_or_use_no_tls_get_nothing(encrypted: Encrypted) -> None:
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(f"{encrypted.url}/live", timeout=HANG_S)
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{encrypted.running.url}/live", timeout=HANG_S)


def test_sighup_changes_the_certificate_and_drops_no_connection(encrypted: Encrypted) -> None:
    with encrypted.client() as client:
        first = client.get("/live")
        serial = encrypted.renew()
        wait_until(lambda: [encrypted.serial() for _ in range(20)] == [serial] * 20, lambda: encrypted.running.log)
        wait_until(lambda: encrypted.running.log.count("gateway-0: read the TLS certificate") == 1)
        wait_until(lambda: encrypted.running.log.count("gateway-1: read the TLS certificate") == 1)
        same = client.get("/live")
    stream = first.extensions["network_stream"]
    assert (same.status_code, same.extensions["network_stream"]) == (200, stream)


def test_a_broken_file_changes_nothing_and_is_logged_once(encrypted: Encrypted) -> None:
    serial = encrypted.serial()
    encrypted.cert.write_text("not a certificate")
    encrypted.running.signal(signal.SIGHUP)
    said = f"kept the present TLS certificate: tls_cert {encrypted.cert} has no certificate in PEM format"
    encrypted.running.wait_for(said)
    assert {encrypted.serial() for _ in range(20)} == {serial}
    for gateway in encrypted.gateways():
        gateway.kill()
    assert {encrypted.serial() for _ in range(20)} == {serial}  # connections wait for the new gateways
    assert encrypted.running.log.count("kept the present TLS certificate") == 1


def test_a_gateway_that_is_started_again_has_the_current_certificate(encrypted: Encrypted) -> None:
    serial = encrypted.renew()
    wait_until(lambda: {encrypted.serial() for _ in range(20)} == {serial}, lambda: encrypted.running.log)
    for gateway in encrypted.gateways():
        gateway.kill()
    assert {encrypted.serial() for _ in range(20)} == {serial}


def test_no_part_of_the_key_is_in_the_log_or_the_list_of_processes(encrypted: Encrypted) -> None:
    secrets = encrypted.key.read_text().splitlines()[1:-1]
    shown = [encrypted.running.log]
    for process in psutil.Process(encrypted.running.process.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            shown += process.cmdline()
    assert [line for line in secrets for text in shown if line in text] == []


def test_files_that_do_not_fit_end_the_start_in_one_line(tiny: Path, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    authority.issue(tmp_path / "cert.pem", tmp_path / "old.pem")
    authority.issue(tmp_path / "other.pem", tmp_path / "key.pem")
    ports = ["-port", "-port_out", "-http_port"]
    flags = [word for pair in zip(ports, free_ports(3), strict=True) for word in pair]
    tls = ["-tls_cert", tmp_path / "cert.pem", "-tls_key", tmp_path / "key.pem"]
    done = run_start("-model_dir", tiny, "-cpu", *flags, *tls)
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert "key.pem is not the key of the certificate" in line
