"""The counts in the field `statistic` of SHOW_STATUS, with bert-as-service's names and definitions.

Counting a request takes constant time, and a report takes limited memory and time. bert-as-service computed each
report from all requests since its start, so its reports became slower and slower (bert-as-service issue 400). This
file knows nothing about sockets or clocks: times are monotonic seconds that the caller passes.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Sequence

#: At most this many clients are counted one by one. If there are more, the clients that have sent nothing for the
#: longest time are forgotten: only a summary of their counts is kept.
MAX_CLIENTS = 4096

_NUM_INTERVALS = 200
_ACTIVE_S = 180.0
_SHORTEST_S = 1e-6  # otherwise two requests at the same time give an infinite rate, which JSON cannot hold


class Statistic:
    """Counts requests as they arrive. now: when the server started.

    A client that was forgotten and sends another request counts as a new client.
    """

    def __init__(self, now: float) -> None:
        self._num_data = 0
        self._num_sys = 0
        self._num_seq = 0
        self._smallest = 0
        self._largest = 0
        # As in bert-as-service, the first interval begins when the server starts, so that the report has
        # all keys after one request.
        self._last_data_at = now
        self._intervals: deque[float] = deque(maxlen=_NUM_INTERVALS)
        # Both dicts are ordered by the time of each client's last request, oldest first.
        self._requests_of: OrderedDict[bytes, int] = OrderedDict()
        self._data_at: OrderedDict[bytes, float] = OrderedDict()
        self._forgotten = _Forgotten()

    def __repr__(self) -> str:
        return f"<Statistic data={self._num_data} sys={self._num_sys} clients={self.num_clients}>"

    @property
    def num_clients(self) -> int:
        """The number of clients that have sent a request."""
        return self._forgotten.num + len(self._requests_of)

    def count_command(self, client: bytes) -> None:
        """Count a command."""
        self._num_sys += 1
        self._count_client(client)

    def count_texts(self, client: bytes, num_texts: int, now: float) -> None:
        """Count a request for vectors, including one that will fail."""
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
        """Return all counts. Keys with avg, min, max, num_min and num_max are missing until there are values."""
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
        # Both counts are 1: bert-as-service counts distinct sizes, so there is one smallest and one largest size.
        return _family("size_per_request", self._num_seq / self._num_data, (self._smallest, 1), (self._largest, 1))


class _Forgotten:
    """The smallest and largest number of requests of a forgotten client, and how many clients had that number."""

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
    """Return the five keys of a name with their values. low, high: (value, how often it occurs)."""
    return {
        f"avg_{name}": avg,
        f"min_{name}": low[0],
        f"max_{name}": high[0],
        f"num_min_{name}": low[1],
        f"num_max_{name}": high[1],
    }
