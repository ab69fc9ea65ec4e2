"""In every sequence of events, each request of a session ends exactly once, with its own reply or an error."""

from __future__ import annotations

import numpy as np
from bert_serving.client.session import Session
from bert_serving.protocol import (
    EncodeReply,
    EncodeRequest,
    ErrorReply,
    InfoReply,
    InvalidRequest,
    Overloaded,
    Reply,
    ServingError,
    Unavailable,
    reply_to_frames,
    request_from_frames,
)
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

IDENTITY = b"1f0c9f1e-8b8e-4d0e-9f43-0c2ab9a1f3aa"


def reply_of(number: int, request: EncodeRequest) -> EncodeReply:
    """Return a reply that names the request that it is for."""
    return EncodeReply(IDENTITY, request.request_id, np.full((1, 1), number, np.float32))


def described(outcome: Reply | ServingError | None) -> tuple[object, object]:
    """Return the kind of an outcome, and what distinguishes it from others of its kind."""
    return type(outcome), outcome.rows.tolist() if isinstance(outcome, EncodeReply) else str(outcome)


class SessionMachine(RuleBasedStateMachine):
    """A client and its server: the server may reply to, refuse or fail what it has received, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.session = Session(IDENTITY)
        self.connect()
        self.open: set[int] = set()  # requests that must still end
        self.at_server: list[tuple[int, EncodeRequest]] = []  # an attempt of each request that the server has
        self.number_of: dict[bytes, int] = {}

    def arrive(self, frames: list[bytes | memoryview]) -> None:
        request = request_from_frames(frames)
        assert isinstance(request, EncodeRequest)
        self.at_server.append((self.number_of[request.request_id], request))

    def end(self, number: int, expected: EncodeReply | ServingError) -> None:
        """Check that a request has ended with this reply or this error, and that it cannot end again."""
        self.open.remove(number)
        assert described(self.outcome(number)) == described(expected)
        assert self.outcome(number) is None

    def outcome(self, number: int) -> Reply | ServingError | None:
        try:
            return self.session.take(number)
        except ServingError as error:
            return error

    @precondition(lambda self: not self.session.is_subscribed)
    @rule()
    def connect(self) -> None:
        hello = self.session.hello(self.now)
        assert hello is not None
        self.session.receive(reply_to_frames(InfoReply(IDENTITY, bytes(hello[2]), {})), self.now)

    @precondition(lambda self: self.session.is_subscribed)
    @rule(seconds=st.just(float("inf")) | st.floats(0, 5))
    def encode(self, seconds: float) -> None:
        number, frames = self.session.encode(["a"], self.now, deadline=self.now + seconds)
        self.number_of[bytes(frames[2])] = number
        self.open.add(number)
        self.arrive(frames)

    @precondition(lambda self: self.at_server)
    @rule(
        data=st.data(),
        retry_after_ms=st.none() | st.integers(0, 3000),
        kind=st.sampled_from(["ok", "busy", "bad"]),
    )
    def answer(self, data: st.DataObject, retry_after_ms: int | None, kind: str) -> None:
        number, request = self.at_server.pop(data.draw(st.integers(0, len(self.at_server) - 1)))
        error = {"busy": Overloaded("full", retry_after_ms=retry_after_ms), "bad": InvalidRequest("no")}.get(kind)
        reply = ErrorReply(IDENTITY, request.request_id, error) if error else reply_of(number, request)
        ended = self.session.receive(reply_to_frames(reply), self.now)
        assert ended in (None, number)
        if ended is not None:
            self.end(number, reply.error if isinstance(reply, ErrorReply) else reply)
        elif number in self.open:  # only a refusal that says when to try again leaves the request open
            assert kind == "busy"
            assert retry_after_ms is not None

    @rule(seconds=st.floats(0, 100))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        for number in self.session.fail_overdue(self.now):
            assert isinstance(self.outcome(number), Overloaded | Unavailable)
            self.open.remove(number)
        for frames in self.session.due(self.now):
            self.arrive(frames)
            assert self.at_server[-1][0] in self.open
        assert self.session.next_due_s(self.now) > 0

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.open)))
        assert self.session.cancel(number) is not None
        assert self.session.take(number) is None
        self.open.remove(number)

    @rule(arrives=st.booleans())
    def lose_connection(self, arrives: bool) -> None:
        """Lose the connection. arrives: what was sent before arrives all the same."""
        error = Unavailable("the server went away", retry_after_ms=100)
        for number in self.session.connection_lost(error, self.now):
            self.end(number, error)
        if not arrives:
            self.at_server.clear()

    @invariant()
    def pending_requests_are_the_open_ones(self) -> None:
        assert self.session.pending == self.open

    @invariant()
    def open_requests_are_at_the_server_or_will_be_sent_again(self) -> None:
        waiting = len(self.open - {number for number, _ in self.at_server})
        will_be_sent = not self.session.is_subscribed or self.session.next_due_s(self.now) < float("inf")
        assert waiting == 0 or will_be_sent

    def teardown(self) -> None:
        """Without further refusals and losses, everything ends within a minute."""
        if not self.session.is_subscribed:
            self.connect()
        for _ in range(3):
            self.wait(100.0)
            for number, request in self.at_server:
                reply = reply_of(number, request)
                if self.session.receive(reply_to_frames(reply), self.now) is not None:
                    self.end(number, reply)
            self.at_server.clear()
        assert self.open == set()


TestSession = SessionMachine.TestCase
