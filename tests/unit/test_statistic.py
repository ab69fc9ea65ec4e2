"""The counts of SHOW_STATUS, compared with those that bert-as-service computes from all requests."""

from __future__ import annotations

import time
import tracemalloc
from collections import Counter
from collections.abc import Sequence

import pytest
from bert_serving.server.broker import statistic as module
from bert_serving.server.broker.statistic import MAX_CLIENTS, Statistic
from hypothesis import given
from hypothesis import strategies as st

FAMILIES = ("request_per_client", "size_per_request", "last_two_interval", "request_per_second")
PLAIN = {
    "num_data_request",
    "num_total_seq",
    "num_sys_request",
    "num_total_request",
    "num_total_client",
    "num_active_client",
}


def family_keys(name: str) -> set[str]:
    return {f"{kind}_{name}" for kind in ("avg", "min", "max", "num_min", "num_max")}


class Naive:
    """Keeps data of all requests and computes each report from them, as bert-as-service does."""

    def __init__(self, now: float) -> None:
        self.requests_of: Counter[bytes] = Counter()
        self.sizes: Counter[int] = Counter()
        self.data_at: dict[bytes, float] = {}
        self.intervals: list[float] = []
        self.last = now
        self.num_sys = 0

    def command(self, client: bytes) -> None:
        self.requests_of[client] += 1
        self.num_sys += 1

    def texts(self, client: bytes, size: int, now: float) -> None:
        self.requests_of[client] += 1
        self.sizes[size] += 1
        self.data_at[client] = now
        self.intervals = [*self.intervals, max(1e-6, now - self.last)][-200:]
        self.last = now

    def report(self, now: float) -> dict[str, float]:
        num_data, num_seq = self.sizes.total(), sum(size * n for size, n in self.sizes.items())
        report: dict[str, float] = {
            "num_data_request": num_data,
            "num_total_seq": num_seq,
            "num_sys_request": self.num_sys,
            "num_total_request": num_data + self.num_sys,
            "num_total_client": len(self.requests_of),
            "num_active_client": sum(now - at < 180 for at in self.data_at.values()),
        }
        sources: dict[str, Sequence[float]] = {
            "request_per_client": list(self.requests_of.values()),
            "size_per_request": list(self.sizes),
            "last_two_interval": self.intervals,
            "request_per_second": [1 / interval for interval in self.intervals],
        }
        for name, values in sources.items():
            if values:
                avg = num_seq / num_data if name == "size_per_request" else sum(values) / len(values)
                low, high = min(values), max(values)
                report |= {f"avg_{name}": avg, f"min_{name}": low, f"max_{name}": high}
                report |= {f"num_min_{name}": values.count(low), f"num_max_{name}": values.count(high)}
        return report


events = st.lists(
    st.tuples(
        st.sampled_from([b"alice", b"bob", b"carol", b"dave"]),
        st.none() | st.integers(1, 5000),  # None: a command
        st.sampled_from([0.0, 0.25, 0.5, 3.0, 100.0]) | st.floats(0, 400),
    ),
    max_size=400,
)


@given(events, st.floats(0, 400))
def test_every_value_equals_that_of_bert_as_service(
    arrivals: list[tuple[bytes, int | None, float]], later: float
) -> None:
    now = 1000.0
    ours, naive = Statistic(now), Naive(now)
    for client, size, pause in arrivals:
        now += pause
        if size is None:
            ours.count_command(client)
            naive.command(client)
        else:
            ours.count_texts(client, size, now)
            naive.texts(client, size, now)
    assert ours.report(now + later) == pytest.approx(naive.report(now + later))


def test_a_family_is_absent_until_it_has_data() -> None:
    ours = Statistic(0.0)
    assert ours.report(1.0).keys() == PLAIN
    ours.count_command(b"a")
    assert ours.report(1.0).keys() == PLAIN | family_keys("request_per_client")
    ours.count_texts(b"a", 3, 2.0)
    assert ours.report(2.0).keys() == PLAIN.union(*map(family_keys, FAMILIES))


def test_only_the_last_200_intervals_count() -> None:
    ours = Statistic(0.0)
    for i in range(1, 401):
        ours.count_texts(b"a", 1, float(i) if i <= 200 else 200.0 + (i - 200) * 2)
    report = ours.report(600.0)
    assert (report["min_last_two_interval"], report["num_min_last_two_interval"]) == (2.0, 200)
    assert (report["max_request_per_second"], report["num_max_request_per_second"]) == (0.5, 200)


def test_simultaneous_requests_have_a_finite_rate() -> None:
    ours = Statistic(5.0)
    ours.count_texts(b"a", 1, 5.0)
    ours.count_texts(b"a", 1, 5.0)
    assert ours.report(5.0)["max_request_per_second"] == pytest.approx(1e6)


def test_a_client_is_active_for_three_minutes_after_its_last_texts() -> None:
    ours = Statistic(0.0)
    ours.count_texts(b"a", 1, 0.0)
    ours.count_texts(b"b", 1, 100.0)
    ours.count_texts(b"a", 1, 150.0)
    ours.count_command(b"c")  # as in bert-as-service, a command does not make a client active
    assert [ours.report(now)["num_active_client"] for now in (279.9, 280.0, 329.9, 330.0)] == [2, 1, 1, 0]


def test_100000_clients_and_sizes_take_bounded_memory() -> None:
    ours = Statistic(0.0)
    for i in range(100_000):
        client = b"%032d" % i
        ours.count_texts(client, i + 1, i / 1000)
        if i % 2:
            ours.count_command(client)
        assert len(ours._requests_of) <= MAX_CLIENTS
    report = ours.report(100.0)
    assert report["num_total_client"] == 100_000
    assert report["num_active_client"] == MAX_CLIENTS
    assert (report["avg_request_per_client"], report["min_request_per_client"]) == (1.5, 1)
    assert (report["num_min_request_per_client"], report["num_max_request_per_client"]) == (50_000, 50_000)
    assert (report["min_size_per_request"], report["max_size_per_request"]) == (1, 100_000)


def test_forgotten_clients_still_count_in_minimum_and_maximum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CLIENTS", 2)
    ours = Statistic(0.0)
    for client, num_requests in ((b"a", 5), (b"b", 1), (b"c", 3), (b"d", 3), (b"e", 5)):
        for _ in range(num_requests):
            ours.count_command(client)
    report = ours.report(0.0)
    assert (report["max_request_per_client"], report["num_max_request_per_client"]) == (5, 2)
    assert (report["min_request_per_client"], report["num_min_request_per_client"]) == (1, 1)
    assert report["avg_request_per_client"] == pytest.approx(17 / 5)


def test_memory_and_time_of_a_report_do_not_grow_with_the_number_of_clients() -> None:
    ours = Statistic(0.0)

    def fill(first: int, count: int) -> None:
        for i in range(first, first + count):
            ours.count_texts(b"%032d" % i, i, i / 1000)

    def fastest() -> float:
        times = []
        for _ in range(5):
            start = time.perf_counter()
            ours.report(0.0)
            times.append(time.perf_counter() - start)
        return min(times)

    fill(1, 2 * MAX_CLIENTS)
    before = fastest()
    tracemalloc.start()
    fill(2 * MAX_CLIENTS, 40_000)
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert grown < 4 << 20  # memory for the new clients that replaced earlier ones
    assert fastest() < 20 * before
