"""A client's session: request numbers, replies to fetch, and a server that does not answer."""

from __future__ import annotations

import math
import secrets

import numpy as np
import pytest
from bert_serving.client.retry import RETRY_S
from bert_serving.client.session import HELLO_AGAIN_S, PROBE_AFTER_S, PROBE_TIMEOUT_S, Session
from bert_serving.protocol import (
    Command,
    EncodeOptions,
    EncodeReply,
    ErrorReply,
    Frames,
    InfoReply,
    InvalidRequest,
    Overloaded,
    PayloadTooLarge,
    Reply,
    Unavailable,
    reply_to_frames,
    request_from_frames,
)

IDENTITY = b"1f0c9f1e-8b8e-4d0e-9f43-0c2ab9a1f3aa"
GONE = Unavailable("the server went away", retry_after_ms=100)


@pytest.fixture
def new_session(monkeypatch: pytest.MonkeyPatch) -> Session:
    """A session whose request ids on the wire begin with 1, so that tests can name them."""
    monkeypatch.setattr(secrets, "randbits", lambda _: 0)
    return Session(IDENTITY)


@pytest.fixture
def session(new_session: Session) -> Session:
    """The same, after the server has replied to the hello."""
    subscribe(new_session, 0.0)
    return new_session


def subscribe(session: Session, now: float) -> None:
    """Let the server reply to a hello."""
    session.receive(info(int(hello_id(session, now))), now)


def vectors(request_id: int, value: float = 0.0) -> Frames:
    rows = np.full((1, 2), value, np.float32)
    return reply_to_frames(EncodeReply(IDENTITY, b"%d" % request_id, rows))


def info(request_id: int) -> Frames:
    return reply_to_frames(InfoReply(IDENTITY, b"%d" % request_id, {"server_version": "1.10.0"}))


def error(request_id: int) -> Frames:
    return reply_to_frames(ErrorReply(IDENTITY, b"%d" % request_id, InvalidRequest("no")))


def value_of(reply: Reply | None) -> float:
    assert isinstance(reply, EncodeReply)
    return float(reply.rows[0, 0])


def probe_id(frames: Frames | None) -> int:
    """Check that the frames are a probe; return its request number."""
    assert frames is not None
    assert bytes(frames[1]) == b"SHOW_CONFIG"
    return int(request_from_frames(frames).request_id)


# -- sending -------------------------------------------------------------------------------------------


def test_requests_are_numbered_from_one(session: Session) -> None:
    numbers = [session.encode(["a"], 0.0)[0], session.command(Command.SHOW_CONFIG, 0.0)[0]]
    assert (numbers, session.num_request) == ([1, 2], 2)


def test_request_for_vectors_is_written_as_by_the_old_client(session: Session) -> None:
    assert session.encode(["a", "b"], 0.0) == (1, [IDENTITY, b'["a","b"]', b"1", b"2"])


def test_command_is_written_as_by_the_old_client(session: Session) -> None:
    assert session.command(Command.SHOW_STATUS, 0.0) == (1, [IDENTITY, b"SHOW_STATUS", b"1", b"0"])


def test_options_are_sent_with_the_texts(session: Session) -> None:
    _, frames = session.encode(["a"], 0.0, options=EncodeOptions(show_tokens=True), deadline=0.05)
    assert frames[1] == b'{"deadline_ms":50,"texts":["a"],"options":{"show_tokens":true}}'


def test_request_is_pending_until_its_reply(session: Session) -> None:
    request_id, _ = session.encode(["a"], 0.0)
    before = session.pending
    session.receive(vectors(request_id), 0.1)
    assert (before, session.pending) == ({1}, set())


def greet(session: Session, **config: object) -> None:
    """Let the server answer the hello."""
    frames = session.hello(0.0)
    assert frames is not None
    session.receive(reply_to_frames(InfoReply(IDENTITY, bytes(frames[2]), dict(config))), 0.0)
    assert session.is_subscribed


def test_a_request_larger_than_the_server_accepts_is_not_sent(new_session: Session) -> None:
    greet(new_session, max_message_mb=1)
    with pytest.raises(
        PayloadTooLarge, match=r"^a request may have at most 1048576 bytes .*, got 1048577: send fewer"
    ):
        new_session.encode(["x" * ((1 << 20) - 3)], 0.0, to_fetch=True)
    assert (new_session.pending, new_session.has_to_fetch) == (set(), False)
    assert len(new_session.encode(["x" * ((1 << 20) - 4)], 0.0)[1][1]) == 1 << 20


@pytest.mark.parametrize("config", [{}, {"max_message_mb": None}, {"max_message_mb": "1"}])
def test_a_server_that_names_no_limit_gets_requests_of_any_size(
    new_session: Session, config: dict[str, object]
) -> None:
    greet(new_session, **config)
    new_session.encode(["x" * (2 << 20)], 0.0)
    assert new_session.pending == {1}


def test_a_hello_may_be_answered_with_any_json(new_session: Session) -> None:
    frames = new_session.hello(0.0)
    assert frames is not None
    new_session.receive([IDENTITY, b"[1]", frames[2]], 0.0)
    assert new_session.is_subscribed


# -- receiving -----------------------------------------------------------------------------------------


def test_receive_returns_the_number_of_the_request(session: Session) -> None:
    session.encode(["a"], 0.0)
    session.encode(["b"], 0.0)
    assert session.receive(vectors(2), 0.1) == 2


def test_reply_can_be_taken_once(session: Session) -> None:
    session.encode(["a"], 0.0)
    session.receive(vectors(1, 5.0), 0.1)
    assert value_of(session.take(1)) == 5.0
    assert session.take(1) is None


def test_replies_in_any_order_reach_their_requests(session: Session) -> None:
    for _ in range(3):
        session.encode(["a"], 0.0)
    for request_id in (3, 1, 2):
        session.receive(vectors(request_id, float(request_id)), 0.1)
    assert [value_of(session.take(n)) for n in (1, 2, 3)] == [1.0, 2.0, 3.0]


def test_take_returns_none_before_the_reply(session: Session) -> None:
    session.encode(["a"], 0.0)
    assert session.take(1) is None


def test_error_reply_is_raised_when_it_is_taken(session: Session) -> None:
    session.encode(["a"], 0.0)
    session.receive(error(1), 0.1)
    with pytest.raises(InvalidRequest, match="no"):
        session.take(1)


def test_reply_to_no_pending_request_is_ignored(session: Session) -> None:
    assert session.receive(vectors(7), 0.0) is None
    assert session.take(7) is None


def test_second_reply_to_one_request_is_ignored(session: Session) -> None:
    session.encode(["a"], 0.0)
    session.receive(vectors(1, 1.0), 0.1)
    assert session.receive(vectors(1, 2.0), 0.2) is None
    assert value_of(session.take(1)) == 1.0


def test_reply_with_an_invalid_request_id_is_ignored(session: Session) -> None:
    session.encode(["a"], 0.0)
    assert session.receive([IDENTITY, b"{}", b"one"], 0.1) is None


def test_forgotten_request_is_no_longer_pending_and_its_reply_is_ignored(session: Session) -> None:
    session.encode(["a"], 0.0, to_fetch=True)
    session.forget(1)
    assert (session.pending, session.has_to_fetch) == (set(), False)
    assert session.receive(vectors(1), 0.1) is None


def test_cancelled_request_is_forgotten_and_named_to_the_server(session: Session) -> None:
    request_id, (_, _, wire_id, _) = session.encode(["a"], 0.0)
    assert session.cancel(request_id) == [IDENTITY, b"CANCEL", wire_id, b"0"]
    assert session.pending == set()


def test_only_a_pending_request_for_vectors_is_named_to_the_server(session: Session) -> None:
    session.command(Command.SHOW_STATUS, 0.0)
    session.encode(["a"], 0.0)
    session.receive(vectors(2), 0.1)
    assert [session.cancel(number) for number in (1, 2, 3)] == [None, None, None]
    assert session.take(2) is None


@pytest.mark.parametrize("frames", [[IDENTITY, b"no JSON", b"1"], [IDENTITY, b"{}", b"", b"1"], [IDENTITY, b"1"]])
def test_message_that_is_not_a_reply_is_logged_and_ignored(
    session: Session, frames: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    session.encode(["a"], 0.0)
    assert session.receive(list(frames), 0.1) is None
    assert session.pending == {1}
    assert "not a reply" in caplog.text


# -- fetching ------------------------------------------------------------------------------------------


def test_take_any_returns_requests_in_the_order_of_their_replies(session: Session) -> None:
    for _ in range(3):
        session.encode(["a"], 0.0, to_fetch=True)
    for request_id in (2, 3, 1):
        session.receive(vectors(request_id), 0.1)
    taken = [session.take_any() for _ in range(3)]
    assert [item[0] for item in taken if item] == [2, 3, 1]


def test_take_any_leaves_the_replies_of_blocking_requests(session: Session) -> None:
    session.encode(["a"], 0.0)
    session.encode(["b"], 0.0, to_fetch=True)
    session.receive(vectors(1), 0.1)
    assert session.take_any() is None
    assert session.take(1) is not None


def test_request_is_outstanding_until_its_reply_is_taken(session: Session) -> None:
    session.encode(["a"], 0.0)
    session.encode(["b"], 0.0, to_fetch=True)
    sent = session.outstanding
    session.receive(vectors(2), 0.1)
    answered = session.outstanding
    session.take_any()
    session.forget(1)
    assert (sent, answered, session.outstanding) == ({1, 2}, {1, 2}, set())


def test_has_to_fetch_is_true_until_everything_is_fetched(session: Session) -> None:
    session.encode(["a"], 0.0, to_fetch=True)
    before = session.has_to_fetch
    session.receive(vectors(1), 0.1)
    answered = session.has_to_fetch
    session.take_any()
    assert (before, answered, session.has_to_fetch) == (True, True, False)


def test_error_of_a_request_to_fetch_is_raised_once_in_its_place(session: Session) -> None:
    for _ in range(2):
        session.encode(["a"], 0.0, to_fetch=True)
    session.receive(error(1), 0.1)
    session.receive(vectors(2), 0.2)
    with pytest.raises(InvalidRequest):
        session.take_any()
    item = session.take_any()
    assert item is not None
    assert item[0] == 2


# -- a silent server -----------------------------------------------------------------------------------


def test_no_probe_while_nothing_is_pending(session: Session) -> None:
    assert session.probe(1e6) is None


def test_no_probe_before_the_silence_is_long_enough(session: Session) -> None:
    session.encode(["a"], 100.0)
    assert session.probe(100.0 + PROBE_AFTER_S) is None


def test_long_silence_is_probed_with_show_config(session: Session) -> None:
    session.encode(["a"], 100.0)
    assert session.probe(100.1 + PROBE_AFTER_S) == [IDENTITY, b"SHOW_CONFIG", b"2", b"0"]


def test_silence_while_nothing_was_pending_does_not_count(session: Session) -> None:
    session.encode(["a"], 0.0)
    session.receive(vectors(1), 0.1)
    session.encode(["b"], 1000.0)
    assert session.probe(1001.0) is None


def test_second_request_does_not_end_the_servers_silence(session: Session) -> None:
    session.encode(["a"], 0.0)
    session.encode(["b"], 9.0)
    assert session.probe(10.1) is not None


def test_any_message_ends_the_silence(session: Session) -> None:
    session.encode(["a"], 0.0)
    session.encode(["b"], 0.0)
    session.receive(vectors(1), 9.0)
    assert session.probe(12.0) is None


def test_one_probe_at_a_time(session: Session) -> None:
    session.encode(["a"], 0.0)
    session.probe(10.1)
    assert session.probe(15.0) is None


def test_answered_probe_leaves_only_the_request_pending(session: Session) -> None:
    session.encode(["a"], 0.0)
    number = probe_id(session.probe(10.1))
    assert session.receive(info(number), 10.2) is None
    assert (session.pending, session.take(number)) == ({1}, None)


def test_next_silence_is_probed_again(session: Session) -> None:
    session.encode(["a"], 0.0)
    session.receive(info(probe_id(session.probe(10.1))), 10.2)
    assert session.probe(20.1) is None
    assert session.probe(20.3) is not None


def test_unanswered_probe_fails_everything_pending_with_unavailable(session: Session) -> None:
    session.encode(["a"], 0.0)
    session.encode(["b"], 0.0, to_fetch=True)
    session.probe(10.1)
    session.probe(10.2 + PROBE_TIMEOUT_S)
    assert session.pending == set()
    with pytest.raises(Unavailable, match="no longer replies"):
        session.take(1)
    with pytest.raises(Unavailable, match="no longer replies"):
        session.take_any()


def test_probe_waits_until_its_timeout(session: Session) -> None:
    session.encode(["a"], 0.0)
    session.probe(10.1)
    session.probe(10.0 + PROBE_TIMEOUT_S)
    assert 1 in session.pending


def test_reply_to_an_obsolete_probe_is_ignored(session: Session) -> None:
    session.encode(["a"], 0.0)
    number = probe_id(session.probe(10.1))
    assert session.receive(vectors(1), 10.2) == 1
    assert session.receive(info(number), 10.3) is None
    assert (session.pending, session.take(number)) == (set(), None)


def test_probe_is_no_longer_pending_after_another_reply(session: Session) -> None:
    session.encode(["a"], 0.0)
    session.probe(10.1)
    session.receive(vectors(1), 10.2)
    assert session.pending == set()


def test_failed_probe_leaves_no_reply(session: Session) -> None:
    session.encode(["a"], 0.0)
    number = probe_id(session.probe(10.1))
    session.probe(30.0)
    assert session.take(number) is None


def test_probe_is_not_among_the_pending_requests(session: Session) -> None:
    session.encode(["a"], 0.0)
    session.probe(10.1)
    assert session.pending == {1}


# -- a lost connection ---------------------------------------------------------------------------------


def test_lost_connection_fails_and_returns_the_pending_requests(session: Session) -> None:
    for _ in range(3):
        session.encode(["a"], 0.0)
    session.receive(vectors(2), 0.1)
    assert session.fail_pending(GONE) == [1, 3]
    assert session.take(2) is not None
    with pytest.raises(ConnectionError, match="went away"):
        session.take(3)


def test_late_reply_does_not_replace_the_error_of_a_lost_connection(session: Session) -> None:
    session.encode(["a"], 0.0)
    session.fail_pending(GONE)
    assert session.receive(vectors(1), 0.1) is None
    with pytest.raises(Unavailable):
        session.take(1)


def test_session_works_after_a_lost_connection(session: Session) -> None:
    session.encode(["a"], 0.0)
    session.probe(10.1)
    session.fail_pending(GONE)
    request_id, _ = session.encode(["b"], 20.0)
    assert session.probe(25.0) is None
    assert session.receive(vectors(request_id), 25.0) == request_id


def test_requests_that_were_lost_are_sent_again_on_the_next_connection_and_commands_fail(session: Session) -> None:
    _, frames = session.encode(["a"], 0.0)
    session.command(Command.SHOW_STATUS, 0.0)
    assert session.connection_lost(GONE, 1.0) == [2]
    assert (session.due(5.0), session.next_due_s(5.0)) == ([], math.inf)
    subscribe(session, 5.0)
    assert session.due(5.0) == [frames]
    session.receive(vectors(1, 7.0), 5.1)
    assert value_of(session.take(1)) == 7.0


def test_a_note_about_a_lost_connection_does_not_send_a_lost_request_twice(session: Session) -> None:
    _, frames = session.encode(["a"], 0.0)
    session.connection_lost(GONE, 1.0)
    subscribe(session, 1.1)
    session.receive(reply_to_frames(ErrorReply(IDENTITY, b"1", GONE)), 1.1)
    assert session.due(5.0) == [frames]


def test_lost_requests_fail_when_there_is_no_new_connection_in_time(session: Session) -> None:
    session.encode(["a"], 0.0, deadline=5.0)
    session.encode(["b"], 0.0)
    session.connection_lost(GONE, 1.0)
    assert session.probe(50.0) is None  # nothing can be sent, so the silence says nothing about the server
    assert [session.fail_overdue(now) for now in (4.9, 5.0, 1.0 + RETRY_S)] == [[], [1], [2]]
    for request_id in (1, 2):
        with pytest.raises(Unavailable, match="went away"):
            session.take(request_id)


def test_lost_requests_fail_at_once_without_retry() -> None:
    session = Session(IDENTITY, retry=False)
    subscribe(session, 0.0)
    session.encode(["a"], 0.0)
    assert session.connection_lost(GONE, 1.0) == [1]


def test_repr_counts_requests(session: Session) -> None:
    session.encode(["a"], 0.0)
    session.encode(["b"], 0.0)
    session.receive(vectors(1), 0.1)
    assert repr(session) == "<Session sent=2 pending=1 replies=1>"


# -- ids on the wire -------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", ["encode", "command", "hello"])
def test_ids_on_the_wire_are_random_for_every_session(make: str) -> None:
    ids = set()
    for _ in range(20):
        session = Session(IDENTITY)
        frames = {
            "encode": lambda: session.encode(["a"], 0.0)[1],  # noqa: B023
            "command": lambda: session.command(Command.SHOW_STATUS, 0.0)[1],  # noqa: B023
            "hello": lambda: session.hello(0.0),  # noqa: B023
        }[make]()
        assert frames is not None
        ids.add(int(request_from_frames(frames).request_id))
    assert len(ids) == 20
    assert max(ids) > 2**50  # so few of 20 random numbers of 63 bits are never this small


# -- the hello of a connection ---------------------------------------------------------------------------


def hello_id(session: Session, now: float) -> bytes:
    """Check that a hello is due; return its id on the wire."""
    frames = session.hello(now)
    assert frames is not None
    assert bytes(frames[1]) == b"SHOW_CONFIG"
    return bytes(frames[2])


def test_hello_is_repeated_until_its_reply_arrives() -> None:
    session = Session(IDENTITY)
    first = hello_id(session, 100.0)
    assert session.hello(100.0 + HELLO_AGAIN_S / 2) is None
    assert hello_id(session, 100.0 + HELLO_AGAIN_S) == first
    assert not session.is_subscribed
    session.receive(info(int(first)), 101.0)
    assert session.is_subscribed
    assert session.hello(200.0) is None


def test_only_the_reply_to_the_hello_proves_the_subscription(new_session: Session) -> None:
    request_id, _ = new_session.encode(["a"], 0.0)
    new_session.hello(0.0)
    new_session.receive(vectors(request_id), 0.1)
    new_session.receive([IDENTITY, b"{}", b"one"], 0.1)
    assert not new_session.is_subscribed


def test_lost_connection_needs_a_new_hello() -> None:
    session = Session(IDENTITY)
    first = hello_id(session, 0.0)
    session.receive(info(int(first)), 0.1)
    session.connection_lost(GONE, 0.2)
    second = hello_id(session, 0.2)
    session.receive(info(int(first)), 0.3)
    assert not session.is_subscribed
    session.receive(info(int(second)), 0.4)
    assert session.is_subscribed


def test_hello_is_not_among_the_requests() -> None:
    session = Session(IDENTITY)
    session.receive(info(int(hello_id(session, 0.0))), 0.1)
    assert (session.num_request, session.pending) == (0, set())


# -- refused requests ------------------------------------------------------------------------------------


def refused(request_id: int) -> Frames:
    return reply_to_frames(ErrorReply(IDENTITY, b"%d" % request_id, Overloaded("full", retry_after_ms=100)))


def test_refused_request_stays_pending_and_is_sent_again_with_its_id(session: Session) -> None:
    request_id, frames = session.encode(["a"], 0.0)
    assert session.receive(refused(request_id), 0.1) is None
    assert (session.pending, session.take(request_id)) == ({request_id}, None)
    assert session.due(0.1 + session.next_due_s(0.1)) == [frames]
    session.receive(vectors(request_id, 5.0), 0.5)
    assert value_of(session.take(request_id)) == 5.0


def test_refused_request_to_fetch_is_sent_again_too(session: Session) -> None:
    request_id, frames = session.encode(["a"], 0.0, to_fetch=True)
    session.receive(refused(request_id), 0.1)
    assert session.take_any() is None
    assert session.due(10.0) == [frames]


@pytest.mark.parametrize("end", ["cancel", "forget"])
def test_request_that_has_ended_is_not_sent_again(session: Session, end: str) -> None:
    request_id, _ = session.encode(["a"], 0.0)
    session.receive(refused(request_id), 0.1)
    getattr(session, end)(request_id)
    assert session.due(10.0) == []


def test_request_is_sent_again_with_the_time_that_is_left(session: Session) -> None:
    request_id, _ = session.encode(["a"], 0.0, deadline=5.0)
    session.receive(refused(request_id), 0.1)
    (frames,) = session.due(2.0)
    assert frames == [IDENTITY, b'{"deadline_ms":3000,"texts":["a"]}', b"1", b"1"]


def test_session_without_retry_ends_a_refused_request() -> None:
    session = Session(IDENTITY, retry=False)
    request_id, frames = session.encode(["a"], 0.0)
    assert session.receive(refused(int(frames[2])), 0.1) == request_id
    with pytest.raises(Overloaded):
        session.take(request_id)
