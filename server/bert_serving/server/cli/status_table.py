"""The status of a running server as a table.

`Snapshot`, `rates` and `table` decide what is shown; `show` and `show_repeatedly`
request the status and print the table.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from importlib.util import find_spec
from typing import Any

from bert_serving.client import BertClient, ServingError
from bert_serving.protocol import Command

REPLY_S = 4.0  # enough, because a broker replies at once, even if its workers are busy

_CLEAR = "\x1b[H\x1b[2J"
_UNKNOWN = "-"
_WORKER_COLUMNS = ("name", "state", "pid", "device", "dtype", "forward", "parity", "tokens_per_s")


class StatusError(Exception):
    """The status cannot be shown; the message says why."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A status of the server. at: when the status arrived, in monotonic seconds."""

    info: Mapping[str, Any]  # JSON
    at: float

    @property
    def totals(self) -> dict[str, int]:
        """The counters, which only grow while the server runs."""
        statistic = self.info.get("statistic", {})
        return {
            "requests": statistic.get("num_data_request", 0),
            "sequences": statistic.get("num_total_seq", 0),
            "encoded": self.info.get("num_encoded_seq", 0),
            "tokens": self.info.get("num_encoded_token", 0),
            "batches": self.info.get("num_batch", 0),
        }

    @property
    def uptime_s(self) -> float | None:
        """How long the server has run, by its own clock; None if the status does not contain it."""
        with suppress(KeyError, TypeError, ValueError):
            started, current = (
                datetime.fromisoformat(self.info[key]) for key in ("server_start_time", "server_current_time")
            )
            return max(0.0, (current - started).total_seconds())
        return None

    def follows(self, other: Snapshot) -> bool:
        """Whether the server ran without a restart between the other snapshot and this one."""
        return self.info.get("server_start_time") == other.info.get("server_start_time")


def rates(now: Snapshot, before: Snapshot | None) -> tuple[dict[str, float | None], str]:
    """Return (growth of each total per second, the period in words).

    The period begins with `before`. If `before` is None or the server was restarted after it, the period begins
    with the last start of the server.
    """
    if before is not None and now.follows(before):
        seconds: float | None = now.at - before.at
        since, earlier = f"in the last {now.at - before.at:.1f} s", before.totals
    else:
        seconds = now.uptime_s
        since, earlier = "since its start", dict.fromkeys(now.totals, 0)
    if not seconds:
        return dict.fromkeys(now.totals), since
    return {name: (total - earlier[name]) / seconds for name, total in now.totals.items()}, since


def table(now: Snapshot, before: Snapshot | None = None, *, address: str) -> str:
    """Return the table as text."""
    info, statistic = now.info, now.info.get("statistic", {})
    per_second, since = rates(now, before)
    layers = " ".join(map(str, info.get("pooling_layer") or [_UNKNOWN]))
    pooling = " ".join(info.get("pooling") or [str(info.get("pooling_strategy", _UNKNOWN))])
    longest = info.get("max_seq_len", _UNKNOWN)
    head = [
        ("server", f"{address}, {_state(now)}, up {duration(now.uptime_s)}, version {info.get('version', '?')}"),
        ("model", f"{info.get('model_dir', _UNKNOWN)}, max_seq_len {'NONE' if longest is None else longest}"),
        ("pooling", f"{pooling}, layer {layers}"),
        (
            "clients",
            f"{_count(info.get('connected_clients'))} connected, "
            f"{_count(statistic.get('num_active_client'))} active in the last 3 minutes, "
            f"{_count(statistic.get('num_total_client'))} in all",
        ),
        ("queue", f"{_count(info.get('queue_texts'))} texts, {_count(info.get('open_requests'))} open requests"),
    ]
    workers = [[worker.get(key, _UNKNOWN) for key in _WORKER_COLUMNS] for worker in info.get("workers", ())]
    counts = [
        (name, _count(total), _UNKNOWN if per_second[name] is None else f"{per_second[name]:,.1f}")
        for name, total in now.totals.items()
    ]
    blocks = (
        _columns(head),
        _columns([("worker", *_WORKER_COLUMNS[1:]), *workers], right_from=len(_WORKER_COLUMNS) - 1),
        _columns([("", "total", f"per second {since}"), *counts], right_from=1),
    )
    return "\n\n".join("\n".join(block) for block in blocks)


def show(ip: str, port: int, port_out: int, *, as_json: bool, curve_dir: str | None = None) -> None:
    """Print the status once. Raises StatusError.

    curve_dir: folder with the keys of a client that may connect, if the server uses CURVE.
    """
    with connected_client(ip, port, port_out, curve_dir) as client:
        now = ask(client)
    sys.stdout.write(f"{_json(now, indent=2) if as_json else table(now, address=f'{ip}:{port}')}\n")


def show_repeatedly(
    ip: str, port: int, port_out: int, *, every_s: float, as_json: bool, curve_dir: str | None = None
) -> None:
    """Print the status every every_s seconds until Ctrl-C. A server that is away is asked again until it replies.

    Raises StatusError if the keys in curve_dir cannot be read.
    """
    before = None
    with connected_client(ip, port, port_out, curve_dir) as client:
        while True:
            try:
                now = ask(client)
            except StatusError as exc:
                sys.stderr.write(f"bert-serving-status: {exc}\n")
            else:
                text = table(now, before, address=f"{ip}:{port}")
                sys.stdout.write(f"{_json(now)}\n" if as_json else _in_place(text))
                sys.stdout.flush()
                before = now
            time.sleep(every_s)


def _json(now: Snapshot, indent: int | None = None) -> str:
    return json.dumps(now.info, indent=indent, default=str)


def can_draw() -> bool:
    """Whether the dashboard can be shown: there are a terminal and the packages of the extra `watch`."""
    has_packages = all(map(find_spec, ("rich", "prometheus_client")))
    return sys.stdin.isatty() and sys.stdout.isatty() and has_packages


def connected_client(ip: str, port: int, port_out: int, curve_dir: str | None) -> BertClient:
    """Return a client that connects with its first request. Raises StatusError if its keys cannot be read."""
    limit_ms = round(REPLY_S * 1000)
    try:
        return BertClient(
            ip,
            port,
            port_out,
            ignore_all_checks=True,
            timeout=limit_ms,
            connect_timeout=limit_ms,
            curve_dir=curve_dir,
        )
    except (OSError, ValueError, RuntimeError) as exc:  # the keys cannot be read
        raise StatusError(str(exc)) from exc


def ask(client: BertClient) -> Snapshot:
    """Return the status of the server. Raises StatusError if it cannot be had."""
    info = ask_for(client, Command.SHOW_STATUS)
    return Snapshot(info, time.monotonic())


def ask_for(client: BertClient, command: Command) -> Mapping[str, Any]:
    """Return the server's reply to a command. Raises StatusError if there is none."""
    try:
        return client.ask(command)
    except (ServingError, TimeoutError, ConnectionError) as exc:
        raise StatusError(str(exc)) from exc


def _in_place(text: str) -> str:
    """Return what to print: in a terminal, it replaces the previous text; elsewhere, it follows that text."""
    if not sys.stdout.isatty():
        return f"{text}\n\n"
    width = shutil.get_terminal_size().columns
    return _CLEAR + "\n".join(line[:width] for line in text.splitlines()) + "\n"


def _state(now: Snapshot) -> str:
    if now.info.get("ready"):
        return "ready"
    is_starting = any(worker.get("state") == "starting" for worker in now.info.get("workers", ()))
    return "starting" if is_starting else "not ready"


def duration(seconds: float | None) -> str:
    """Return a time in days, hours, minutes and seconds."""
    if seconds is None:
        return _UNKNOWN
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return f"{f'{days} d ' if days else ''}{hour}:{minute:02}:{second:02}"


def _count(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else _UNKNOWN


def _columns(rows: Iterable[Sequence[object]], *, right_from: int | None = None) -> list[str]:
    """Return the rows as lines with aligned columns; columns from `right_from` on are aligned to the right."""
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if right_from is not None and i >= right_from else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]


def printable(cell: object) -> str:
    """Return a value as text without control characters, which could change the terminal."""
    return "".join(char if char.isprintable() else "?" for char in str(cell))
