"""bert-serving-keys makes keys that only their owner can read, and never overwrites any."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from bert_serving.server.broker.curve import CurveError, CurveServer
from bert_serving.server.cli.keys import main
from zmq.auth.certs import load_certificate


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_server_and_clients_get_their_keys_and_the_next_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "keys"
    assert main([str(folder), "alice", "bob"]) == 0
    assert contents(folder).keys() == {
        "server.key",
        "server.key_secret",
        *(f"clients/{name}.key" for name in ("alice", "bob")),
        *(f"{name}/{file}" for name in ("alice", "bob") for file in ("server.key", "client.key_secret")),
    }
    server, secret = load_certificate(folder / "server.key_secret")
    assert secret is not None
    assert load_certificate(folder / "alice" / "server.key") == (server, None)
    alice, secret_of_alice = load_certificate(folder / "alice" / "client.key_secret")
    assert secret_of_alice is not None
    assert load_certificate(folder / "clients" / "alice.key") == (alice, None)
    said = capsys.readouterr().out
    for line in (f"bert-serving-start -curve_dir {folder}", 'curve_dir="alice"', "bert-serving-status"):
        assert line in said
    assert secret.decode() not in said


def test_only_the_owner_can_read_them(tmp_path: Path) -> None:
    main([str(tmp_path / "keys"), "alice"])
    for path in [tmp_path / "keys", *(tmp_path / "keys").rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)


def test_more_clients_can_be_added_and_the_servers_keys_stay(tmp_path: Path) -> None:
    main([str(tmp_path), "alice"])
    before = contents(tmp_path)
    assert main([str(tmp_path), "bob"]) == 0
    assert contents(tmp_path).items() > before.items()


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["alice"], "exists; remove it, or choose another name"),
        (["bob", "alice"], "exists"),
        (["clients"], "must not be 'clients'"),
        (["../bob"], "a client's name must have 1 to 64 letters"),
        ([".bob"], "must not begin with '.'"),
        (["bob", "bob"], "got the name 'bob' twice"),
    ],
)
def test_a_refused_name_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], names: list[str], said: str
) -> None:
    main([str(tmp_path), "alice"])
    before = contents(tmp_path)
    capsys.readouterr()
    assert main([str(tmp_path), *names]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert contents(tmp_path) == before


def test_half_of_the_servers_pair_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(tmp_path)])
    (tmp_path / "server.key").unlink()
    assert main([str(tmp_path), "alice"]) == 1
    assert "only one of server.key and server.key_secret" in capsys.readouterr().err


# -- what the server reads -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("removed", "said"),
    [
        ("server.key_secret", "cannot read .*server.key_secret.*bert-serving-keys makes this file"),
        ("clients", "cannot read the clients' keys in .*clients"),
    ],
)
def test_a_missing_key_is_an_error_that_names_it(tmp_path: Path, removed: str, said: str) -> None:
    main([str(tmp_path)])
    path = tmp_path / removed
    path.unlink() if path.is_file() else path.rmdir()
    with pytest.raises(CurveError, match=said):
        CurveServer(tmp_path)


def test_a_public_key_in_place_of_the_pair_is_an_error(tmp_path: Path) -> None:
    main([str(tmp_path)])
    (tmp_path / "server.key_secret").write_bytes((tmp_path / "server.key").read_bytes())
    with pytest.raises(CurveError, match="has no secret-key"):
        CurveServer(tmp_path)
