"""What a worker tells about its device, with invented numbers of torch.cuda: no test here needs a GPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import zmq
from bert_serving.server.worker.device import device_bytes
from bert_serving.server.worker.worker import _IoThread

TAKEN = {"cuda:0": 1 << 30, "cuda:1": 3 << 30}


@pytest.fixture(autouse=True)
def _invented_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: TAKEN[str(device)])


@pytest.mark.parametrize(("device", "expected"), [("cuda:0", 1 << 30), ("cuda:1", 3 << 30), ("cpu", None)])
def test_the_memory_is_that_of_the_workers_own_gpu(device: str, expected: int | None) -> None:
    assert device_bytes(torch.device(device)) == expected


def test_a_heartbeat_has_the_memory_of_the_device() -> None:
    context: zmq.Context[Any] = zmq.Context()
    io = _IoThread(context, b"worker-0#1", "inproc://broker")
    io.count_forward()
    for device in ("cuda:1", "cpu"):
        encoder: Any = SimpleNamespace(device=torch.device(device))
        heartbeat = io._heartbeat(encoder)
        assert (heartbeat.num_forwards, heartbeat.device_bytes) == (1, TAKEN.get(device))
    context.destroy(linger=0)
