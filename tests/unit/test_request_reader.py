"""Of a message with too many frames, only the first are kept, and other clients do not wait for long."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import zmq
from bert_serving.server.broker import request_reader
from bert_serving.server.broker.budget import Budget
from bert_serving.server.broker.request_reader import RequestReader

from tests.support.waiting import wait_until

Sockets = tuple[zmq.Socket[bytes], zmq.Socket[bytes]]


@pytest.fixture
def sockets() -> Iterator[Sockets]:
    """A PUSH socket and the PULL socket that it is connected to."""
    with zmq.Context() as context, context.socket(zmq.PULL) as pull, context.socket(zmq.PUSH) as push:
        pull.bind("inproc://requests")
        push.connect("inproc://requests")
        yield push, pull


def small_budget() -> Budget:
    return Budget(2.5, itertools.count().__next__)


def read(reader: RequestReader) -> list[list[bytes]]:
    return [[frame.bytes for frame in message] for message in reader.messages(small_budget())]


def test_messages_are_read_until_the_budget_is_spent(sockets: Sockets) -> None:
    push, pull = sockets
    for number in (b"1", b"2", b"3"):
        push.send_multipart([number, b"body"])
    reader = RequestReader(pull)
    assert [read(reader) for _ in range(3)] == [[[b"1", b"body"], [b"2", b"body"]], [[b"3", b"body"]], []]


def test_of_a_message_with_many_frames_only_the_first_are_kept(sockets: Sockets) -> None:
    push, pull = sockets
    push.send_multipart([b"x"] * 10_000)
    push.send_multipart([b"next"])
    reader = RequestReader(pull)
    assert read(reader) == [[b"x"] * 8]
    num_reads = 0
    while not (messages := read(reader)):
        num_reads += 1
    assert messages == [[b"next"]]
    assert num_reads > 10
    assert not reader.is_stuck


def test_a_message_that_takes_too_long_is_noticed(sockets: Sockets, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_reader, "_STUCK_S", 0.01)
    push, pull = sockets
    push.send_multipart([b""] * 100_000)
    reader = RequestReader(pull)
    read(reader)
    wait_until(lambda: reader.is_stuck)
