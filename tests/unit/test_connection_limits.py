"""Who is too slow, and how many connections fit into the limit of open files."""

from __future__ import annotations

import resource

import pytest
from bert_serving.server.gateway.http_protocol import Meter
from bert_serving.server.gateway.limits import MIN_BYTES_PER_S

from tests.support.gateway import make_connection_limits


def test_a_caller_is_too_slow_if_it_moves_too_little_in_a_period() -> None:
    meter = Meter(10.0)
    assert not meter.is_too_slow(0.0, 0, MIN_BYTES_PER_S)
    assert not meter.is_too_slow(9.9, 0, MIN_BYTES_PER_S)
    assert not meter.is_too_slow(10.0, 10 * MIN_BYTES_PER_S + 1, MIN_BYTES_PER_S)
    assert not meter.is_too_slow(19.9, 10 * MIN_BYTES_PER_S + 1, MIN_BYTES_PER_S)
    assert meter.is_too_slow(20.0, 11 * MIN_BYTES_PER_S, MIN_BYTES_PER_S)


def test_bytes_of_an_earlier_period_do_not_count() -> None:
    meter = Meter(10.0)
    assert not meter.is_too_slow(0.0, 0, MIN_BYTES_PER_S)
    assert not meter.is_too_slow(10.0, 1 << 30, MIN_BYTES_PER_S)
    assert meter.is_too_slow(20.0, (1 << 30) + 1, MIN_BYTES_PER_S)


def test_a_period_begins_when_the_gateway_begins_to_wait() -> None:
    meter = Meter(10.0)
    assert not meter.is_too_slow(0.0, 0, MIN_BYTES_PER_S)
    meter.reset()
    assert not meter.is_too_slow(50.0, 0, MIN_BYTES_PER_S)
    assert not meter.is_too_slow(55.0, -1000, MIN_BYTES_PER_S)  # more was written to the connection
    assert not meter.is_too_slow(60.0, -1000, MIN_BYTES_PER_S)
    assert meter.is_too_slow(65.0, -1000, MIN_BYTES_PER_S)


def test_without_a_rate_one_byte_in_a_period_is_enough() -> None:
    meter = Meter(10.0)
    assert not meter.is_too_slow(0.0, 0, 0)
    assert not meter.is_too_slow(10.0, 1, 0)
    assert meter.is_too_slow(20.0, 1, 0)


@pytest.mark.parametrize(
    ("soft", "hard", "wanted", "set_to", "found"),
    [
        (1024, 1 << 20, 4096, 4096 + 128, 4096),
        (1024, 2048, 4096, 2048, 2048 - 128),
        (256, 256, 4096, 256, 128),
        (64, 64, 4096, 64, 1),
        (1 << 20, 1 << 20, 4096, None, 4096),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, 4096, None, 4096),
        (1024, resource.RLIM_INFINITY, 4096, 4096 + 128, 4096),
    ],
)
def test_connections_fit_into_the_limit_of_open_files(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, wanted: int, set_to: int | None, found: int
) -> None:
    was_set: list[int] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: was_set.append(limits[0]))
    assert make_connection_limits(max_connections=wanted).within_open_files().max_connections == found
    assert was_set == ([] if set_to is None else [set_to])
