"""What a client knows of its conversation with the server. No sockets, no clock, no threads.

Rules of this file:
- A request is pending from `request` until its reply is taken, it is forgotten, or the line is lost.
- A reply that nobody waits for (late, or meant for a clone with the same identity) is ignored.
- When something is pending and nothing was heard for a while, the server is probed with SHOW_CONFIG, which
  it answers whatever its workers do. A probe that stays unanswered fails everything that is pending.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Sequence

from bert_serving.protocol import (
    MAX_IDENTITY_BYTES,
    Command,
    CommandRequest,
    EncodeOptions,
    EncodeRequest,
    ErrorReply,
    Frames,
    Reply,
    ServingError,
    Spans,
    Text,
    Unavailable,
    reply_from_frames,
    request_to_frames,
)

log = logging.getLogger(__name__)

PROBE_AFTER_S = 10.0
PROBE_TIMEOUT_S = 10.0


class Session:
    """Numbers requests and matches replies to them. `now` is a monotonic time in seconds.

    is_shared: others may use the same identity and hear our replies, as we hear theirs; so that nobody
    takes a reply for his own that is not, requests are then numbered on the wire from a random number on.
    """

    def __init__(self, identity: bytes, *, is_shared: bool = False) -> None:
        if not 1 <= len(identity) <= MAX_IDENTITY_BYTES:
            raise ValueError(f"identity must have 1 to {MAX_IDENTITY_BYTES} bytes, got {len(identity)}")
        self.identity = identity
        self._base = secrets.randbelow(10**9) * 10**9 if is_shared else 0
        self.num_request = 0
        self._pending: set[int] = set()
        self._to_fetch: set[int] = set()  # pending or answered requests that `fetch` should return
        self._replies: dict[int, Reply] = {}
        self._heard_at = 0.0
        self._probe: tuple[int, float] | None = None

    def __repr__(self) -> str:
        return f"<Session sent={self.num_request} pending={len(self._pending)} answered={len(self._replies)}>"

    @property
    def pending(self) -> set[int]:
        """Requests that wait for their reply."""
        return set(self._pending)

    @property
    def outstanding(self) -> set[int]:
        """Requests whose result nobody has yet: those that are pending, and those that wait to be fetched."""
        return self._pending | self._to_fetch

    @property
    def has_to_fetch(self) -> bool:
        """Whether `take_any` has something to give, now or later."""
        return bool(self._to_fetch)

    @property
    def num_to_fetch(self) -> int:
        """Requests that `take_any` will return, now or later."""
        return len(self._to_fetch)

    # -- sending ---------------------------------------------------------------------------------------

    def encode(
        self,
        texts: Sequence[Text],
        now: float,
        *,
        options: EncodeOptions = EncodeOptions(),  # noqa: B008
        spans: Sequence[Spans] | None = None,
        deadline_ms: int | None = None,
        to_fetch: bool = False,
    ) -> tuple[int, Frames]:
        """Return (request id, frames) of a request for vectors; `to_fetch`: `take_any` may return it."""
        request_id = self._begin(now)
        if to_fetch:
            self._to_fetch.add(request_id)
        request = EncodeRequest(self.identity, self._wire_id(request_id), texts, options, deadline_ms, spans)
        return request_id, request_to_frames(request)

    def command(self, command: Command, now: float) -> tuple[int, Frames]:
        """Return (request id, frames) of a command."""
        request_id = self._begin(now)
        return request_id, request_to_frames(CommandRequest(self.identity, self._wire_id(request_id), command))

    def probe(self, now: float) -> Frames | None:
        """Return the frames of a probe if one is due. Call it about once a second while waiting."""
        if not self._pending:
            self._probe = None
        elif self._probe is not None:
            if now - self._probe[1] > PROBE_TIMEOUT_S:
                self.fail_pending(Unavailable("the server does not answer any more"))
        elif now - self._heard_at > PROBE_AFTER_S:
            self.num_request += 1
            self._probe = self.num_request, now
            wire_id = self._wire_id(self.num_request)
            return request_to_frames(CommandRequest(self.identity, wire_id, Command.SHOW_CONFIG))
        return None

    def _wire_id(self, request_id: int) -> bytes:
        return b"%d" % (self._base + request_id)

    def _begin(self, now: float) -> int:
        if not self._pending:
            self._heard_at = now  # the silence before the first question does not count
        self.num_request += 1
        self._pending.add(self.num_request)
        return self.num_request

    # -- receiving -------------------------------------------------------------------------------------

    def receive(self, frames: Frames, now: float) -> int | None:
        """Take a message; return the request that it answers, or None if nobody waits for it."""
        self._heard_at = now
        try:
            reply = reply_from_frames(frames)
        except ValueError as exc:
            log.warning("ignored a message that is no reply: %s", exc)
            return None
        request_id = int(reply.request_id) - self._base if reply.request_id.isdigit() else 0
        self._probe = None
        if request_id not in self._pending:
            return None
        self._pending.remove(request_id)
        self._replies[request_id] = reply
        return request_id

    def take(self, request_id: int) -> Reply | None:
        """Return the reply to a request once it is there. Raises the ServingError that it carries."""
        reply = self._replies.pop(request_id, None)
        if isinstance(reply, ErrorReply):
            raise reply.error
        return reply

    def take_any(self) -> tuple[int, Reply] | None:
        """Return (request id, reply) of a request to fetch, as soon as one is answered, in order of arrival."""
        for request_id in self._replies:
            if request_id in self._to_fetch:
                self._to_fetch.remove(request_id)
                reply = self.take(request_id)
                assert reply is not None
                return request_id, reply
        return None

    def put_back(self, request_id: int, reply: Reply) -> None:
        """Make a reply that `take_any` gave fetchable again."""
        self._replies[request_id] = reply
        self._to_fetch.add(request_id)

    def forget(self, request_id: int) -> None:
        """Wait no longer for a request; its reply will be ignored."""
        self._pending.discard(request_id)
        self._to_fetch.discard(request_id)
        self._replies.pop(request_id, None)

    def fail_pending(self, error: ServingError) -> list[int]:
        """Answer everything that is pending with an error; return the requests."""
        failed = sorted(self._pending)
        for request_id in failed:
            self._replies[request_id] = ErrorReply(self.identity, b"%d" % request_id, error)
        self._pending.clear()
        self._probe = None
        return failed
