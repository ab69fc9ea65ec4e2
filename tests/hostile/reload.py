"""Swaps the folder of a model under load, and checks that every reply has the vectors of one model only."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from bert_serving.client import BertClient

from tests.hostile.client_threads import ClientThreads
from tests.hostile.target import Target
from tests.support.running_server import RunningServer
from tests.support.tiny_models import WORDS
from tests.support.waiting import HANG_S, wait_until

Vectors = npt.NDArray[np.floating]

_NUM_CLIENTS = 2
_PAUSE_S = 0.02  # the starting workers need the CPU too
_SIZES = (1, 30, 300)  # a large request has parts in many batches, on both workers
_MAX_DIFFERENCE = 1e-4


def texts(count: int = 300) -> list[str]:
    """Return different short texts of words that the tiny models know."""
    rng = random.Random(0)
    return [" ".join(rng.choices(WORDS, k=8)) for _ in range(count)]


class ModelFolders:
    """Several models, of which one is in `folder`, where the server looks for its model."""

    def __init__(self, folder: Path, models: Mapping[str, Path]) -> None:
        self.folder = folder
        self._models = models
        self.name = next(iter(models))
        self._models[self.name].rename(folder)

    def swap_to(self, name: str) -> None:
        """Put another model in the folder, by renaming two folders."""
        self.folder.rename(self._models[self.name])
        self._models[name].rename(self.folder)
        self.name = name


class ReloadClients(ClientThreads):
    """Clients that send requests all the time, inside its context.

    expected: the vectors of `texts()` by the name of a model, (B, D) each. num_replies: how many replies had the
    vectors of each model. faults: a line for each reply that has other vectors, and for each error.
    """

    def __init__(self, target: Target, expected: Mapping[str, Vectors]) -> None:
        self._target, self._expected = target, expected
        super().__init__()
        self.num_replies: Counter[str] = Counter()
        self.faults: list[str] = []
        self._threads = [threading.Thread(target=self._run, args=(seed,)) for seed in range(_NUM_CLIENTS)]

    def _run(self, seed: int) -> None:
        rng, all_texts = random.Random(seed), texts()
        with BertClient(**self._target.ports, ignore_all_checks=True, timeout=HANG_S * 1000) as client:
            while not self._should_stop.wait(_PAUSE_S):
                indices = rng.sample(range(len(all_texts)), rng.choice(_SIZES))
                try:
                    vectors = client.encode([all_texts[i] for i in indices])
                except Exception as exc:  # a reload must not cost a request
                    self.faults.append(f"{exc!r:.300}")
                    time.sleep(0.1)
                    continue
                self._note(indices, vectors)

    def _note(self, indices: list[int], vectors: Vectors) -> None:
        for name, expected in self._expected.items():
            wanted = expected[indices]
            if wanted.shape == vectors.shape and np.abs(wanted - vectors).max() < _MAX_DIFFERENCE:
                self.num_replies[name] += 1
                return
        self.faults.append(f"a reply of {len(indices)} texts has not the vectors of one model")


def reload(server: RunningServer, folders: ModelFolders, name: str) -> None:
    """Swap the model, send SIGHUP, and wait until every worker was replaced."""
    before = set(server.worker_pids())
    folders.swap_to(name)
    server.signal(signal.SIGHUP)

    def are_replaced() -> bool:
        assert server.process.poll() is None, f"the server ended:\n{server.log}"
        now = set(server.worker_pids())
        return len(now) == len(before) and not now & before

    wait_until(are_replaced, lambda: f"workers were not replaced:\n{server.log}")
