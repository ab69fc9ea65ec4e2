"""Prints in a terminal what the dashboard page of bert-as-service showed. Needs a server with HTTP.

    bert-serving-start -http_port 8125 & python examples/dashboard.py [http://127.0.0.1:8125] [-every SECONDS]

It reads /status/server. With -every it then prints a line at each interval, with the numbers of requests and
clients, which the page showed as charts. The command bert-serving-status prints a more detailed table.
"""

from __future__ import annotations

import argparse
import json
import time
from contextlib import suppress
from datetime import datetime
from typing import Any
from urllib.request import urlopen


def read(url: str) -> dict[str, Any]:
    """Return the server's status."""
    with urlopen(f"{url}/status/server", timeout=60) as reply:
        status: dict[str, Any] = json.load(reply)
    return status


def cards(status: dict[str, Any]) -> dict[str, object]:
    """Return the title and value of each card on the page."""
    statistic = status["statistic"]

    def rate(interval: str) -> str:
        seconds = statistic.get(interval)  # absent before the first requests
        return f"{1 / seconds:.1f}" if seconds else "-"

    now, start = (datetime.fromisoformat(status[f"server_{name}_time"]) for name in ("current", "start"))
    return {
        "data requests": statistic["num_data_request"],
        "system requests": statistic["num_sys_request"],
        "clients": statistic["num_total_client"],
        "requests/s, at most": rate("min_last_two_interval"),
        "requests/s, average": rate("avg_last_two_interval"),
        **{
            f"requests of a client, {name}": statistic.get(f"{name}_request_per_client", "-")
            for name in ("min", "avg", "max")
        },
        "server version": status["server_version"],
        "devices": ", ".join(worker.get("device", worker["state"]) for worker in status["workers"]),
        "workers": status["num_worker"],
        "max_seq_len": status["max_seq_len"],
        "up since": f"{start:%Y-%m-%d %H:%M}, for {str(now - start).partition('.')[0]}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", nargs="?", default="http://127.0.0.1:8125")
    parser.add_argument("-every", type=float, metavar="SECONDS", help="seconds between lines; the page used 60")
    args = parser.parse_args()
    status = read(args.url)
    for title, value in cards(status).items():
        print(f"{title:>29}  {value}")
    before = status["statistic"]
    with suppress(KeyboardInterrupt):
        while args.every:
            time.sleep(args.every)
            statistic = read(args.url)["statistic"]
            requests = statistic["num_data_request"] - before["num_data_request"]
            print(f"{time.strftime('%H:%M:%S')}  {requests} requests, {statistic['num_total_client']} clients")
            before = statistic


if __name__ == "__main__":
    main()
