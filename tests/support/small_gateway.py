"""HTTP connections with limits, without a server behind them, for tests of what a caller may do to one."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from typing import Any

import uvicorn
from bert_serving.server.gateway.http_protocol import ENDED_WITH, ConnectionPool
from bert_serving.server.gateway.limits import ConnectionLimits
from bert_serving.server.gateway.tls import Tls

from tests.support.waiting import HANG_S, wait_until

BIG = 20 << 20


class SmallGateway:
    """A context manager with a gateway on a free port, or on another listener, in a thread of its own.

    GET /live responds at once. POST to any path responds with the size of the body. /big responds with BIG bytes.
    /who responds with the name of the caller's host. /early responds before it reads the body. /wait never
    responds, and /unread neither reads nor responds. num_waiting: requests to /wait and /unread that run. ended:
    how the requests that were cancelled have ended. refusals: statuses of the refusals.
    """

    def __init__(
        self,
        limits: ConnectionLimits,
        tls: Tls | None = None,
        *,
        listener: socket.socket | None = None,
        trusted_proxies: str = "",
        root_path: str = "",
    ) -> None:
        self.num_waiting = 0
        self.ended: list[object] = []
        self.refusals: list[int] = []
        self.pool = ConnectionPool(limits, self.refusals.append, slow_paths=frozenset({"/slow"}), tls=tls)
        self._listener = listener or socket.create_server(("127.0.0.1", 0), backlog=1024)
        self._server = uvicorn.Server(
            uvicorn.Config(
                self._app,
                http=self.pool.new_connection,  # type: ignore[arg-type]
                ws="none",
                log_config=None,
                lifespan="off",
                interface="asgi3",
                timeout_keep_alive=limits.keep_alive_s,  # type: ignore[arg-type]
                timeout_graceful_shutdown=1,
                forwarded_allow_ips=trusted_proxies,
                root_path=root_path,
            )
        )
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def __enter__(self) -> SmallGateway:
        self._thread.start()
        wait_until(lambda: self._server.started)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(HANG_S)
        self._listener.close()

    def connect(self, sent: bytes = b"", *, receive_bytes: int | None = None) -> socket.socket:
        """Return a connected socket that has sent these bytes."""
        caller = socket.socket(self._listener.family)
        if receive_bytes is not None:
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        caller.settimeout(HANG_S)
        caller.connect(self._listener.getsockname())
        caller.sendall(sent)
        return caller

    def ask(self, sent: bytes) -> bytes:
        """Send bytes on a new connection; return all that comes back until the gateway closes it."""
        with self.connect(sent) as caller:
            return read_all(caller)

    async def _serve(self) -> None:
        checks = asyncio.create_task(self.pool.check_forever())
        await self._server.serve(sockets=[self._listener])
        checks.cancel()

    async def _app(self, scope: Any, receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
        try:
            await self._respond(scope, receive, send)
        except asyncio.CancelledError:
            self.ended.append(scope.get(ENDED_WITH))
            raise

    async def _respond(self, scope: Any, receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
        size = 0
        path = scope["path"].removeprefix(scope["root_path"])
        while scope["method"] == "POST" and path not in ("/early", "/unread"):
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            size += len(message["body"])
            if not message["more_body"]:
                break
        if path in ("/wait", "/unread"):
            await self._wait()
        body = b"x" * BIG if path == "/big" else str(size).encode()
        body = str(scope["client"][0]).encode() if path == "/who" else body
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _wait(self) -> None:
        self.num_waiting += 1
        try:
            await asyncio.Event().wait()
        finally:
            self.num_waiting -= 1


def read_all(caller: socket.socket) -> bytes:
    """Return what arrives until the connection ends, or b"" for what was lost because it was reset."""
    pieces = []
    try:
        while piece := caller.recv(1 << 16):
            pieces.append(piece)
    except ConnectionError:
        pass
    return b"".join(pieces)
