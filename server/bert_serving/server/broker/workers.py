"""The worker processes as the broker sees them: the one place that knows which workers are ready.

A worker name may belong to two processes for a while: one that serves, and one that is being started to take its
place. Each process has its own address, "<name>#<process id>", and one more for its results. The process that
became ready last has the name; messages of the other process are ignored.
"""

from __future__ import annotations

import logging
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import zmq
from bert_serving.protocol import Frames
from bert_serving.protocol.workers import (
    RESULTS,
    BrokerMessage,
    Changed,
    Failed,
    Heartbeat,
    ModelFacts,
    Ready,
    Refused,
    Result,
    Stop,
    WorkerMessage,
    worker_message_from_frames,
    worker_message_to_frames,
)

from .loop_clock import LoopClock
from .ports import receive, send

log = logging.getLogger(__name__)

_RECENT_FORWARD_S = 60.0  # even an idle worker runs its model more often than once in this time
_MAX_UNREADABLE = 3  # a process that has sent so many unreadable messages is replaced


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A message that cannot be read. It may be the result of any batch of its worker."""


#: What `Workers.messages` passes to the broker.
MessageForBroker: TypeAlias = "Ready | Changed | Result | Failed | Heartbeat | Unreadable"


@dataclass(slots=True)
class WorkerView:
    """What the broker knows about the process that serves under a worker's name.

    pid: process id; None if no process is ready. facts: what the worker reported when it became ready. heard_at:
    time of its last message, in seconds of the loop's clock. stale_since: when it was first found stale
    without a batch; None: it is not.
    """

    name: str
    pid: int | None = None
    facts: ModelFacts | None = None
    heartbeat: Heartbeat | None = None
    heard_at: float = 0.0
    stale_since: float | None = None
    num_unreadable: int = 0

    @property
    def is_ready(self) -> bool:
        """Whether the worker has loaded its model and has not been lost since."""
        return self.pid is not None

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
            "state": self.state(now),
            "forward_age_s": round(self._forward_age_s(now), 3) if self.heartbeat else None,
            **({} if self.facts is None else self.facts.to_info()),
        }

    def _forward_age_s(self, now: float) -> float:
        return now - self.heard_at + (self.heartbeat.forward_age_s if self.heartbeat else 0.0)


class Workers:
    """All workers and the socket to them. A worker is ready from its Ready message until `lost` is called.

    num_ready: the number of ready workers.
    """

    def __init__(self, socket: zmq.Socket[bytes], names: Sequence[str], clock: LoopClock) -> None:
        self._socket = socket
        self._clock = clock
        self._views = {name: WorkerView(name) for name in names}
        self._refusals: dict[int, str] = {}  # by process id
        self._gone: set[int] = set()  # processes that were killed but have not ended yet
        self._lost_at: float | None = None  # when a ready worker was lost last
        self.num_ready = 0

    def __repr__(self) -> str:
        return f"<Workers {self.num_ready} of {len(self._views)} are ready>"

    @property
    def views(self) -> Mapping[str, WorkerView]:
        """What is known about each worker, by name."""
        return self._views

    def have_recent_forwards(self) -> bool:
        """Whether every worker is ready and has computed something less than a minute ago."""
        return all(view.has_recent_forward(self._clock.now) for view in self._views.values())

    @property
    def outage_s(self) -> float:
        """The seconds since the last ready worker was lost; 0 if a worker is ready, or if none was ready yet."""
        return 0.0 if self.num_ready or self._lost_at is None else self._clock.now - self._lost_at

    def faulty(self, *, silent_s: float, idle: Container[str], timeout_s: float) -> dict[str, str]:
        """Return the workers that should be replaced, with the reasons.

        silent_s: a worker that says nothing for so long is faulty. idle: the names of the workers without a batch.
        Such a worker tests its model again and again; it is faulty if it stays stale for more than `timeout_s`.
        """
        found = {}
        for view in self._views.values():
            is_stale = view.is_ready and view.name in idle and not view.has_recent_forward(self._clock.now)
            view.stale_since = (view.stale_since or self._clock.now) if is_stale else None
            if view.is_ready and self._clock.now - view.heard_at > silent_s:
                found[view.name] = "does not answer"
            elif view.stale_since is not None and self._clock.now - view.stale_since > timeout_s:
                found[view.name] = "computes nothing"
            elif view.num_unreadable >= _MAX_UNREADABLE:
                found[view.name] = "sends messages that cannot be read"
        return found

    def messages(self) -> Iterator[tuple[str, MessageForBroker]]:
        """Read the socket; yield (worker name, message) for each message that the broker must act on."""
        while (frames := receive(self._socket)) is not None:
            address = frames[0].bytes.removesuffix(RESULTS)
            name, _, pid = address.decode(errors="replace").partition("#")
            if name not in self._views or not pid.isdecimal():
                log.warning("ignored a message that is not from a worker")
                continue
            message = self._on_message(self._views[name], int(pid), [frame.buffer for frame in frames[1:]])
            if message is not None:
                yield name, message

    def _on_message(self, view: WorkerView, pid: int, frames: Frames) -> MessageForBroker | None:
        message = _read(view.name, frames)
        if isinstance(message, Refused):
            self._refusals[pid] = message.reason
        elif pid in self._gone:
            log.debug("ignored a message of a process that was killed name=%s pid=%d", view.name, pid)
        elif isinstance(message, Ready):
            self.num_ready += not view.is_ready
            self._views[view.name] = WorkerView(view.name, pid, message.facts, heard_at=self._clock.now)
            return message
        elif pid != view.pid:
            log.debug("ignored a message of a process that was replaced name=%s pid=%d", view.name, pid)
        elif isinstance(message, (Changed, Result, Failed, Heartbeat, Unreadable)):
            view.heard_at = self._clock.now
            if isinstance(message, Heartbeat):
                view.heartbeat = message
            elif isinstance(message, Changed):
                view.facts = message.facts
            elif isinstance(message, Unreadable):
                view.num_unreadable += 1
            return message
        return None

    def send(self, name: str, frames: Frames) -> None:
        """Send a message to a worker that is ready."""
        view = self._views[name]
        assert view.pid is not None
        try:
            send(self._socket, [b"%s#%d" % (name.encode(), view.pid), *frames])
        except zmq.ZMQError as exc:
            # The worker has just died. The supervisor will call `worker_lost`, and another worker gets the batch.
            log.warning("cannot send to %s: %s", name, exc)

    def lost(self, name: str, pid: int) -> bool:
        """Forget a process that is dead or is being killed; return whether it serves under this name."""
        self._gone.add(pid)
        if self._views[name].pid != pid:
            return False
        self._views[name] = WorkerView(name)
        self._lost_at = self._clock.now
        self.num_ready -= 1
        return True

    def take_refusal(self, pid: int) -> str | None:
        """Return why a process that has ended could not serve, if it gave a reason; forget the process."""
        self._gone.discard(pid)  # its messages were read, and another process may get its id
        return self._refusals.pop(pid, None)

    def stop(self) -> None:
        """Tell every ready worker to end."""
        for view in self._views.values():
            if view.is_ready:
                self.send(view.name, worker_message_to_frames(Stop()))


def _read(name: str, frames: Frames) -> WorkerMessage | BrokerMessage | Unreadable:
    try:
        return worker_message_from_frames(frames)
    except Exception:  # an unreadable message, of any kind, must not end the server
        log.exception("cannot read a message of %s", name)
        return Unreadable()
