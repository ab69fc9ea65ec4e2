"""API keys: the file that holds them, which requests they let in, and how many texts each of them may send."""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Callable
from contextvars import copy_context
from pathlib import Path
from typing import Any

import pytest
from bert_serving.protocol import DeadlineExceeded, Overloaded, ServingError, Unauthorized, Unavailable
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
from bert_serving.server.logs import LogOptions
from bert_serving.server.supervisor.process import Program
from fastapi import Request

from tests.support.code_blocks import blocks_run_by

FILE = """
# a comment
alice  secret-of-alice-1  texts_per_minute=60 share=0.2

bob    secret-of-bob-123
"""


SECRET = "s3cret-0123456789"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(FILE)
    return path


def request_with(key: str = "") -> Request:
    return Request({"type": "http", "headers": [(b"x-api-key", key.encode())] if key else []})


def keyring_of(path: Path, **source: Any) -> Keyring:
    return Keyring(KeySource(file=path, **source))


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
        ApiKey("alice", hash_of("secret-of-alice-1"), texts_per_minute=60, share=0.2),
        ApiKey("bob", hash_of("secret-of-bob-123")),
    )


def test_the_file_of_the_page_is_read(path: Path) -> None:
    (block,) = blocks_run_by(__file__)
    path.write_text(block.code)
    search, reports = read_key_file(path)
    assert (search.name, search.texts_per_minute, search.share) == ("search", 6000, 0.2)
    assert (reports.name, reports.texts_per_minute, reports.share) == ("reports", None, None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no key: expected NAME KEY"),
        ("# only a comment\n", "has no key"),
        (f"# a comment\n{SECRET}\n", "line 2: there is only one word; expected NAME KEY"),
        (f"bob the-key-of-bob-1\nal/ice {SECRET}\n", "line 2: a name must have 1 to 64 letters"),
        (f"{SECRET}+/= alice\n", "line 1: a name must have 1 to 64 letters"),
        (f"{SECRET} alice\n", "line 1: the second word, the key, must have at least 16 characters"),
        ("alice s3cret-short\n", "the key, must have at least 16 characters"),
        (f"api_key-1 {SECRET}\n", "line 1: names of the form api_key-N stand for the keys of -api_key"),
        (f"alice {SECRET} texts_per_minute=0\n", "texts_per_minute must be a whole number above 0"),
        (f"alice {SECRET} texts_per_minute={SECRET}\n", "texts_per_minute must be a whole number above 0"),
        (f"alice {SECRET} texts_per_minute={'9' * 5000}\n", "of at most 12 digits"),
        (f"alice {SECRET} share=2\n", "share must be a number above 0 and at most 1"),
        (f"alice {SECRET} share=nan\n", "share must be a number above 0 and at most 1"),
        (f"alice {SECRET} share={SECRET}\n", "share must be a number above 0 and at most 1"),
        (f"team search-as-a-service {SECRET}\n", "after the key, only texts_per_minute=N and share=S may follow"),
        (f"alice {SECRET}-é\n", "line 1: a key must be a non-empty text of ASCII characters"),
        (f"alice sha256:{SECRET}\n", "after sha256: there must be 64 characters of 0-9 and a-f"),
        (f"{SECRET} the-key-of-alice\n{SECRET} the-key-of-bob-1\n", "line 2: the name is the same as in line 1"),
        (f"alice {SECRET}\n\nbob {SECRET}\n", "line 3: the key is the same as in line 1"),
        (f"alice {SECRET}\nbob {hash_of(SECRET)}\n", "line 2: the key is the same as in line 1"),
    ],
)
def test_an_error_in_the_file_is_one_line_that_repeats_no_word_of_it(path: Path, text: str, said: str) -> None:
    path.write_text(text)
    with pytest.raises(KeyFileError) as caught:
        read_key_file(path)
    message = str(caught.value)
    assert said in message
    assert str(path) in message
    assert not [word for word in text.split() if len(word) > 4 and word in message.replace(str(path), "")]
    assert "s3cret" not in message
    assert "\n" not in message


def test_a_key_of_the_file_must_not_be_a_key_of_the_settings_too(path: Path) -> None:
    """Otherwise it would be open which limits it has."""
    with pytest.raises(KeyFileError, match="line 3: the key is also in -api_key or BERT_SERVING_API_KEY"):
        KeySource(unnamed_keys([hash_of("secret-of-alice-1")]), path)


def test_a_missing_file_and_a_binary_file_are_errors_that_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match=r"cannot read api_key_file .*: No such file"):
        read_key_file(tmp_path / "none")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(KeyFileError, match="not UTF-8"):
        read_key_file(tmp_path / "binary")


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_only_a_regular_file_is_read(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """A pipe could stop the server until somebody writes."""
    make(tmp_path / "keys")
    with pytest.raises(KeyFileError, match="it is not a regular file"):
        read_key_file(tmp_path / "keys")


# -- the keys of a gateway -----------------------------------------------------------------------------


def test_the_scope_of_a_request_has_its_key(path: Path) -> None:
    keys = keyring_of(path, fixed=unnamed_keys([hash_of("plain")]))
    assert keys.names == ["api_key-1", "alice", "bob"]
    assert admitted(keys, "secret-of-alice-1") == read_key_file(path)[0]
    assert admitted(keys, "plain") == ApiKey("api_key-1", hash_of("plain"))
    for wrong in ("", "secret-of-carol-123", "alice"):
        with pytest.raises(Unauthorized, match="send Authorization: Bearer <key>"):
            admitted(keys, wrong)


def test_reload_takes_new_keys_and_forgets_removed_ones(path: Path) -> None:
    keys = keyring_of(path)
    path.write_text("carol secret-of-carol-123")
    keys.reload()
    assert admitted(keys, "secret-of-carol-123") is not None
    with pytest.raises(Unauthorized):
        admitted(keys, "secret-of-bob-123")


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


@pytest.mark.parametrize("text", ["", "alice", None])
def test_a_new_gateway_gets_the_keys_that_the_server_has_read_last(path: Path, text: str | None) -> None:
    """Whatever is in the file when it starts. So a key that was removed is never accepted again."""
    source = KeySource(file=path)
    program = Program("gateway", "module:main", {"api_keys": source}, LogOptions(), "/")
    path.write_text("bob secret-of-bob-123")
    assert source.reload()
    path.unlink()
    if text is not None:
        path.write_text(text)
    assert not source.reload()
    keys = Keyring(pickle.loads(pickle.dumps(program)).kwargs["api_keys"])
    assert keys.names == ["bob"]
    with pytest.raises(Unauthorized):
        admitted(keys, "secret-of-alice-1")


def test_keys_without_a_file_are_not_read_again() -> None:
    source = KeySource(unnamed_keys([hash_of("plain")]))
    assert not source.reload()
    assert Keyring(source).names == ["api_key-1"]


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

    in_request(lambda: send("secret-of-alice-1", 60))
    with pytest.raises(Overloaded, match="'alice' may send 60 texts per minute") as caught:
        in_request(lambda: send("secret-of-alice-1", 30))
    assert 29_000 < (caught.value.retry_after_ms or 0) <= 30_000
    in_request(lambda: send("secret-of-bob-123", 1000))
    in_request(lambda: send_texts(keys, 1000))  # without a key there is no limit
    keys.reload()
    with pytest.raises(Overloaded):
        in_request(lambda: send("secret-of-alice-1", 30))


def test_each_gateway_allows_its_part(path: Path) -> None:
    keys = keyring_of(path, num_gateways=2)
    keys.check(request_with("secret-of-alice-1"))
    send_texts(keys, 30)
    with pytest.raises(Overloaded, match="60 texts per minute; each of the 2 HTTP processes allows an equal part"):
        send_texts(keys, 1)


@pytest.mark.parametrize("error", [Overloaded("the queue is full"), Unavailable("no worker")])
def test_texts_that_the_caller_shall_send_again_do_not_count(path: Path, error: ServingError) -> None:
    keys = keyring_of(path)
    keys.check(request_with("secret-of-alice-1"))
    with pytest.raises(type(error), match=str(error)), keys.charge(60):
        raise error
    send_texts(keys, 60)


def test_texts_count_that_may_have_been_computed_when_the_deadline_passed(path: Path) -> None:
    keys = keyring_of(path)
    keys.check(request_with("secret-of-alice-1"))
    with pytest.raises(DeadlineExceeded), keys.charge(60):
        raise DeadlineExceeded("too late")
    with pytest.raises(Overloaded):
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
