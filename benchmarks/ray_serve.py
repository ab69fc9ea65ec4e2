"""Measures Ray Serve beside the daemon, and what callers notice when a replica is killed.

    python -m benchmarks.ray_serve [--seconds 5] [--rounds 3] [--kills 4] [--only daemon|kill]

The demo model on the CPU, all processes and the callers on this machine. Beside the daemon: one replica with as
many threads as the daemon's worker, the same HTTP requests, in alternation. Kills: two replicas with one thread
each and eight callers with two texts; SIGKILL to one of the replicas as soon as both are ready.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import httpx
import numpy as np
from bert_serving.ray import build_app
from ray import serve

from benchmarks.common import cpu_name
from tests.support.ray_cluster import RayCluster, running_cluster
from tests.support.running_server import RunningServer
from tests.support.sentences import sentences

#: Callers, texts in each of their requests.
LOADS = [(1, 1), (16, 1), (4, 64), (4, 256)]


@dataclass
class Answers:
    """What callers got. times_s: of each request."""

    statuses: Counter[int] = field(default_factory=Counter)
    times_s: list[float] = field(default_factory=list)


def call_until(stop: Callable[[], bool], http: httpx.Client, num_callers: int, num_texts: int) -> Answers:
    """Let callers send one request after another until `stop` is true."""
    answers = Answers()
    texts = sentences(num_texts * 64)

    def call(number: int) -> None:
        sent = number
        while not stop():
            start = num_texts * (sent % 64)
            began = time.monotonic()
            body = {"inputs": [f"{sent} {text}" for text in texts[start : start + num_texts]]}
            answers.statuses[http.post("/embed", json=body).status_code] += 1
            answers.times_s.append(time.monotonic() - began)
            sent += num_callers

    with ThreadPoolExecutor(num_callers) as threads:
        for done in [threads.submit(call, number) for number in range(num_callers)]:
            done.result()
    return answers


def for_seconds(seconds: float, http: httpx.Client, num_callers: int, num_texts: int) -> float:
    """Return the texts each second."""
    end = time.monotonic() + seconds
    answers = call_until(lambda: time.monotonic() > end, http, num_callers, num_texts)
    assert set(answers.statuses) == {200}, answers.statuses
    return len(answers.times_s) * num_texts / seconds


def show_beside_daemon(cluster: RayCluster, seconds: float, rounds: int) -> None:
    """Print the rates of both, and their ratio."""
    num_cpus = len(os.sched_getaffinity(0))
    app = build_app({"cpu": True, "compile": "wait", "num_cpus": num_cpus})
    serve.run(app, name="beside", route_prefix="/beside")
    with RunningServer("-cpu", "-compile", "wait") as daemon, cluster.http("beside") as ray_http:
        daemon.wait_ready()
        print("| callers, texts in a request | daemon, texts/s | Ray Serve, texts/s | ratio |\n|---|---|---|---|")
        with httpx.Client(base_url=daemon.url, timeout=60) as daemon_http:
            for load in LOADS:
                for http in (daemon_http, ray_http):
                    for_seconds(1, http, *load)
                found = [
                    [for_seconds(seconds, http, *load) for http in (daemon_http, ray_http)] for _ in range(rounds)
                ]
                ours, rays = (statistics.median(rates) for rates in zip(*found, strict=True))
                ratio = statistics.median(each[1] / each[0] for each in found)
                print(f"| {load[0]}, {load[1]} | {ours:,.0f} | {rays:,.0f} | {ratio:.2f} |", flush=True)
    serve.delete("beside")


def show_kills(cluster: RayCluster, kills: int) -> None:
    """Print what callers got while replicas were killed."""
    serve.run(build_app({"cpu": True, "num_replicas": 2}), name="kill", route_prefix="/kill")
    stopped = threading.Event()
    with cluster.http("kill") as http, ThreadPoolExecutor(1) as thread:

        def pids() -> set[int]:
            return {worker["pid"] for worker in http.get("/status/server").json().get("workers", ())}

        calls = thread.submit(call_until, stopped.is_set, http, 8, 2)
        replaced_s = []
        try:
            for _ in range(kills):
                time.sleep(2)
                while len(before := pids()) < 2:
                    time.sleep(0.1)
                os.kill(killed := min(before), signal.SIGKILL)
                began = time.monotonic()
                while len(now := pids()) < 2 or killed in now:
                    time.sleep(0.1)
                replaced_s.append(time.monotonic() - began)
        finally:
            stopped.set()
        answers = calls.result()
    half, most, longest = np.percentile(np.array(answers.times_s) * 1000, [50, 99, 100])
    print(f"{kills} replicas killed; requests by status: {dict(answers.statuses)}")
    print(f"p50 {half:.0f} ms, p99 {most:.0f} ms, longest {longest:.0f} ms")
    print(f"a new replica was ready after {min(replaced_s):.0f} to {max(replaced_s):.0f} s")
    serve.delete("kill")


def main(argv: Sequence[str] | None = None) -> None:
    """Print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kills", type=int, default=4)
    parser.add_argument("--only", choices=["daemon", "kill"])
    args = parser.parse_args(argv)
    print(f"{cpu_name()}, {len(os.sched_getaffinity(0))} cores")
    with running_cluster() as cluster:
        if args.only != "kill":
            show_beside_daemon(cluster, args.seconds, args.rounds)
        if args.only != "daemon":
            show_kills(cluster, args.kills)


if __name__ == "__main__":
    main()
