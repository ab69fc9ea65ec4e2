"""The outbox holds replies until a client subscribes. Tests of order, isolation of clients, and limits."""

from __future__ import annotations

import itertools
import tracemalloc
import uuid
from collections import Counter

import pytest
from bert_serving.protocol import (
    ErrorReply,
    Frames,
    InvalidRequest,
    Unavailable,
    reply_from_frames,
    reply_to_frames,
)
from bert_serving.protocol.encoding import dump_json
from bert_serving.server.broker.account import Account, NoRoom
from bert_serving.server.broker.budget import Budget
from bert_serving.server.broker.held_reply import Dropped, HeldReply
from bert_serving.server.broker.outbox import Outbox
from hypothesis import given
from hypothesis import strategies as st

ALICE, BOB, CAROL = (str(uuid.UUID(int=i)).encode() for i in (1, 2, 3))
LOST = Unavailable("connection lost")
OVERHEAD = 1024  # bytes that the outbox counts for a reply in addition to its frames


class Pipes:
    """Fake pipes to the subscribers. full: the topics whose pipes are full. sent: the replies that were sent.

    lossy: those of them that were sent although a pipe was full.
    """

    def __init__(self, *full: bytes) -> None:
        self.full = set(full)
        self.sent: list[tuple[bytes, bytes]] = []
        self.lossy: list[bytes] = []

    def send(self, reply: HeldReply, is_lossy: bool) -> bool:
        topic, body = bytes(reply.frames[0]), body_of(reply.frames)
        if topic in self.full and not is_lossy:
            return False
        self.sent.append((topic, body))
        if is_lossy:
            self.lossy.append(body)
        if reply.reservation is not None:
            reply.reservation.release()
        return True


class Posts:
    """An outbox, the account of its vectors, and the replies that it has dropped.

    The topics are the identities themselves, without the secret suffix.
    """

    def __init__(self, max_age_s: float = 300.0) -> None:
        self.dropped: list[Dropped] = []
        self.account = Account(1 << 40, share=1.0)
        self.outbox = secret_outbox(max_age_s, self.dropped)
        self.outbox._suffix = b""

    def vectors(self, identity: bytes, body: bytes = b"{}", now: float = 0.0) -> None:
        self.outbox.post(reply(identity, body), now, self.account.reserve(identity, 1))


def secret_outbox(max_age_s: float = 300.0, dropped: list[Dropped] | None = None) -> Outbox:
    """Return an outbox as servers have it: its topics have a secret suffix."""
    return Outbox(max_age_s=max_age_s, on_dropped=([] if dropped is None else dropped).append)


def make_outbox(max_age_s: float = 300.0) -> Outbox:
    return Posts(max_age_s).outbox


def body_of(frames: Frames) -> bytes:
    """Return the second frame of a reply; of an error, return its message."""
    if len(frames) == 4 and frames[2] == b"":
        error = reply_from_frames(frames)
        assert isinstance(error, ErrorReply)
        return error.error.message.encode()
    return bytes(frames[1])


def reply(identity: bytes, body: bytes = b"{}") -> Frames:
    return [identity, body, b"1"]


def budget_of(pieces: float) -> Budget:
    """Return a budget for this number of pieces of work: each look at its clock takes one second."""
    return Budget(pieces + 0.5, itertools.count().__next__)


def unlimited() -> Budget:
    return budget_of(1e9)


def deliver(outbox: Outbox, pipes: Pipes, now: float = 0.0) -> None:
    outbox.deliver(pipes.send, now, unlimited())


def unsubscribe(outbox: Outbox, identity: bytes, now: float = 0.0) -> bool:
    """Remove a subscriber, and do the work that this leaves."""
    was_last = outbox.unsubscribe(identity, LOST, now)
    outbox.expire(now, unlimited())
    return was_last


def delivered(outbox: Outbox) -> list[tuple[bytes, bytes]]:
    pipes = Pipes()
    deliver(outbox, pipes)
    return pipes.sent


# -- held replies --------------------------------------------------------------------------------------


def test_reply_to_a_subscriber_is_sent_at_once() -> None:
    outbox = make_outbox()
    outbox.subscribe(ALICE)
    outbox.post(reply(ALICE), 0.0)
    assert delivered(outbox) == [(ALICE, b"{}")]


def test_all_frames_of_a_reply_are_sent() -> None:
    outbox = make_outbox()
    outbox.subscribe(ALICE)
    outbox.post([ALICE, b"info", memoryview(b"rows"), b"7"], 0.0)
    sent: list[Frames] = []

    def send(reply: HeldReply, is_lossy: bool) -> bool:
        sent.append(reply.frames)
        return True

    outbox.deliver(send, 0.0, unlimited())
    assert sent == [[ALICE, b"info", memoryview(b"rows"), b"7"]]


def test_reply_is_held_until_a_client_subscribes() -> None:
    outbox = make_outbox()
    outbox.post(reply(ALICE), 0.0)
    assert delivered(outbox) == []
    outbox.subscribe(ALICE)
    assert delivered(outbox) == [(ALICE, b"{}")]


def test_held_replies_are_sent_in_order() -> None:
    outbox = make_outbox()
    for body in (b"1", b"2", b"3"):
        outbox.post(reply(ALICE, body), 0.0)
    outbox.subscribe(ALICE)
    assert [body for _, body in delivered(outbox)] == [b"1", b"2", b"3"]


def test_subscription_of_one_client_does_not_release_the_replies_of_another() -> None:
    outbox = make_outbox()
    outbox.post(reply(ALICE), 0.0)
    outbox.subscribe(BOB)
    assert delivered(outbox) == []


def test_reply_is_sent_once() -> None:
    outbox = make_outbox()
    outbox.subscribe(ALICE)
    outbox.post(reply(ALICE), 0.0)
    assert len(delivered(outbox) + delivered(outbox)) == 1


def test_has_deliverable_says_whether_a_reply_can_be_sent() -> None:
    outbox = make_outbox()
    outbox.post(reply(ALICE), 0.0)
    before = outbox.has_deliverable
    outbox.subscribe(ALICE)
    waiting = outbox.has_deliverable
    delivered(outbox)
    assert (before, waiting, outbox.has_deliverable) == (False, True, False)


# -- a full pipe ---------------------------------------------------------------------------------------


def test_full_pipe_keeps_its_replies_in_their_order() -> None:
    outbox = make_outbox()
    outbox.subscribe(ALICE)
    for body in (b"1", b"2"):
        outbox.post(reply(ALICE, body), 0.0)
    deliver(outbox, Pipes(ALICE))
    outbox.post(reply(ALICE, b"3"), 0.0)
    assert [body for _, body in delivered(outbox)] == [b"1", b"2", b"3"]


def test_full_pipe_does_not_block_other_topics() -> None:
    outbox = make_outbox()
    for identity in (ALICE, BOB):
        outbox.subscribe(identity)
        outbox.post(reply(identity), 0.0)
    pipes = Pipes(ALICE)
    deliver(outbox, pipes)
    assert pipes.sent == [(BOB, b"{}")]


def test_reply_that_waits_for_a_full_pipe_stays_deliverable() -> None:
    outbox = make_outbox()
    outbox.subscribe(ALICE)
    outbox.post(reply(ALICE), 0.0)
    deliver(outbox, Pipes(ALICE))
    assert outbox.has_deliverable


# -- unsubscribing -------------------------------------------------------------------------------------


def test_last_unsubscription_drops_the_replies() -> None:
    posts = Posts()
    posts.outbox.subscribe(ALICE)
    posts.vectors(ALICE)
    assert unsubscribe(posts.outbox, ALICE)
    assert (posts.account.held, posts.outbox.has_deliverable, posts.outbox.num_subscribers) == (0, False, 0)


def test_client_that_returns_gets_an_error_instead_of_what_was_dropped() -> None:
    outbox = make_outbox()
    outbox.subscribe(ALICE)
    outbox.post(reply(ALICE), 0.0)
    unsubscribe(outbox, ALICE)
    outbox.subscribe(ALICE)
    assert delivered(outbox) == [(ALICE, b"connection lost")]


def test_client_that_returns_finds_the_note_about_a_request_that_was_cancelled() -> None:
    outbox = make_outbox()
    outbox.post_note([ALICE, b"cancelled", b"7"], 0.0)
    outbox.subscribe(ALICE)
    assert delivered(outbox) == [(ALICE, b"cancelled")]


def test_an_error_that_was_not_sent_stays_as_it_is() -> None:
    outbox = make_outbox()
    outbox.subscribe(ALICE)
    error = ErrorReply(ALICE, b"1", InvalidRequest("a wrong request"))
    outbox.post(reply_to_frames(error), 0.0)
    unsubscribe(outbox, ALICE)
    outbox.subscribe(ALICE)
    assert delivered(outbox) == [(ALICE, b"a wrong request")]


def test_a_reply_that_grows_beyond_the_room_is_refused() -> None:
    posts = Posts()
    small = Account(1000, share=1.0).reserve(ALICE, 1)
    with pytest.raises(NoRoom):
        posts.outbox.post(reply(ALICE, b"x" * 1000), 0.0, small)
    assert posts.outbox.held_bytes == 0


def test_a_client_that_loses_many_requests_does_not_drop_the_notes_of_others() -> None:
    posts = Posts()
    posts.outbox.post_note([ALICE, b"cancelled", b"7"], 0.0)
    for i in range(20_000):
        posts.outbox.post_note([BOB, b"cancelled", b"%d" % i], 0.0)
    posts.outbox.subscribe(ALICE)
    assert [body for _, body in delivered(posts.outbox)] == [b"cancelled"]
    assert len(posts.dropped) == 20_000 - 512


def test_note_is_forgotten_after_a_minute() -> None:
    outbox = make_outbox()
    outbox.post_note([ALICE, b"cancelled", b"7"], 0.0)
    outbox.expire(61.0, unlimited())
    assert outbox.held_bytes == 0


def test_many_replies_of_a_client_that_leaves_are_dropped_in_several_steps() -> None:
    posts = Posts()
    posts.outbox.subscribe(ALICE)
    for _ in range(100):
        posts.vectors(ALICE)
    posts.outbox.unsubscribe(ALICE, LOST, 0.0)
    held = []
    while posts.outbox.is_behind:
        posts.outbox.expire(0.0, budget_of(20))
        held.append(posts.account.num_flows)
    assert len(held) >= 5
    assert posts.account.held == 0


def test_client_that_returns_meanwhile_gets_an_error_for_each_of_them() -> None:
    posts = Posts()
    posts.outbox.subscribe(ALICE)
    for _ in range(60):
        posts.vectors(ALICE)
    posts.outbox.unsubscribe(ALICE, LOST, 0.0)
    posts.outbox.expire(0.0, budget_of(20))
    posts.outbox.subscribe(ALICE)
    posts.vectors(ALICE, b"new")
    posts.outbox.expire(1.0, unlimited())
    bodies = [body for _, body in delivered(posts.outbox)]
    assert sorted(bodies) == [b"connection lost"] * 60 + [b"new"]
    assert posts.account.held == 0


def test_shared_identity_stays_until_its_last_subscriber_leaves() -> None:
    outbox = make_outbox()
    outbox.subscribe(ALICE)
    outbox.subscribe(ALICE)
    assert [unsubscribe(outbox, ALICE) for _ in range(2)] == [False, True]


def test_shared_identity_counts_as_one_subscriber() -> None:
    outbox = make_outbox()
    outbox.subscribe(ALICE)
    outbox.subscribe(ALICE)
    outbox.subscribe(BOB)
    assert outbox.num_subscribers == 2


def test_reply_of_a_shared_identity_is_still_held_when_one_subscriber_leaves() -> None:
    outbox = make_outbox()
    outbox.subscribe(ALICE)
    outbox.subscribe(ALICE)
    outbox.post(reply(ALICE), 0.0)
    unsubscribe(outbox, ALICE)
    assert delivered(outbox) == [(ALICE, b"{}")]


def test_unsubscription_of_an_unknown_client_changes_nothing() -> None:
    outbox = make_outbox()
    outbox.post(reply(ALICE), 0.0)
    assert not unsubscribe(outbox, ALICE)
    assert outbox.held_bytes > 0


def test_has_subscriber_follows_subscriptions() -> None:
    outbox = make_outbox()
    outbox.subscribe(ALICE)
    before = outbox.has_subscriber(ALICE)
    unsubscribe(outbox, ALICE)
    assert (before, outbox.has_subscriber(ALICE), outbox.has_subscriber(BOB)) == (True, False, False)


# -- no client receives the replies of others ---------------------------------------------------------


def test_empty_subscription_is_refused() -> None:
    outbox = make_outbox()
    assert outbox.subscribe(b"") is None
    assert outbox.num_subscribers == 0


@pytest.mark.parametrize("identity", [b"me", ALICE])
def test_topic_begins_with_the_identity_and_does_not_equal_it(identity: bytes) -> None:
    topic = secret_outbox().subscribe(identity)
    assert topic is not None
    assert topic.startswith(identity)
    assert topic != identity


def test_replies_have_the_topic_of_the_subscription() -> None:
    outbox = secret_outbox()
    topic = outbox.subscribe(b"me")
    outbox.post(reply(b"me"), 0.0)
    assert delivered(outbox) == [(topic, b"{}")]


def test_topics_of_two_servers_differ() -> None:
    assert secret_outbox().topic_of(b"me") != secret_outbox().topic_of(b"me")


CHOSEN = st.one_of(
    st.binary(min_size=1, max_size=40),
    st.sampled_from([b"client", b"client-2", b"client-2-b", ALICE, BOB, ALICE + b"-2", ALICE + BOB]),
)


@given(CHOSEN, CHOSEN)
def test_subscriber_gets_no_reply_of_an_identity_that_begins_with_its_own(one: bytes, other: bytes) -> None:
    outbox = secret_outbox()
    heard = outbox.subscribe(one)
    assert heard is not None
    assert one == other or not outbox.topic_of(other).startswith(heard)


# -- limits --------------------------------------------------------------------------------------------


def test_held_bytes_counts_every_frame() -> None:
    outbox = make_outbox()
    outbox.post([ALICE, b"12345", memoryview(b"1234567"), b"1"], 0.0)
    assert outbox.held_bytes == len(ALICE) + 5 + 7 + 1 + OVERHEAD


def test_delivery_frees_the_held_bytes() -> None:
    outbox = make_outbox()
    outbox.subscribe(ALICE)
    outbox.post(reply(ALICE), 0.0)
    delivered(outbox)
    assert outbox.held_bytes == 0


def test_vectors_of_any_number_stay_within_their_reservations() -> None:
    posts = Posts()
    for i in range(1000):
        posts.vectors(b"%d" % i, b"x" * i)
    assert posts.dropped == []
    assert posts.account.held == posts.outbox.held_bytes > 1000 * 500


def fill(outbox: Outbox, megabytes: float, *identities: bytes, now: float = 0.0) -> int:
    """Post errors of 1 KiB to the identities in turn; return their number."""
    count = int(megabytes * 512)
    for identity in itertools.islice(itertools.cycle(identities), count):
        outbox.post(reply(identity, b"x" * 1024), now)
    return count


def test_errors_to_unsubscribed_identities_are_bounded() -> None:
    posts = Posts()
    fill(posts.outbox, 30, *(b"stranger %d" % i for i in range(1000)))
    assert posts.outbox.held_bytes <= 2 << 20
    assert len(posts.dropped) > 10_000


def test_errors_to_unsubscribed_identities_are_forgotten_within_seconds() -> None:
    posts = Posts()
    fill(posts.outbox, 1, ALICE, now=5.0)
    posts.outbox.expire(15.1, unlimited())
    assert posts.outbox.held_bytes == 0


def test_subscriber_that_does_not_read_gets_a_limited_number_of_errors() -> None:
    posts = Posts()
    posts.outbox.subscribe(ALICE)
    posts.outbox.subscribe(BOB)
    fill(posts.outbox, 30, ALICE)
    assert posts.outbox.held_bytes <= 4 << 20
    fill(posts.outbox, 1, BOB)
    assert {dropped.topic for dropped in posts.dropped} == {ALICE}


def test_errors_of_all_subscribers_together_are_bounded() -> None:
    posts = Posts()
    identities = [b"%036d" % i for i in range(50)]
    for identity in identities:
        posts.outbox.subscribe(identity)
    fill(posts.outbox, 150, *identities)
    assert posts.outbox.held_bytes <= 64 << 20


def test_the_limit_of_small_replies_is_for_what_is_held() -> None:
    posts = Posts()
    posts.outbox.subscribe(ALICE)
    for _ in range(10):
        count = fill(posts.outbox, 1, ALICE)
        assert len(delivered(posts.outbox)) == count
    assert (posts.outbox.held_bytes, posts.dropped) == (0, [])


def test_reply_older_than_the_maximum_age_is_dropped() -> None:
    posts = Posts(max_age_s=5.0)
    posts.vectors(ALICE, now=10.0)
    posts.outbox.expire(15.0, unlimited())
    assert posts.dropped == []
    posts.outbox.expire(15.1, unlimited())
    assert posts.dropped == [Dropped(ALICE, b"1", "its client did not fetch it within 5 s")]
    assert (posts.outbox.held_bytes, posts.account.held) == (0, 0)


def test_vectors_for_an_identity_that_nobody_has_subscribed_to_wait_ten_seconds_only() -> None:
    posts = Posts()
    posts.outbox.subscribe(BOB)
    for identity in (ALICE, BOB):
        posts.vectors(identity)
    posts.outbox.expire(10.0, unlimited())
    assert posts.dropped == []
    posts.outbox.expire(10.1, unlimited())
    assert [dropped.topic for dropped in posts.dropped] == [ALICE]
    assert delivered(posts.outbox) == [(BOB, b"{}")]


def test_short_replies_take_no_more_memory_than_their_bytes() -> None:
    posts = Posts()
    tracemalloc.start()
    try:
        for i in range(1000):
            posts.vectors(ALICE, dump_json({"dtype": "float32", "shape": [1, i]}))
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size < posts.outbox.held_bytes


def test_newer_replies_are_kept_when_an_older_one_expires() -> None:
    posts = Posts(max_age_s=5.0)
    posts.vectors(ALICE, b"old", now=0.0)
    posts.vectors(ALICE, b"young", now=4.0)
    posts.outbox.expire(6.0, unlimited())
    posts.outbox.subscribe(ALICE)
    assert delivered(posts.outbox) == [(ALICE, b"young")]


def test_a_topic_with_a_young_reply_does_not_keep_others_from_expiring() -> None:
    posts = Posts(max_age_s=5.0)
    posts.vectors(ALICE, b"old", now=0.0)
    posts.vectors(BOB, b"old", now=1.0)
    posts.vectors(ALICE, b"young", now=8.0)
    posts.outbox.expire(10.0, unlimited())
    assert [dropped.topic for dropped in posts.dropped] == [ALICE, BOB]


def test_reply_that_waits_for_a_full_pipe_expires_and_becomes_an_error() -> None:
    posts = Posts(max_age_s=5.0)
    posts.outbox.subscribe(ALICE)
    posts.vectors(ALICE, b"x" * 10_000)
    deliver(posts.outbox, Pipes(ALICE))
    posts.outbox.expire(6.0, unlimited())
    posts.outbox.expire(7.0, unlimited())
    assert posts.account.held == 0
    assert posts.outbox.held_bytes < 2 * OVERHEAD  # an error instead of 10,000 bytes
    assert delivered(posts.outbox) == [(ALICE, b"the reply was dropped: its client did not fetch it within 5 s")]


def test_the_errors_that_take_the_place_of_old_replies_are_forgotten_too() -> None:
    posts = Posts(max_age_s=5.0)
    posts.outbox.subscribe(ALICE)
    posts.vectors(ALICE)
    posts.outbox.expire(6.0, unlimited())
    posts.outbox.expire(70.0, unlimited())
    assert (posts.outbox.held_bytes, posts.outbox.has_deliverable) == (0, False)


# -- several subscribers, many topics ------------------------------------------------------------------


def test_a_subscriber_that_does_not_read_stops_the_others_for_a_few_seconds_only() -> None:
    outbox, pipes = make_outbox(), Pipes(ALICE)
    outbox.subscribe(ALICE)
    outbox.subscribe(ALICE)
    for body in (b"1", b"2"):
        outbox.post(reply(ALICE, body), 0.0)
    deliver(outbox, pipes, now=0.0)
    deliver(outbox, pipes, now=1.0)
    assert pipes.sent == []
    deliver(outbox, pipes, now=2.0)
    assert pipes.lossy == [b"1", b"2"]


def test_a_single_subscriber_that_does_not_read_keeps_its_reply() -> None:
    outbox, pipes = make_outbox(), Pipes(ALICE)
    outbox.subscribe(ALICE)
    outbox.post(reply(ALICE), 0.0)
    for now in (0.0, 10.0, 100.0):
        deliver(outbox, pipes, now)
    assert pipes.sent == []
    assert delivered(outbox) == [(ALICE, b"{}")]


def test_one_call_tries_only_some_of_the_blocked_topics_and_the_next_call_the_next() -> None:
    outbox = make_outbox()
    names = [b"%036d" % i for i in range(200)]
    topics = [outbox.subscribe(name) or b"" for name in names]
    for name in names:
        outbox.post(reply(name), 0.0)
    pipes = Pipes(*topics)
    deliver(outbox, pipes)
    tried: list[int] = []
    pipes.full = set()
    while outbox.has_deliverable:
        deliver(outbox, pipes)
        tried.append(len(pipes.sent))
    assert len(tried) > 2
    assert sorted(topic for topic, _ in pipes.sent) == topics


def test_a_new_reply_is_sent_however_many_topics_are_blocked() -> None:
    outbox = make_outbox()
    names = [b"%036d" % i for i in range(200)]
    pipes = Pipes(*(outbox.subscribe(name) or b"" for name in names))
    for name in names:
        outbox.post(reply(name), 0.0)
    deliver(outbox, pipes)
    outbox.subscribe(BOB)
    outbox.post(reply(BOB), 0.0)
    deliver(outbox, pipes)
    assert pipes.sent == [(BOB, b"{}")]


def test_delivery_stops_when_the_budget_is_spent_and_continues_later() -> None:
    outbox, pipes = make_outbox(), Pipes()
    outbox.subscribe(ALICE)
    for number in range(50):
        outbox.post(reply(ALICE, b"%d" % number), 0.0)
    outbox.deliver(pipes.send, 0.0, budget_of(10))
    assert outbox.is_behind
    assert 0 < len(pipes.sent) < 50
    deliver(outbox, pipes)
    assert [int(body) for _, body in pipes.sent] == list(range(50))


def test_expiry_stops_when_the_budget_is_spent() -> None:
    posts = Posts(max_age_s=5.0)
    for i in range(50):
        posts.vectors(b"%d" % i)
    posts.outbox.expire(10.0, budget_of(10))
    assert 0 < len(posts.dropped) < 50


def test_repr_shows_the_counts() -> None:
    outbox = make_outbox()
    outbox.subscribe(ALICE)
    outbox.post(reply(BOB), 0.0)
    assert repr(outbox) == f"<Outbox subscribers=1 held=1 bytes={36 + 2 + 1 + OVERHEAD}>"


IDENTITIES = st.sampled_from([ALICE, BOB, b"me"])


@given(st.lists(st.tuples(st.sampled_from(["subscribe", "unsubscribe", "post", "deliver", "full"]), IDENTITIES)))
def test_replies_of_each_identity_keep_their_order_in_every_sequence_of_events(
    steps: list[tuple[str, bytes]],
) -> None:
    outbox, pipes = make_outbox(), Pipes()
    num_clients: Counter[bytes] = Counter()
    for number, (step, identity) in enumerate(steps):
        if step == "subscribe":
            outbox.subscribe(identity)
            num_clients[identity] += 1
        elif step == "unsubscribe" and num_clients[identity]:
            num_clients[identity] -= 1
            assert unsubscribe(outbox, identity) == (num_clients[identity] == 0)
        elif step == "post":
            outbox.post(reply(identity, b"%d" % number), 0.0)
        else:
            pipes.full = {outbox.topic_of(identity)} if step == "full" else set()
            deliver(outbox, pipes)
    by_topic: dict[bytes, list[int]] = {}
    for topic, body in pipes.sent:
        if not body.isdigit():
            continue
        by_topic.setdefault(topic, []).append(int(body))
    assert all(numbers == sorted(set(numbers)) for numbers in by_topic.values())
    assert outbox.num_subscribers == len(+num_clients)
    for identity in list(+num_clients):
        for _ in range(num_clients[identity]):
            unsubscribe(outbox, identity)
    outbox.expire(1e9, unlimited())
    assert (outbox.held_bytes, outbox.num_subscribers, outbox.has_deliverable) == (0, 0, False)
