"""Session: numbers the requests of a client and matches replies to them. No sockets, no clock, no threads.

Rules of this file:
- A request is pending until its reply arrives, or `forget` or `cancel` is called for it. If the connection is
  lost, requests for vectors stay pending and are sent again on the next connection (see retry.py); commands fail.
- A reply to a request that is not pending is ignored: it is late, or it belongs to another client with the same
  identity.
- If requests are pending and no message arrived for PROBE_AFTER_S, the session sends SHOW_CONFIG as a probe. A
  server replies to a probe even if all workers are busy. If no reply arrives within PROBE_TIMEOUT_S, all pending
  requests fail.
- After the sockets have connected, the session sends SHOW_CONFIG as a hello, and repeats it until a reply arrives.
  Only then does the client send requests. The reply proves that the server has read this client's subscription, so
  the client receives all later replies. Without the hello, a request could overtake the subscription. If clients
  share an identity, the server would then send the reply to the others only.
- The reply also says how large a request may be. A larger request is not sent: the server would refuse it, or
  close the connection.
- The request ids on the wire start at a random number, so that other clients cannot guess them. Clients with the
  same identity have different ids.
"""

from __future__ import annotations

import logging
import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from bert_serving.protocol import (
    MAX_IDENTITY_BYTES,
    Command,
    CommandRequest,
    EncodeOptions,
    EncodeRequest,
    ErrorReply,
    Frames,
    InfoReply,
    PayloadTooLarge,
    Reply,
    ServingError,
    Spans,
    Text,
    TraceContext,
    Unavailable,
    reply_from_frames,
    request_to_frames,
)

from .retry import Retry

log = logging.getLogger(__name__)

PROBE_AFTER_S = 10.0
PROBE_TIMEOUT_S = 10.0
HELLO_AGAIN_S = 0.5
_ID_BITS = 63  # an id has at most 20 decimal digits

#: A function of the time `now` that returns (request id, frames) of a new request, as Session.encode does.
MakeRequest: TypeAlias = "Callable[[float], tuple[int, Frames]]"


class Session:
    """Numbers requests and matches replies to them. `now` is a monotonic time in seconds.

    retry: send requests again that the server refuses with an error that says when to try again.
    is_subscribed: whether the server has replied to a hello on the present connection.
    """

    def __init__(self, identity: bytes, *, retry: bool = True) -> None:
        if not 1 <= len(identity) <= MAX_IDENTITY_BYTES:
            raise ValueError(f"identity must have 1 to {MAX_IDENTITY_BYTES} bytes, got {len(identity)}")
        self.identity = identity
        self._base = int(_random_id())
        self.num_request = 0
        self._retries = retry
        self._retry = Retry()
        self._pending: dict[int, bool] = {}  # request number -> whether the request asks for vectors
        self._to_fetch: set[int] = set()  # requests whose replies `take_any` returns
        self._replies: dict[int, Reply] = {}
        self._received_at = 0.0
        self._probe: tuple[int, float] | None = None
        self.is_subscribed = False
        self._hello_at = 0.0
        self._hello_id = _random_id()
        self._max_bytes = math.inf  # the largest body that the server accepts

    def __repr__(self) -> str:
        return f"<Session sent={self.num_request} pending={len(self._pending)} replies={len(self._replies)}>"

    @property
    def pending(self) -> set[int]:
        """The numbers of the requests that have no reply yet."""
        return set(self._pending)

    @property
    def outstanding(self) -> set[int]:
        """The numbers of the requests that are pending or whose reply was not fetched yet."""
        return self._pending.keys() | self._to_fetch

    @property
    def has_to_fetch(self) -> bool:
        """Whether `take_any` will return a reply, now or later."""
        return bool(self._to_fetch)

    @property
    def num_to_fetch(self) -> int:
        """How many replies `take_any` will return, now or later."""
        return len(self._to_fetch)

    # -- sending ---------------------------------------------------------------------------------------

    def encode(
        self,
        texts: Sequence[Text],
        now: float,
        *,
        options: EncodeOptions = EncodeOptions(),  # noqa: B008
        spans: Sequence[Spans] | None = None,
        deadline: float = math.inf,
        flow: str | None = None,
        flow_share: float | None = None,
        trace: str | None = None,
        trace_context: TraceContext | None = None,
        to_fetch: bool = False,
    ) -> tuple[int, Frames]:
        """Return (request id, frames) of a request for vectors.

        deadline: until when the caller waits. to_fetch: let `take_any` return the reply. Raises PayloadTooLarge if
        the server would not accept so large a request.
        """
        request_id = self._begin(now, is_for_vectors=True)
        if to_fetch:
            self._to_fetch.add(request_id)
        request = EncodeRequest(
            self.identity,
            self._wire_id(request_id),
            texts,
            options,
            None if deadline == math.inf else max(0, math.ceil((deadline - now) * 1000)),
            spans,
            flow=flow,
            flow_share=flow_share,
            trace=trace,
            trace_context=trace_context,
        )
        frames = request_to_frames(request)
        if (num_bytes := len(frames[1])) > self._max_bytes:
            self.forget(request_id)
            raise PayloadTooLarge(
                f"a request may have at most {self._max_bytes} bytes (-max_message_mb of the server), "
                f"got {num_bytes}: send fewer texts at once"
            )
        if self._retries:
            self._retry.keep(request_id, frames, deadline)
        return request_id, frames

    def command(self, command: Command, now: float) -> tuple[int, Frames]:
        """Return (request id, frames) of a command."""
        request_id = self._begin(now, is_for_vectors=False)
        return request_id, self._command_frames(request_id, command)

    def probe(self, now: float) -> Frames | None:
        """Return the frames of a probe if a probe is due, else None. Call it about once a second.

        If the previous probe had no reply in time, all pending requests fail with Unavailable.
        """
        if not self._pending or not self.is_subscribed:
            self._probe = None
        elif self._probe is not None:
            if now - self._probe[1] > PROBE_TIMEOUT_S:
                self.fail_pending(Unavailable("the server no longer replies"))
        elif now - self._received_at > PROBE_AFTER_S:
            self.num_request += 1
            self._probe = self.num_request, now
            return self._command_frames(self.num_request, Command.SHOW_CONFIG)
        return None

    def hello(self, now: float) -> Frames | None:
        """Return the frames of a hello if one is due, else None. Call it while the sockets are connected."""
        if self.is_subscribed or now < self._hello_at:
            return None
        self._hello_at = now + HELLO_AGAIN_S
        return request_to_frames(CommandRequest(self.identity, self._hello_id, Command.SHOW_CONFIG))

    def due(self, now: float) -> list[Frames]:
        """Return the frames of the refused requests that must be sent again now."""
        return self._retry.due(now) if self.is_subscribed else []

    def next_due_s(self, now: float) -> float:
        """Return the seconds until `due` returns a request; infinity if it waits for none, or for a connection."""
        return self._retry.next_s(now) if self.is_subscribed else math.inf

    def _command_frames(self, request_id: int, command: Command) -> Frames:
        return request_to_frames(CommandRequest(self.identity, self._wire_id(request_id), command))

    def _wire_id(self, request_id: int) -> bytes:
        return b"%d" % (self._base + request_id)

    def _begin(self, now: float, *, is_for_vectors: bool) -> int:
        if not self._pending:
            self._received_at = now  # before this request, no message was expected
        self.num_request += 1
        self._pending[self.num_request] = is_for_vectors
        return self.num_request

    # -- receiving -------------------------------------------------------------------------------------

    def receive(self, frames: Frames, now: float) -> int | None:
        """Process a message. Return the id of the request that it ends, or None if it ends no request."""
        self._received_at = now
        try:
            reply = reply_from_frames(frames)
        except ValueError as exc:
            log.warning("ignored a message that is not a reply: %s", exc)
            return None
        self._probe = None
        if reply.request_id == self._hello_id:
            self.is_subscribed = True
            self._max_bytes = _max_bytes_of(reply)
        request_id = int(reply.request_id) - self._base if reply.request_id.isdigit() else 0
        if request_id not in self._pending or self._is_sent_again(request_id, reply, now):
            return None
        self._end(request_id)
        self._replies[request_id] = reply
        return request_id

    def _is_sent_again(self, request_id: int, reply: Reply, now: float) -> bool:
        return isinstance(reply, ErrorReply) and self._retry.refuse(request_id, reply.error, now)

    def _end(self, request_id: int) -> None:
        self._pending.pop(request_id, None)
        self._retry.forget(request_id)

    def take(self, request_id: int) -> Reply | None:
        """Return the reply to a request, or None if none has arrived. Raises the error in an ErrorReply."""
        reply = self._replies.pop(request_id, None)
        if isinstance(reply, ErrorReply):
            raise reply.error
        return reply

    def take_any(self) -> tuple[int, Reply] | None:
        """Return the earliest reply to fetch as (request id, reply), or None if no such reply has arrived.

        Raises the error in an ErrorReply.
        """
        for request_id in self._replies:
            if request_id in self._to_fetch:
                self._to_fetch.remove(request_id)
                reply = self.take(request_id)
                assert reply is not None
                return request_id, reply
        return None

    def put_back(self, request_id: int, reply: Reply) -> None:
        """Give back a reply, so that `take_any` returns it again."""
        self._replies[request_id] = reply
        self._to_fetch.add(request_id)

    def forget(self, request_id: int) -> None:
        """Stop waiting for a request. Its reply will be ignored."""
        self._end(request_id)
        self._to_fetch.discard(request_id)
        self._replies.pop(request_id, None)

    def cancel(self, request_id: int) -> Frames | None:
        """Stop waiting for a request. Return the frames of CANCEL if it asks for vectors, else None."""
        is_for_vectors = self._pending.get(request_id, False)
        self.forget(request_id)
        return self._command_frames(request_id, Command.CANCEL) if is_for_vectors else None

    def connection_lost(self, error: ServingError, now: float) -> list[int]:
        """End the pending requests that are not sent again with an error; return their numbers.

        The next connection needs a new hello.
        """
        self.is_subscribed = False
        self._hello_at = 0.0
        self._hello_id = _random_id()  # a reply to an earlier hello says nothing about the next connection
        self._probe = None
        ended = [number for number in self._pending if not self._retry.refuse(number, error, now)]
        return self._fail(dict.fromkeys(ended, error))

    def fail_overdue(self, now: float) -> list[int]:
        """End the requests whose time has passed before they could be sent again; return their numbers."""
        return self._fail(self._retry.overdue(now))

    def fail_pending(self, error: ServingError) -> list[int]:
        """End all pending requests with an error. Return their numbers."""
        self._probe = None
        return self._fail(dict.fromkeys(self._pending, error))

    def _fail(self, errors: Mapping[int, ServingError]) -> list[int]:
        for request_id, error in errors.items():
            self._replies[request_id] = ErrorReply(self.identity, b"%d" % request_id, error)
            self._end(request_id)
        return sorted(errors)


def _max_bytes_of(reply: Reply) -> float:
    """Return the largest body that a server accepts, from its reply to SHOW_CONFIG; infinity if it names none."""
    info = reply.info if isinstance(reply, InfoReply) else None
    limit_mb = info.get("max_message_mb") if isinstance(info, dict) else None  # other servers may send any JSON
    return limit_mb << 20 if type(limit_mb) is int else math.inf


def _random_id() -> bytes:
    return b"%d" % secrets.randbits(_ID_BITS)
