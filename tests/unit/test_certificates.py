"""A certificate is read again from its files. An error in them is one line, and the present certificate stays."""

from __future__ import annotations

import logging
import pickle
import ssl
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from bert_serving.server.tls import CertificateSource, TlsError

from tests.support.certificates import Authority


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def certificate_of(source: CertificateSource, authority: Authority) -> int:
    """Do a handshake in memory; return the serial number of the certificate that the server sent."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = authority.client_context.wrap_bio(to_client, to_server, server_hostname="localhost")
    server = source.new_context().wrap_bio(to_server, to_client, server_side=True)
    for _ in range(3):
        for side in (client, server):
            with suppress(ssl.SSLWantReadError):
                side.do_handshake()
    assert client.selected_alpn_protocol() is None
    return int(client.getpeercert()["serialNumber"], 16)


def test_the_certificate_is_the_one_of_the_files_when_they_were_read(authority: Authority, tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    first = authority.issue(cert, key)
    source = CertificateSource(cert, key)
    second = authority.issue(cert, key)
    assert certificate_of(source, authority) == first
    assert source.reload()
    assert certificate_of(source, authority) == second


def test_one_file_may_hold_the_certificate_and_its_key(authority: Authority, tmp_path: Path) -> None:
    both = tmp_path / "both.pem"
    serial = authority.issue(tmp_path / "cert.pem", tmp_path / "key.pem")
    both.write_bytes((tmp_path / "key.pem").read_bytes() + (tmp_path / "cert.pem").read_bytes())
    assert certificate_of(CertificateSource(both, both), authority) == serial


def test_a_copy_for_a_new_process_needs_no_files(authority: Authority, tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    serial = authority.issue(cert, key)
    source = CertificateSource(cert, key)
    cert.unlink()
    key.write_text("nothing")
    assert not source.reload()
    copy = pickle.loads(pickle.dumps(source))
    assert certificate_of(copy, authority) == serial
    assert "PRIVATE" not in repr(copy)


def _unlink(path: Path) -> None:
    path.unlink()


def _text(path: Path) -> None:
    path.write_text("not PEM")


def _damaged(path: Path) -> None:
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1][::-1], *lines[2:]]))


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _huge(path: Path) -> None:
    path.write_bytes(b" " * (2 << 20))


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("cert", _unlink, "cannot read tls_cert {cert}: No such file or directory"),
        ("key", _unlink, "cannot read tls_key {key}: No such file or directory"),
        ("cert", _folder, "cannot read tls_cert {cert}: it is not a regular file"),
        ("key", _huge, "cannot read tls_key {key}: it has more than 1048576 bytes"),
        ("cert", _text, "tls_cert {cert} has no certificate in PEM format"),
        ("key", _text, "tls_key {key} has no private key in PEM format"),
        ("cert", _damaged, "cannot use tls_cert {cert} with tls_key {key}: "),
        ("key", _damaged, "cannot use tls_cert {cert} with tls_key {key}: "),
    ],
)
def test_a_file_with_an_error_is_one_line_and_changes_nothing(
    authority: Authority,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    name: str,
    damage: Callable[[Path], None],
    said: str,
) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    serial = authority.issue(cert, key)
    source = CertificateSource(cert, key)
    damage(tmp_path / f"{name}.pem")
    with pytest.raises(TlsError) as caught:
        CertificateSource(cert, key)
    line = str(caught.value)
    assert line.startswith(said.format(cert=cert, key=key))
    assert "\n" not in line
    assert not source.reload()
    errors = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert errors == [f"kept the present TLS certificate: {line}"]
    assert certificate_of(source, authority) == serial


def test_a_key_of_another_certificate_is_refused(authority: Authority, tmp_path: Path) -> None:
    authority.issue(tmp_path / "cert.pem", tmp_path / "old.pem")
    authority.issue(tmp_path / "other.pem", tmp_path / "key.pem")
    with pytest.raises(TlsError, match=r"key\.pem is not the key of the certificate .*cert\.pem"):
        CertificateSource(tmp_path / "cert.pem", tmp_path / "key.pem")


def test_a_key_with_a_password_is_refused_and_nobody_is_asked(authority: Authority, tmp_path: Path) -> None:
    authority.issue(tmp_path / "cert.pem", tmp_path / "key.pem", password=b"secret")
    with pytest.raises(TlsError, match=r"key\.pem is protected by a password"):
        CertificateSource(tmp_path / "cert.pem", tmp_path / "key.pem")
