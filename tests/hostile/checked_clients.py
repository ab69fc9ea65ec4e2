"""Clients that know the vectors of their texts beforehand, and notice replies that are wrong, twice or lost."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from typing import TypeAlias

import httpx
import numpy as np
import numpy.typing as npt
import psutil
from bert_serving.client import BertClient, Overloaded, ServingError, Unavailable
from bert_serving.protocol import EncodeReply, ErrorReply, reply_from_frames

from tests.hostile.client_threads import ClientThreads
from tests.hostile.raw import RawClient
from tests.hostile.target import Target
from tests.support.running_server import is_alive
from tests.support.sentences import sentences

Vectors = npt.NDArray[np.floating]

_SIZES = (1, 1, 1, 2, 8, 40, 100)
_NUM_TEXTS = 200
_MAX_CHARS = 100
_MIN_COSINE = 0.999  # in bfloat16, other texts in the batch change a vector a little
_MAX_COSINE = 0.98  # of two different texts, so that a vector of another text is noticed
_RETRY_S = 0.2
_NUM_OPEN = 4  # requests of a RawChecked at a time
_RETRY_STATUS = (429, 503)

#: How a client behaves: sends requests until it should stop, and counts what happened.
_Kind: TypeAlias = "Callable[[Tally, random.Random], None]"


@dataclass(frozen=True)
class Pool:
    """Texts and their vectors, (B, D)."""

    texts: list[str]
    vectors: Vectors

    @classmethod
    def from_server(cls, target: Target) -> Pool:
        """Let the server encode short sentences; drop those whose vectors resemble each other."""
        texts = [text for text in sentences(4 * _NUM_TEXTS) if len(text) < _MAX_CHARS][:_NUM_TEXTS]
        with BertClient(**target.ports, ignore_all_checks=True) as client:
            vectors = client.encode(texts)
        units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        resembles = np.triu(units @ units.T, 1).max(axis=0) > _MAX_COSINE
        keep = np.flatnonzero(~resembles)
        return cls([texts[i] for i in keep], vectors[keep])

    def sample(self, rng: random.Random) -> list[int]:
        """Return the indices of the texts of a request of random size."""
        return rng.sample(range(len(self.texts)), rng.choice(_SIZES))

    def fault(self, indices: list[int], vectors: Vectors) -> str | None:
        """Return what is wrong with the vectors of these texts, or None."""
        expected = self.vectors[indices]
        if vectors.shape != expected.shape:
            return f"wrong: shape {vectors.shape}, expected {expected.shape}"
        norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(expected, axis=1)
        cosines = np.einsum("ij,ij->i", vectors, expected) / norms
        return None if cosines.min() >= _MIN_COSINE else f"wrong: cosine {cosines.min():.3f}"


@dataclass
class Tally:
    """What happened to the requests of a client. num_told: errors after which a client sends the request again."""

    name: str
    num_answered: int = 0
    num_told: int = 0
    faults: list[str] = field(default_factory=list)

    def note(self, fault: str | None) -> None:
        """Count a reply with vectors, and what is wrong with it."""
        self.num_answered += 1
        if fault is not None:
            self.faults.append(fault)


class CheckedClients(ClientThreads):
    """Clients of all kinds, each in a thread, inside its context. On exit they finish the requests that they sent.

    limit_s: a request without a reply after this time is lost. If the server has ended, it is lost at once.
    """

    def __init__(self, target: Target, pool: Pool, limit_s: float) -> None:
        self._target, self._pool, self._limit_s = target, pool, limit_s
        self._server = psutil.Process(target.pid)
        super().__init__()
        kinds: list[_Kind] = [
            self._raw,
            self._library,
            self._encode,
            self._openai,
        ]
        self.tallies = [Tally(f"{kind.__name__.strip('_')} {i}") for i in range(2) for kind in kinds]
        self._threads = [
            threading.Thread(target=self._run, args=(kinds[i % len(kinds)], tally, i))
            for i, tally in enumerate(self.tallies)
        ]

    @property
    def num_answered(self) -> int:
        """How many requests got their vectors."""
        return sum(tally.num_answered for tally in self.tallies)

    @property
    def faults(self) -> list[str]:
        """A line for each request that was lost, or answered wrongly, or twice, or with an error."""
        return [f"{tally.name}: {fault}" for tally in self.tallies for fault in tally.faults]

    def _run(self, kind: _Kind, tally: Tally, seed: int) -> None:
        try:
            kind(tally, random.Random(seed))
        except Exception as exc:  # the thread must not end without a trace
            tally.faults.append(f"the client ended: {exc!r:.300}")

    # -- ZeroMQ ----------------------------------------------------------------------------------------

    def _raw(self, tally: Tally, rng: random.Random) -> None:
        """Keep a few requests open, and notice replies that come twice."""
        sent: dict[int, tuple[list[int], float]] = {}  # by request id: indices, time
        next_id = 1
        with RawClient(self._target) as client:
            while sent or not self._should_stop.is_set():
                while len(sent) < _NUM_OPEN and not self._should_stop.is_set():
                    indices = self._pool.sample(rng)
                    if not client.ask(self._body(indices), len(indices), next_id):
                        break
                    sent[next_id] = indices, time.monotonic()
                    next_id += 1
                for frames in client.replies(0.2):
                    self._receive(frames, sent, tally)
                self._drop_lost(sent, tally)
                if not is_alive(self._server):
                    return

    def _body(self, indices: list[int]) -> bytes:
        return json.dumps([self._pool.texts[i] for i in indices]).encode()

    def _receive(self, frames: list[bytes], sent: dict[int, tuple[list[int], float]], tally: Tally) -> None:
        reply = reply_from_frames(frames)
        found = sent.pop(int(reply.request_id), None)
        if found is None:
            tally.faults.append(f"twice: a second reply to request {reply.request_id!r}")
        elif isinstance(reply, EncodeReply):
            tally.note(self._pool.fault(found[0], reply.rows))
        elif isinstance(reply, ErrorReply) and isinstance(reply.error, Overloaded | Unavailable):
            tally.num_told += 1
        else:
            tally.faults.append(f"failed: {reply!r:.300}")

    def _drop_lost(self, sent: dict[int, tuple[list[int], float]], tally: Tally) -> None:
        now, limit_s = time.monotonic(), self._limit_s if is_alive(self._server) else 0.0
        for request_id in [i for i, (_, since) in sent.items() if now - since > limit_s]:
            del sent[request_id]
            tally.faults.append(f"lost: no reply to request {request_id} within {limit_s:g} s")

    def _library(self, tally: Tally, rng: random.Random) -> None:
        """Call BertClient.encode. A request that got Overloaded or Unavailable is sent again."""
        timeout = round(self._limit_s * 1000)
        with BertClient(**self._target.ports, ignore_all_checks=True, timeout=timeout) as client:
            while not self._should_stop.is_set():
                indices = self._pool.sample(rng)
                try:
                    vectors = client.encode([self._pool.texts[i] for i in indices])
                except (Overloaded, Unavailable):
                    tally.num_told += 1
                    time.sleep(_RETRY_S)
                except TimeoutError as exc:
                    tally.faults.append(f"lost: {exc!s:.200}")
                except ServingError as exc:
                    tally.faults.append(f"failed: {exc!r:.300}")
                else:
                    tally.note(self._pool.fault(indices, vectors))

    # -- HTTP ------------------------------------------------------------------------------------------

    def _encode(self, tally: Tally, rng: random.Random) -> None:
        self._post(tally, rng, "/encode", lambda texts: {"id": 1, "texts": texts}, lambda body: body["result"])

    def _openai(self, tally: Tally, rng: random.Random) -> None:
        def make(texts: list[str]) -> object:
            return {"model": "m", "input": texts}

        self._post(tally, rng, "/v1/embeddings", make, lambda body: [item["embedding"] for item in body["data"]])

    def _post(
        self,
        tally: Tally,
        rng: random.Random,
        path: str,
        make: Callable[[list[str]], object],
        rows_of: Callable[[dict[str, list[dict[str, object]]]], list[object]],
    ) -> None:
        """Post requests to a route. A request is sent again if its connection broke, because gateways are killed.

        It asks for the same vectors each time, so a client may safely send it again.
        """
        with closing(httpx.Client(base_url=self._target.url, timeout=self._limit_s)) as http:
            while not self._should_stop.is_set():
                indices = self._pool.sample(rng)
                try:
                    response = http.post(path, json=make([self._pool.texts[i] for i in indices]))
                except httpx.TimeoutException as exc:
                    tally.faults.append(f"lost: {exc!r}")
                    continue
                except httpx.TransportError:
                    tally.num_told += 1
                    time.sleep(_RETRY_S)
                    continue
                if response.status_code == 200:
                    vectors = np.array(rows_of(response.json()), np.float32)
                    tally.note(self._pool.fault(indices, vectors))
                elif response.status_code in _RETRY_STATUS:
                    tally.num_told += 1
                    time.sleep(_RETRY_S)
                else:
                    tally.faults.append(f"failed: {response.status_code} {response.text:.200}")
