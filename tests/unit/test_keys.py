"""API keys: the file that holds them, which requests they let in, and how many texts each of them may send."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextvars import copy_context
from pathlib import Path
from typing import Any

import pytest
from bert_serving.protocol import Overloaded, Unauthorized
from bert_serving.server.gateway.keys import API_KEY, Keyring, TokenBucket
from bert_serving.server.keys import (
    ApiKey,
    KeyFileError,
    KeySource,
    hash_of,
    hash_of_sent,
    read_key_file,
    unnamed_keys,
)
from fastapi import Request

FILE = """
# a comment
alice  secret-of-alice  texts_per_minute=60 share=0.2

bob    secret-of-bob
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(FILE)
    return path


def request_with(key: str = "") -> Request:
    return Request({"type": "http", "headers": [(b"x-api-key", key.encode())] if key else []})


def keyring_of(path: Path, **source: Any) -> Keyring:
    return Keyring(KeySource(file=path, from_file=read_key_file(path), **source))


def admitted(keys: Keyring, key: str) -> ApiKey | None:
    """Return the key that the request's scope has after the check."""
    request = request_with(key)
    keys.check(request)
    return request.scope.get(API_KEY)


# -- hashes --------------------------------------------------------------------------------------------


def test_a_hash_can_stand_for_its_key_in_settings_but_not_in_a_request() -> None:
    hashed = hash_of("secret")
    assert hash_of(hashed) == hashed
    assert hash_of_sent(hashed) != hashed
    keys = Keyring(KeySource(unnamed_keys([hashed])))
    assert admitted(keys, "secret") is not None
    with pytest.raises(Unauthorized):
        admitted(keys, hashed)


def test_a_key_is_nowhere_in_memory_and_its_hash_not_in_the_repr(path: Path) -> None:
    for key in read_key_file(path):
        assert key.hashed.startswith("sha256:")
        assert "secret" not in repr(key)
        assert key.hashed not in repr(key)


# -- the key file --------------------------------------------------------------------------------------


def test_a_line_has_a_name_a_key_and_limits(path: Path) -> None:
    assert read_key_file(path) == (
        ApiKey("alice", hash_of("secret-of-alice"), texts_per_minute=60, share=0.2),
        ApiKey("bob", hash_of("secret-of-bob")),
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no key: expected NAME KEY"),
        ("# only a comment\n", "has no key"),
        ("alice\n", "line 1: 'alice' has no key"),
        ("bob k1\nal/ice s3cret\n", "line 2: a name must have 1 to 64 letters"),
        ("alice s3cret texts_per_minute=0\n", "texts_per_minute must be a whole number above 0, got '0'"),
        ("alice s3cret share=2\n", "share must be a number above 0 and at most 1, got '2'"),
        ("alice s3cret share=nan\n", "share must be a number above 0 and at most 1, got 'nan'"),
        ("alice s3cret speed=2\n", "has an unknown limit 'speed'"),
        ("alice s3crét\n", "line 1: a key must be a non-empty text of ASCII characters"),
        ("alice s3cret\nalice other\n", "names must differ, got 'alice' twice"),
        ("alice s3cret\nbob s3cret\n", "'alice' and 'bob' have the same key"),
    ],
)
def test_an_error_in_the_file_is_one_line_without_the_key(path: Path, text: str, said: str) -> None:
    path.write_text(text)
    with pytest.raises(KeyFileError) as caught:
        read_key_file(path)
    message = str(caught.value)
    assert said in message
    assert str(path) in message
    assert "s3cr" not in message
    assert "\n" not in message


def test_a_missing_file_and_a_binary_file_are_errors_that_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match=r"cannot read api_key_file .*: No such file"):
        read_key_file(tmp_path / "none")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(KeyFileError, match="not UTF-8"):
        read_key_file(tmp_path / "binary")


# -- the keys of a gateway -----------------------------------------------------------------------------


def test_the_scope_of_a_request_has_its_key(path: Path) -> None:
    keys = keyring_of(path, fixed=unnamed_keys([hash_of("plain")]))
    assert keys.names == ["api_key-1", "alice", "bob"]
    assert admitted(keys, "secret-of-alice") == read_key_file(path)[0]
    assert admitted(keys, "plain") == ApiKey("api_key-1", hash_of("plain"))
    for wrong in ("", "secret-of-carol", "alice"):
        with pytest.raises(Unauthorized, match="send Authorization: Bearer <key>"):
            admitted(keys, wrong)


def test_reload_takes_new_keys_and_forgets_removed_ones(path: Path) -> None:
    keys = keyring_of(path)
    path.write_text("carol secret-of-carol")
    keys.reload()
    assert admitted(keys, "secret-of-carol") is not None
    with pytest.raises(Unauthorized):
        admitted(keys, "secret-of-bob")


@pytest.mark.parametrize("text", ["", "alice", None])
def test_a_bad_file_keeps_the_keys_and_logs_one_line(
    path: Path, text: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    keys = keyring_of(path)
    path.unlink()
    if text is not None:
        path.write_text(text)
    keys.reload()
    assert keys.names == ["alice", "bob"]
    (line,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert line.startswith("kept the present API keys: ")


# -- texts per minute ----------------------------------------------------------------------------------


def send_texts(keys: Keyring, num_texts: int) -> None:
    with keys.charge(num_texts):
        pass


def in_request(call: Callable[[], None]) -> None:
    """Call a function as a gateway does: each request has a context of its own."""
    copy_context().run(call)


def test_a_key_over_its_limit_is_overloaded_and_others_are_not(path: Path) -> None:
    keys = keyring_of(path)

    def send(key: str, num_texts: int) -> None:
        keys.check(request_with(key))
        send_texts(keys, num_texts)

    in_request(lambda: send("secret-of-alice", 60))
    with pytest.raises(Overloaded, match="'alice' may send 60 texts per minute") as caught:
        in_request(lambda: send("secret-of-alice", 30))
    assert 29_000 < (caught.value.retry_after_ms or 0) <= 30_000
    in_request(lambda: send("secret-of-bob", 1000))
    in_request(lambda: send_texts(keys, 1000))  # without a key there is no limit
    keys.reload()
    with pytest.raises(Overloaded):
        in_request(lambda: send("secret-of-alice", 30))


def test_each_gateway_allows_its_part(path: Path) -> None:
    keys = keyring_of(path, num_gateways=2)
    keys.check(request_with("secret-of-alice"))
    send_texts(keys, 30)
    with pytest.raises(Overloaded):
        send_texts(keys, 1)


def test_texts_that_the_server_is_too_busy_for_do_not_count(path: Path) -> None:
    keys = keyring_of(path)
    keys.check(request_with("secret-of-alice"))
    with pytest.raises(Overloaded, match="the queue is full"), keys.charge(60):
        raise Overloaded("the queue is full")
    send_texts(keys, 60)


def test_a_bucket_refills_and_pays_for_a_request_larger_than_itself() -> None:
    bucket = TokenBucket(60)
    assert bucket.take(100, 0.0) == 0  # a full bucket allows any request
    assert bucket.take(1, 0.0) == pytest.approx(41)
    assert bucket.take(1, 41.0) == 0
    assert bucket.take(60, 41.0) == pytest.approx(60)
    assert bucket.take(100, 101.0) == 0
    assert bucket.take(1, 1e6) == 0
    assert bucket.take(60, 1e6) == pytest.approx(1)  # it never holds more than one minute's texts


def test_over_any_time_a_bucket_allows_no_more_than_its_rate_and_one_minute() -> None:
    bucket, allowed = TokenBucket(60), 0
    for now in range(600):
        allowed += 7 * (bucket.take(7, float(now)) == 0)
    assert 600 <= allowed <= 660 + 7
