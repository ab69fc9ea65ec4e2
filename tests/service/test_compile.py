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
    assert len([path for path in cache.iterdir() if path.is_dir()]) == 1, "the workers share one compiled pass"
    with start(cache) as server, BertClient(**server.wait_ready().ports) as client:
        assert forwards(client) == ["compiled", "compiled"]


def test_a_server_without_it(client: BertClient) -> None:
    # tests/conftest.py sets BERT_SERVING_COMPILE=off for all tests
    assert set(forwards(client)) == {"packed"}
