"""The client of a gateway in Ray Serve: it calls the replicas of the model through their deployment's handle.

Rules of this file:
- A request whose replica has died, or can compute nothing more, is sent once more. Encoding a text twice does no
  harm. It is not sent a third time, because its own texts may be what ends the replicas.
- A request that is cancelled is cancelled in its replica too. A call that Ray has cancelled is not sent again.
- Errors of Ray become the errors that the gateway's dialects know.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bert_serving.protocol import (
    WIRE_VERSION,
    Command,
    DeadlineExceeded,
    EncodeOptions,
    EncodeReply,
    JsonObject,
    Overloaded,
    ServingError,
    Spans,
    Text,
    Unavailable,
)
from bert_serving.protocol.errors import ErrorInfo, error_from_info
from bert_serving.protocol.trace_names import quoted
from ray.exceptions import ObjectLostError, RayActorError, RayTaskError, TaskCancelledError, WorkerCrashedError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RequestCancelledError
from ray.serve.handle import DeploymentHandle, DeploymentResponse

from ..server.settings import Settings, own_version
from .metrics import merged
from .options import SERVER_SETTINGS

log = logging.getLogger(__name__)

_RETRY_AFTER_MS = 1000
_BROADCAST_S = 2.0  # twice, it is less than a gateway waits for the status
_CANCELLED_S = 5.0  # in this time, Ray also cancels the task whose call it has cancelled
_DIED = (RayActorError, ObjectLostError, WorkerCrashedError)
_HIDDEN = {"api_key", "api_key_file"}


class ReplicasClient:
    """Does what AsyncBertClient does for a gateway, with replicas instead of a server. For one event loop.

    engine: the handle of the deployment of `Engine`. settings: those of the server, for its status.
    """

    def __init__(self, engine: DeploymentHandle, settings: Settings) -> None:
        self._engine = engine
        self._encode = engine.encode_reply
        self._ids = itertools.count(1)
        self._num_sent = 0
        self._settings = {name: getattr(settings, name) for name in sorted(SERVER_SETTINGS - _HIDDEN)}

    @property
    def status(self) -> JsonObject:
        """The number of requests that were sent."""
        return {"num_request": self._num_sent, "client_version": own_version()}

    async def encode_reply(
        self,
        texts: Sequence[Text],
        options: EncodeOptions,
        spans: Sequence[Spans] | None,
        *,
        timeout_ms: int | None,
        flow: str | None,
        flow_share: float | None,
        trace: str | None,
    ) -> tuple[int, EncodeReply]:
        """Return (number of the request, reply). Raises ServingError."""
        number = next(self._ids)
        deadline = None if timeout_ms is None else time.monotonic() + timeout_ms / 1000
        more = {"timeout_ms": timeout_ms, "flow": flow, "flow_share": flow_share, "trace": trace}
        try:
            return number, await self._sent(texts, options, spans, more)
        except Unavailable as exc:
            log.warning("sending a request once more trace=%s reason=%s", quoted(trace), exc.message)
        if deadline is not None:
            more["timeout_ms"] = _remaining_ms(deadline)
        return number, await self._sent(texts, options, spans, more)

    async def _sent(
        self,
        texts: Sequence[Text],
        options: EncodeOptions,
        spans: Sequence[Spans] | None,
        more: Mapping[str, object],
    ) -> EncodeReply:
        self._num_sent += 1
        response = self._encode.remote(texts, options, spans, **more)
        # In a task of its own, because Ray may cancel the call: that must differ from the end of the current task.
        waiting = asyncio.ensure_future(_result(response))
        try:
            await asyncio.wait([waiting])
        except asyncio.CancelledError:
            response.cancel()
            waiting.cancel()
            raise
        result = await self._unless_cancelled(waiting)
        if isinstance(result, EncodeReply):
            return result
        raise error_from_info(result)

    async def _unless_cancelled(self, done: asyncio.Future[EncodeReply | ErrorInfo]) -> EncodeReply | ErrorInfo:
        try:
            return done.result()
        except (asyncio.CancelledError, RequestCancelledError, TaskCancelledError):
            # The caller has left. Ray cancels the calls of its request, and then the request, which is this task.
            await asyncio.sleep(_CANCELLED_S)
            raise asyncio.CancelledError from None
        except Exception as exc:
            raise _translated(exc) from exc

    # -- the state of the replicas ---------------------------------------------------------------------

    async def server_status(self) -> JsonObject:
        """Return the settings of the server, the state of each replica, and the sums of their counters."""
        states = await self._broadcast("state")
        newest = max(states, key=lambda state: state["ready_at"], default=None)
        counters = {
            name: sum(state[name] for state in states)
            for name in ("queue_texts", "open_requests", "num_batch", "num_encoded_seq", "num_encoded_token")
        }
        return {
            **self._settings,
            "version": own_version(),
            "server_version": WIRE_VERSION,
            "num_worker": len(states),
            "ready": bool(states),
            "model": "" if newest is None else newest["worker"]["fingerprint"],
            "workers": [state["worker"] for state in states],
            **counters,
        }

    async def ask(self, command: Command) -> JsonObject:
        """Return the metrics of all replicas, which is what a gateway asks for. Raises ServingError."""
        if command is not Command.SHOW_METRICS:
            raise Unavailable(f"{command.value.decode()} is not available on Ray")
        texts = await self._broadcast("metrics_text")
        text = await asyncio.to_thread(merged, texts)
        return {"template": text.replace("%", "%%"), "numbers": []}  # as a broker's reply

    async def fetch_tokenizer(self, fingerprint: str, path: Path) -> None:
        """Write the tokenizer of a model to a file; do nothing if no replica has the model."""
        files: list[bytes | None] = await self._broadcast("tokenizer", fingerprint)
        if content := next(filter(None, files), None):
            await asyncio.to_thread(path.write_bytes, content)

    async def close(self) -> None:
        """Do nothing: a handle needs no end."""

    async def _broadcast(self, method: str, *args: object) -> list[Any]:
        """Return the results of all replicas. If one dies meanwhile, ask those that are left."""
        try:
            return await self._results(method, *args)
        except Unavailable:
            return await self._results(method, *args)

    async def _results(self, method: str, *args: object) -> list[Any]:
        try:
            return list(await self._engine.broadcast(method, *args).results_async(timeout_s=_BROADCAST_S))
        except Exception as exc:
            raise _translated(exc) from exc


async def _result(response: DeploymentResponse) -> EncodeReply | ErrorInfo:
    result: EncodeReply | ErrorInfo = await response
    return result


def _remaining_ms(deadline: float) -> int:
    """Return the milliseconds until the deadline. Raises DeadlineExceeded if it has passed."""
    remaining = math.ceil((deadline - time.monotonic()) * 1000)
    if remaining <= 0:
        raise DeadlineExceeded("the deadline has passed")
    return remaining


def _translated(exc: Exception) -> Exception:
    """Return the error that the gateway knows for an error of Ray; any other error as it is."""
    if isinstance(exc, RayTaskError):
        exc = exc.cause
    if isinstance(exc, ServingError):
        return exc
    if isinstance(exc, TimeoutError):
        return Unavailable("the replicas did not answer in time")
    if isinstance(exc, BackPressureError):
        return Overloaded("too many requests wait for a replica", retry_after_ms=_RETRY_AFTER_MS)
    if isinstance(exc, _DIED):
        return Unavailable("the replica has ended", retry_after_ms=_RETRY_AFTER_MS)
    if isinstance(exc, DeploymentUnavailableError | RequestCancelledError | TaskCancelledError):
        return Unavailable("no replica can take requests", retry_after_ms=_RETRY_AFTER_MS)
    return exc
