"""A running server, and the ways its clients call it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import psutil
from bert_serving.client import BertClient
from bert_serving.protocol import Rows

from benchmarks.arena.callers import BertCaller, Caller, Format, HttpCaller, OpenCaller
from benchmarks.arena.in_process import LeftOutError, reason_in
from benchmarks.common import seconds
from tests.support.running_server import RunningServer, free_ports
from tests.support.waiting import HANG_S

#: Texts in one HTTP request of a bulk job, and how many such requests are sent at once.
_HTTP_TEXTS, _HTTP_REQUESTS = 1024, 4


class OwnServer:
    """This service, called through ZeroMQ (how is None) or through HTTP. The constructor starts it."""

    def __init__(self, flags: Sequence[str], how: Format | None) -> None:
        self._how = how
        with ExitStack() as stack:
            self._server = stack.enter_context(RunningServer(*flags))
            try:
                self._server.wait_ready()
            except AssertionError:
                raise LeftOutError(reason_in(self._server.log)) from None
            if how is None:
                client = BertClient(**self._server.ports, ip="127.0.0.1", check_length=False)
                self._client: BertClient | None = stack.enter_context(client)
            else:
                self._client = None
            self._stack = stack.pop_all()

    def __enter__(self) -> OwnServer:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    async def open_caller(self) -> Caller:
        """Return a new client."""
        if self._how is None:
            return await BertCaller.open(**self._server.ports)
        return await HttpCaller.open(self._server.http_port, self._how)

    def bulk(self, texts: Sequence[str]) -> float:
        """Encode many texts with one client; return the seconds."""
        if self._client is not None:
            client = self._client
            return seconds(lambda: client.encode(list(texts)))
        return asyncio.run(_bulk_over_http(self.open_caller, texts))

    def vectors(self, texts: Sequence[str]) -> Rows:
        """Return the vectors of the texts."""
        return asyncio.run(_vectors(self, texts))

    @property
    def ran(self) -> dict[str, str]:
        """How its worker computes now."""
        with BertClient(**self._server.ports, ip="127.0.0.1", ignore_all_checks=True) as client:
            worker = client.server_status["workers"][0]
        return {name: str(worker[name]) for name in ("device", "dtype", "forward")}

    def own_cpu_seconds(self) -> float | None:
        """Return the CPU time of the server's own process, which is the broker and the supervisor."""
        times = psutil.Process(self._server.process.pid).cpu_times()
        return times.user + times.system


class PeerServer:
    """Another server, called through HTTP. The constructor starts it.

    command: PORT in it stands for the port. folder: of the model. The command runs in a folder with links to its
    files, because a server may write beside them.
    """

    def __init__(self, command: Sequence[str], folder: Path, how: Format, env: dict[str, str]) -> None:
        self._how, (self._port,) = how, free_ports(1)
        words = [word.replace("PORT", str(self._port)) for word in command]
        own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed by __exit__
        self._folder = tempfile.TemporaryDirectory()
        # What a server keeps for its next start belongs to one model, but a server may look only at the name.
        self._hub = tempfile.TemporaryDirectory()
        for path in folder.iterdir():
            (Path(self._folder.name) / path.name).symlink_to(path)
        self._process = subprocess.Popen(
            words,
            cwd=self._folder.name,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env={**own, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": self._hub.name, **env},
            start_new_session=True,
        )
        try:
            self._wait_ready()
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> PeerServer:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            family = psutil.Process(self._process.pid).children(recursive=True)
            for each in family:
                each.kill()
            self._process.kill()
        self._process.wait()
        self._log.close()
        self._hub.cleanup()
        self._folder.cleanup()

    async def open_caller(self) -> Caller:
        """Return a new client."""
        return await HttpCaller.open(self._port, self._how)

    def bulk(self, texts: Sequence[str]) -> float:
        """Encode many texts with one client; return the seconds."""
        return asyncio.run(_bulk_over_http(self.open_caller, texts))

    def vectors(self, texts: Sequence[str]) -> Rows:
        """Return the vectors of the texts."""
        return asyncio.run(_vectors(self, texts))

    @property
    def ran(self) -> dict[str, str]:
        """Nothing: it does not say."""
        return {}

    def own_cpu_seconds(self) -> float | None:
        """Return None: another server's processes are not divided as ours are."""
        return None

    def _wait_ready(self) -> None:
        """Wait until the server encodes a text."""
        until = time.monotonic() + HANG_S
        while (problem := self._problem()) is not None:
            if self._process.poll() is not None or time.monotonic() > until:
                self._log.seek(0)
                raise LeftOutError(f"{reason_in(self._log.read())} ({problem})")
            time.sleep(0.2)

    def _problem(self) -> str | None:
        """Return why the server does not encode a text, or None if it does."""
        try:
            self.vectors(["ready?"])
        except (OSError, RuntimeError) as error:
            return str(error)
        return None


Served = OwnServer | PeerServer


async def _vectors(server: Served, texts: Sequence[str]) -> Rows:
    caller = await server.open_caller()
    try:
        return np.concatenate([await caller.encode(texts[i : i + 64]) for i in range(0, len(texts), 64)])
    finally:
        await caller.close()


async def _bulk_over_http(open_caller: OpenCaller, texts: Sequence[str]) -> float:
    """Send the texts in requests of _HTTP_TEXTS, at most _HTTP_REQUESTS at once; return the seconds."""
    requests = [texts[i : i + _HTTP_TEXTS] for i in range(0, len(texts), _HTTP_TEXTS)]
    callers: list[Caller] = [await open_caller() for _ in requests[:_HTTP_REQUESTS]]
    rest = iter(requests)

    async def send(caller: Caller) -> None:
        for request in rest:
            await caller.encode(request)

    start = time.perf_counter()
    await asyncio.gather(*map(send, callers))
    took = time.perf_counter() - start
    for caller in callers:
        await caller.close()
    return took
