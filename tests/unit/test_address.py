"""The address of a server: endpoints, keys from files, and what its repr does not show."""

from __future__ import annotations

from pathlib import Path

import pytest
import zmq
import zmq.auth
from bert_serving.client.address import CURVE_DIR_VARIABLE, Address, CurveKeys, curve_keys


@pytest.fixture
def curve_dir(tmp_path: Path) -> Path:
    """A folder with the keys of a client and the public key of a server."""
    for name in ("server", "client"):
        zmq.auth.create_certificates(tmp_path, name)
    return tmp_path


@pytest.mark.parametrize(("ip", "host"), [("localhost", "localhost"), ("10.0.0.1", "10.0.0.1"), ("::1", "[::1]")])
def test_tcp_address_has_both_endpoints(ip: str, host: str) -> None:
    address = Address.tcp(ip, 1, 2)
    assert (address.requests, address.replies) == (f"tcp://{host}:1", f"tcp://{host}:2")
    assert (address.requests_name, address.replies_name) == (f"{host}:1", f"{host}:2")
    assert address.is_ipv6 == (ip == "::1")


def test_keys_are_read_from_their_files_and_secrets_are_not_shown(curve_dir: Path) -> None:
    keys = CurveKeys.load(curve_dir)
    assert keys.server == zmq.auth.load_certificate(curve_dir / "server.key")[0]
    assert (keys.public, keys.secret) == zmq.auth.load_certificate(curve_dir / "client.key_secret")
    assert keys.secret.decode() not in repr(Address.tcp("localhost", 1, 2, keys))


def test_the_folder_may_be_in_the_environment(curve_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CURVE_DIR_VARIABLE, str(curve_dir))
    assert curve_keys(None) == CurveKeys.load(curve_dir)
    monkeypatch.delenv(CURVE_DIR_VARIABLE)
    assert curve_keys(None) is None


@pytest.mark.parametrize("name", ["server.key", "client.key_secret"])
def test_missing_file_is_an_error_that_names_the_file(curve_dir: Path, name: str) -> None:
    (curve_dir / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"there is no {curve_dir / name}"):
        CurveKeys.load(curve_dir)


def test_missing_folder_is_an_error_that_says_what_it_should_have(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"server\.key .* client\.key_secret"):
        CurveKeys.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "content", "trouble"),
    [
        ("server.key", "", "No public key found"),
        ("server.key", 'curve\n public-key = "short"\n', "keys of 40 characters, got one of 5"),
        ("client.key_secret", f'curve\n public-key = "{"x" * 40}"\n', "must have a secret-key"),
    ],
)
def test_file_without_a_key_is_an_error_that_names_the_file(
    curve_dir: Path, name: str, content: str, trouble: str
) -> None:
    (curve_dir / name).write_text(content)
    with pytest.raises(ValueError, match=trouble) as caught:
        CurveKeys.load(curve_dir)
    assert str(curve_dir / name) in str(caught.value)


def test_libzmq_without_curve_is_an_error_that_says_so(curve_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zmq, "has", lambda _: False)
    with pytest.raises(RuntimeError, match="libzmq with CURVE"):
        CurveKeys.load(curve_dir)
