"""The worker processes as the broker sees them: the one place that knows which workers are ready."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import zmq
from bert_serving.protocol import Frames
from bert_serving.protocol.workers import (
    Failed,
    Heartbeat,
    ModelFacts,
    Ready,
    Refused,
    Result,
    Stop,
    worker_message_from_frames,
    worker_message_to_frames,
)

from .ports import receive

log = logging.getLogger(__name__)

_RECENT_FORWARD_S = 60.0  # even an idle worker runs its model more often than once in this time


@dataclass(slots=True)
class WorkerView:
    """What the broker knows about one worker process.

    routing_id: address of the worker; None until the worker is ready. facts: what the worker reported when it
    became ready. refusal: why the worker cannot serve. heard_at: time of the worker's last message, in monotonic
    seconds.
    """

    name: str
    routing_id: bytes | None = None
    facts: ModelFacts | None = None
    heartbeat: Heartbeat | None = None
    heard_at: float = 0.0
    refusal: str | None = None

    @property
    def is_ready(self) -> bool:
        """Whether the worker has loaded its model and has not been lost since."""
        return self.routing_id is not None

    def has_recent_forward(self, now: float) -> bool:
        """Whether the worker is ready and its last successful forward pass was less than a minute ago."""
        return self.is_ready and self._forward_age_s(now) < _RECENT_FORWARD_S

    def state(self, now: float) -> str:
        """Return one of metrics.WORKER_STATES."""
        if not self.is_ready:
            return "starting"
        return "ready" if self.has_recent_forward(now) else "stale"

    def to_info(self, now: float) -> dict[str, object]:
        """Return the worker's entry in the reply to SHOW_STATUS."""
        return {
            "name": self.name,
            "state": "ready" if self.is_ready else "starting",
            "forward_age_s": round(self._forward_age_s(now), 3) if self.heartbeat else None,
            **({} if self.facts is None else self.facts.to_info()),
        }

    def _forward_age_s(self, now: float) -> float:
        return now - self.heard_at + (self.heartbeat.forward_age_s if self.heartbeat else 0.0)


class Workers:
    """All workers and the socket to them. A worker is ready from its Ready message until `lost` is called."""

    def __init__(self, socket: zmq.Socket[bytes], names: Sequence[str]) -> None:
        self._socket = socket
        self._views = {name: WorkerView(name) for name in names}

    def __repr__(self) -> str:
        return f"<Workers {self.num_ready} of {len(self._views)} are ready>"

    @property
    def views(self) -> Mapping[str, WorkerView]:
        """What is known about each worker, by name."""
        return self._views

    @property
    def num_ready(self) -> int:
        """The number of ready workers."""
        return sum(view.is_ready for view in self._views.values())

    def have_recent_forwards(self, now: float) -> bool:
        """Whether every worker is ready and has computed something less than a minute ago."""
        return all(view.has_recent_forward(now) for view in self._views.values())

    def silent(self, now: float, silent_s: float) -> list[str]:
        """Return the ready workers that have sent nothing for `silent_s` seconds."""
        return [view.name for view in self._views.values() if view.is_ready and now - view.heard_at > silent_s]

    def messages(self, now: float) -> Iterator[tuple[str, Ready | Result | Failed]]:
        """Read the socket; yield (worker name, message) for each message that the scheduler needs."""
        while (frames := receive(self._socket)) is not None:
            routing_id = frames[0].bytes
            name = routing_id.decode().partition("#")[0]  # a routing id is "<name>#<process id>"
            message = worker_message_from_frames([frame.buffer for frame in frames[1:]])
            view = self._views[name]
            view.heard_at = now
            if isinstance(message, Ready):
                view.routing_id, view.facts, view.refusal = routing_id, message.facts, None
                yield name, message
            elif isinstance(message, Refused):
                view.refusal = message.reason
            elif routing_id != view.routing_id:
                log.debug("ignored a message of a worker that was replaced name=%s", name)
            elif isinstance(message, Heartbeat):
                view.heartbeat = message
            elif isinstance(message, (Result, Failed)):
                yield name, message

    def send(self, name: str, frames: Frames) -> None:
        """Send a message to a worker that is ready."""
        routing_id = self._views[name].routing_id
        assert routing_id is not None
        try:
            self._socket.send_multipart([routing_id, *frames], zmq.NOBLOCK, copy=False)
        except zmq.ZMQError as exc:
            # The worker has just died. The supervisor will call `worker_lost`, and another worker gets the batch.
            log.warning("cannot send to %s: %s", name, exc)

    def lost(self, name: str) -> str | None:
        """Forget a worker process; return why it could not serve, or None if it gave no reason."""
        refusal = self._views[name].refusal
        self._views[name] = WorkerView(name)
        return refusal

    def stop(self) -> None:
        """Tell every ready worker to end."""
        for view in self._views.values():
            if view.is_ready:
                self.send(view.name, worker_message_to_frames(Stop()))
