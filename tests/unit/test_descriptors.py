"""Clients cannot take the file descriptors that workers and gateways need."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count

import pytest
from bert_serving.server.broker.descriptors import DescriptorReserve, Door, backlog_for, reserve_for

SIZE = 10


class SmallProcess:
    """A door, and a reserve of SIZE descriptors that believes that this process may open `room` more files."""

    def __init__(self, room: int) -> None:
        self._stack = ExitStack()
        self.listener = self._stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.listener.setblocking(False)
        door = Door(self.listener.fileno())
        self._stack.callback(door.close)
        limit = _num_open() + SIZE + room
        self.reserve = DescriptorReserve([door], size=SIZE, limit=limit)
        self._stack.callback(self.reserve.close)
        self._now = count()

    def check(self) -> None:
        self.reserve.check(float(next(self._now)))

    def connect(self) -> tuple[socket.socket, socket.socket]:
        """Return both ends of a new connection. Raises TimeoutError if the door is shut."""
        client = self._stack.enter_context(socket.socket())
        client.settimeout(0.2)
        client.connect(self.listener.getsockname())
        return client, self._stack.enter_context(self.listener.accept()[0])

    def close(self) -> None:
        self._stack.close()


@pytest.fixture
def small_process() -> Iterator[Callable[[int], SmallProcess]]:
    with ExitStack() as stack:

        def make(room: int) -> SmallProcess:
            process = SmallProcess(room)
            stack.callback(process.close)
            return process

        yield make


def _num_open() -> int:
    return len(os.listdir("/proc/self/fd")) - 1  # without the descriptor that reads the folder


def test_the_door_is_shut_when_little_room_is_left_and_connections_stay(
    small_process: Callable[[int], SmallProcess], caplog: pytest.LogCaptureFixture
) -> None:
    process = small_process(SIZE + 1)
    process.check()
    client, server = process.connect()
    with caplog.at_level(logging.WARNING):
        process.check()
        process.check()
    with pytest.raises(TimeoutError):
        process.connect()
    assert [record.message.partition(":")[0] for record in caplog.records] == ["new clients must wait"]
    client.sendall(b"a")
    assert server.recv(1) == b"a"


def test_a_shut_door_sets_the_reserve_free(small_process: Callable[[int], SmallProcess]) -> None:
    process = small_process(SIZE - 1)
    before = _num_open()
    process.check()
    assert before - _num_open() == SIZE


def test_the_door_opens_again_when_there_is_room(small_process: Callable[[int], SmallProcess]) -> None:
    process = small_process(2 * SIZE + 2)
    crowd = [os.open(os.devnull, os.O_RDONLY) for _ in range(SIZE + 3)]
    try:
        process.check()
        with pytest.raises(TimeoutError):
            process.connect()
    finally:
        for descriptor in crowd:
            os.close(descriptor)
    process.check()
    process.connect()
    assert process.reserve._held


def test_the_door_stays_shut_while_it_would_be_shut_again_at_once(
    small_process: Callable[[int], SmallProcess],
) -> None:
    process = small_process(SIZE - 1)
    process.check()
    process.check()
    with pytest.raises(TimeoutError):
        process.connect()


@pytest.mark.parametrize("limit", [64, 256, 1024, 524_288])
@pytest.mark.parametrize("num_children", [2, 3, 20])
def test_a_reserve_has_room_for_what_still_comes_through_two_shut_doors(limit: int, num_children: int) -> None:
    size = reserve_for(num_children, limit)
    assert 2 * backlog_for(limit) < size <= limit // 8
