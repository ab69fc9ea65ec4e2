"""The counts behind the `statistic` of SHOW_STATUS, under bert-as-service's names and in its sense.

Constant work for a request, and memory and work for a report that are bounded whatever arrives: the
original computed anew over everything it had ever seen, and became slower by the hour (issue 400). It knows
nothing of sockets or clocks; times are monotonic seconds that the caller hands in.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Sequence

#: Clients that are remembered one by one; of those before them only sums remain.
MAX_CLIENTS = 4096

_NUM_INTERVALS = 200
_ACTIVE_S = 180.0
_SHORTEST_S = 1e-6  # requests of one instant would have an infinite rate, which no JSON can say


class Statistic:
    """Counts requests as they arrive. now: when the server started.

    A client that comes back after MAX_CLIENTS others is counted as a new one.
    """

    def __init__(self, now: float) -> None:
        self._num_data = 0
        self._num_sys = 0
        self._num_seq = 0
        self._smallest = 0
        self._largest = 0
        # The first interval begins with the server, as in the original: all keys are there after one request.
        self._last_data_at = now
        self._intervals: deque[float] = deque(maxlen=_NUM_INTERVALS)
        # Both in the order of the last use, the oldest first.
        self._requests_of: OrderedDict[bytes, int] = OrderedDict()
        self._data_at: OrderedDict[bytes, float] = OrderedDict()
        self._forgotten = _Forgotten()

    def __repr__(self) -> str:
        return f"<Statistic data={self._num_data} sys={self._num_sys} clients={self.num_clients}>"

    @property
    def num_clients(self) -> int:
        """Clients that have asked anything."""
        return self._forgotten.num + len(self._requests_of)

    @property
    def num_remembered(self) -> int:
        """Clients in memory."""
        return len(self._requests_of)

    def count_command(self, client: bytes) -> None:
        """Count a request for config, status, metrics or the end."""
        self._num_sys += 1
        self._count_client(client)

    def count_texts(self, client: bytes, num_texts: int, now: float) -> None:
        """Count a request for vectors, whatever becomes of it."""
        self._smallest = min(self._smallest, num_texts) if self._num_data else num_texts
        self._largest = max(self._largest, num_texts)
        self._num_data += 1
        self._num_seq += num_texts
        self._intervals.append(max(_SHORTEST_S, now - self._last_data_at))
        self._last_data_at = now
        self._count_client(client)
        self._data_at[client] = now
        self._data_at.move_to_end(client)

    def report(self, now: float) -> dict[str, float]:
        """Return all counts; a family of avg, min, max, num_min and num_max is absent until it has data."""
        return {
            "num_data_request": self._num_data,
            "num_total_seq": self._num_seq,
            "num_sys_request": self._num_sys,
            "num_total_request": self._num_data + self._num_sys,
            "num_total_client": self.num_clients,
            "num_active_client": self._num_active(now),
            **self._requests_per_client(),
            **self._sizes(),
            **_family_of("last_two_interval", self._intervals),
            **_family_of("request_per_second", [1 / interval for interval in self._intervals]),
        }

    def _count_client(self, client: bytes) -> None:
        self._requests_of[client] = self._requests_of.get(client, 0) + 1
        self._requests_of.move_to_end(client)
        if len(self._requests_of) > MAX_CLIENTS:
            oldest, num_requests = self._requests_of.popitem(last=False)
            self._data_at.pop(oldest, None)
            self._forgotten.add(num_requests)

    def _num_active(self, now: float) -> int:
        num_active = 0
        for data_at in reversed(self._data_at.values()):
            if now - data_at >= _ACTIVE_S:
                break
            num_active += 1
        return num_active

    def _requests_per_client(self) -> dict[str, float]:
        if not self._requests_of:
            return {}
        counts: list[float] = list(self._requests_of.values())
        forgotten = self._forgotten
        low, high = min(*counts, forgotten.low), max(*counts, forgotten.high)
        return _family(
            "request_per_client",
            (self._num_data + self._num_sys) / self.num_clients,
            (low, counts.count(low) + (forgotten.num_low if forgotten.low == low else 0)),
            (high, counts.count(high) + (forgotten.num_high if forgotten.high == high else 0)),
        )

    def _sizes(self) -> dict[str, float]:
        if not self._num_data:
            return {}
        # The original counted these over its distinct sizes, of which only one is the smallest.
        return _family("size_per_request", self._num_seq / self._num_data, (self._smallest, 1), (self._largest, 1))


class _Forgotten:
    """The numbers of requests of clients that are not remembered any more."""

    def __init__(self) -> None:
        self.num = 0
        self.low, self.num_low = math.inf, 0
        self.high, self.num_high = 0, 0

    def add(self, num_requests: int) -> None:
        self.num += 1
        if num_requests < self.low:
            self.low, self.num_low = num_requests, 0
        if num_requests > self.high:
            self.high, self.num_high = num_requests, 0
        self.num_low += num_requests == self.low
        self.num_high += num_requests == self.high


def _family_of(name: str, values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    low, high = min(values), max(values)
    return _family(name, sum(values) / len(values), (low, values.count(low)), (high, values.count(high)))


def _family(name: str, avg: float, low: tuple[float, int], high: tuple[float, int]) -> dict[str, float]:
    """Return the five keys of a family. low, high: the value, and how often it occurs."""
    return {
        f"avg_{name}": avg,
        f"min_{name}": low[0],
        f"max_{name}": high[0],
        f"num_min_{name}": low[1],
        f"num_max_{name}": high[1],
    }
