"""A server compiles its forward pass while it serves, and finds the compiled pass at the next start."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from bert_serving.client import BertClient

from tests.support.running_server import RunningServer

TEXTS = ["First do it", "then do it right", "then do it better " * 20]
_PATIENCE_S = 300


def start(cache: Path) -> RunningServer:
    return RunningServer("-compile", "auto", "-compile_cache", cache, "-num_worker", 2)


def memory_of(pid: int, file: str) -> tuple[int, int]:
    """Return the kB of a mapped file that are in a process's memory, and what is left if they are divided."""
    rss = pss = 0
    is_of_file = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        name, *rest = line.split()
        if not name.endswith(":"):
            is_of_file = rest[-1].endswith(f"/{file}")
        elif is_of_file:
            rss += int(rest[0]) if name == "Rss:" else 0
            pss += int(rest[0]) if name == "Pss:" else 0
    return rss, pss


def forwards(client: BertClient) -> list[str]:
    return [worker["forward"] for worker in client.server_status["workers"]]


def test_a_server_changes_over_while_it_serves_and_the_next_finds_the_compiled_pass(tmp_path: Path) -> None:
    cache = tmp_path / "compiled"
    with start(cache) as server, BertClient(**server.wait_ready().ports) as client:
        assert forwards(client) == ["packed", "packed"]
        before = client.encode(TEXTS)
        deadline = time.monotonic() + _PATIENCE_S
        while set(forwards(client)) != {"compiled"}:
            assert time.monotonic() < deadline, server.log
            assert (client.encode(TEXTS) * before).sum(1).min() > 0.999
            time.sleep(0.2)
        after = client.encode(TEXTS)
        assert (after * before).sum(1).min() > 0.999
        assert not np.array_equal(after, before)  # rounding differs, so another pass has computed them
    assert len(list(cache.glob("*/graph.so"))) == 1, "the workers share one compiled pass"
    with start(cache) as server, BertClient(**server.wait_ready().ports) as client:
        assert forwards(client) == ["compiled", "compiled"]
        workers = client.server_status["workers"]
        in_memory, own_share = (
            sum(memory_of(worker["pid"], "weights.pt")[i] for worker in workers) for i in (0, 1)
        )
        # Without AVX-512's products, the compiler stores weights in a layout that each worker has for itself.
        if in_memory:
            assert own_share <= 0.6 * in_memory, "the workers share one copy of the weights"


def test_a_server_without_it(client: BertClient) -> None:
    # tests/conftest.py sets BERT_SERVING_COMPILE=off for all tests
    assert set(forwards(client)) == {"packed"}
