"""The outbox holds replies until a client subscribes. Tests of order, isolation of clients, and limits."""

from __future__ import annotations

import uuid
from collections import Counter

import pytest
from bert_serving.protocol import Frames
from bert_serving.server.broker.outbox import Outbox
from hypothesis import given
from hypothesis import strategies as st

ALICE, BOB, CAROL = (str(uuid.UUID(int=i)).encode() for i in (1, 2, 3))
OVERHEAD = 1024  # bytes that the outbox counts for a reply in addition to its frames


class Pipes:
    """Fake pipes to the subscribers. full: the topics whose pipes are full. sent: the replies that were sent."""

    def __init__(self, *full: bytes) -> None:
        self.full = set(full)
        self.sent: list[tuple[bytes, bytes]] = []

    def send(self, frames: Frames) -> bool:
        topic, body = map(bytes, frames[:2])
        if topic in self.full:
            return False
        self.sent.append((topic, body))
        return True


def make_outbox(capacity_bytes: int = 1 << 30, max_age_s: float = 300.0) -> Outbox:
    """Return an outbox whose topics are the identities themselves."""
    outbox = secret_outbox(capacity_bytes, max_age_s)
    outbox._suffix = b""
    return outbox


def secret_outbox(capacity_bytes: int = 1 << 30, max_age_s: float = 300.0) -> Outbox:
    """Return an outbox as servers have it: its topics have a secret suffix."""
    return Outbox(capacity_bytes=capacity_bytes, max_age_s=max_age_s, substitute=substitute)


def substitute(frames: Frames, reason: str) -> Frames:
    return [frames[0], f"dropped: {reason}".encode(), frames[-1]]


def reply(identity: bytes, body: bytes = b"{}") -> Frames:
    return [identity, body, b"1"]


def delivered(outbox: Outbox) -> list[tuple[bytes, bytes]]:
    pipes = Pipes()
    outbox.deliver(pipes.send)
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

    def send(frames: Frames) -> bool:
        sent.append(frames)
        return True

    outbox.deliver(send)
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
    outbox.deliver(Pipes(ALICE).send)
    outbox.post(reply(ALICE, b"3"), 0.0)
    assert [body for _, body in delivered(outbox)] == [b"1", b"2", b"3"]


def test_full_pipe_does_not_block_other_topics() -> None:
    outbox = make_outbox()
    for identity in (ALICE, BOB):
        outbox.subscribe(identity)
        outbox.post(reply(identity), 0.0)
    pipes = Pipes(ALICE)
    outbox.deliver(pipes.send)
    assert pipes.sent == [(BOB, b"{}")]


def test_reply_that_waits_for_a_full_pipe_stays_deliverable() -> None:
    outbox = make_outbox()
    outbox.subscribe(ALICE)
    outbox.post(reply(ALICE), 0.0)
    outbox.deliver(Pipes(ALICE).send)
    assert outbox.has_deliverable


# -- unsubscribing -------------------------------------------------------------------------------------


def test_last_unsubscription_drops_the_replies() -> None:
    outbox = make_outbox()
    outbox.subscribe(ALICE)
    outbox.post(reply(ALICE), 0.0)
    assert outbox.unsubscribe(ALICE)
    assert (outbox.held_bytes, outbox.has_deliverable, outbox.num_subscribers) == (0, False, 0)


def test_client_that_returns_does_not_get_what_was_dropped() -> None:
    outbox = make_outbox()
    outbox.subscribe(ALICE)
    outbox.post(reply(ALICE), 0.0)
    outbox.unsubscribe(ALICE)
    outbox.subscribe(ALICE)
    assert delivered(outbox) == []


def test_shared_identity_stays_until_its_last_subscriber_leaves() -> None:
    outbox = make_outbox()
    outbox.subscribe(ALICE)
    outbox.subscribe(ALICE)
    assert [outbox.unsubscribe(ALICE) for _ in range(2)] == [False, True]


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
    outbox.unsubscribe(ALICE)
    assert delivered(outbox) == [(ALICE, b"{}")]


def test_unsubscription_of_an_unknown_client_changes_nothing() -> None:
    outbox = make_outbox()
    outbox.post(reply(ALICE), 0.0)
    assert not outbox.unsubscribe(ALICE)
    assert outbox.held_bytes > 0


def test_has_subscriber_follows_subscriptions() -> None:
    outbox = make_outbox()
    outbox.subscribe(ALICE)
    before = outbox.has_subscriber(ALICE)
    outbox.unsubscribe(ALICE)
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


def fill(outbox: Outbox, *identities: bytes) -> None:
    """Post a reply to each of the identities. The outbox counts 2,000 bytes for each reply."""
    for now, identity in enumerate(identities):
        outbox.post(reply(identity, b"x" * (2000 - OVERHEAD - len(identity) - 1)), float(now))


def test_oldest_replies_are_dropped_if_the_outbox_is_over_its_capacity() -> None:
    outbox = make_outbox(capacity_bytes=5000)
    fill(outbox, ALICE, BOB, CAROL)
    assert [d.topic for d in outbox.trim()] == [ALICE]
    assert (outbox.held_bytes, outbox.is_over_capacity) == (4000, False)


def test_replies_without_a_subscriber_are_dropped_first() -> None:
    outbox = make_outbox(capacity_bytes=5000)
    outbox.subscribe(ALICE)
    fill(outbox, ALICE, BOB, CAROL)
    assert [d.topic for d in outbox.trim()] == [BOB]


def test_subscriber_gets_an_error_instead_of_a_dropped_reply() -> None:
    outbox = make_outbox(capacity_bytes=5500)
    outbox.subscribe(ALICE)
    fill(outbox, ALICE, ALICE, ALICE)
    assert [d.reason for d in outbox.trim()] == ["more than 0 MiB of replies waited for their clients"]
    bodies = [body for _, body in delivered(outbox)]
    assert [body[:8] for body in bodies] == [b"dropped:", b"x" * 8, b"x" * 8]


def test_an_error_is_not_replaced_again() -> None:
    outbox = make_outbox(capacity_bytes=100)
    outbox.subscribe(ALICE)
    fill(outbox, ALICE, ALICE)
    assert len(outbox.trim()) == 2
    assert outbox.trim() == []
    assert len(delivered(outbox)) == 2


def test_reply_older_than_the_maximum_age_is_dropped() -> None:
    outbox = make_outbox(max_age_s=5.0)
    outbox.post(reply(ALICE), 10.0)
    assert outbox.expire(15.0) == []
    (dropped,) = outbox.expire(15.1)
    assert (dropped.topic, dropped.reason) == (ALICE, "its client did not fetch it within 5 s")
    assert outbox.held_bytes == 0


def test_newer_replies_are_kept_when_an_older_one_expires() -> None:
    outbox = make_outbox(max_age_s=5.0)
    outbox.post(reply(ALICE, b"old"), 0.0)
    outbox.post(reply(ALICE, b"young"), 4.0)
    outbox.expire(6.0)
    outbox.subscribe(ALICE)
    assert delivered(outbox) == [(ALICE, b"young")]


def test_reply_that_waits_for_a_full_pipe_expires_too() -> None:
    outbox = make_outbox(max_age_s=5.0)
    outbox.subscribe(ALICE)
    outbox.post(reply(ALICE), 0.0)
    outbox.deliver(Pipes(ALICE).send)
    assert len(outbox.expire(6.0)) == 1
    assert outbox.expire(7.0) == []
    assert delivered(outbox) == [(ALICE, b"dropped: its client did not fetch it within 5 s")]


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
            assert outbox.unsubscribe(identity) == (num_clients[identity] == 0)
        elif step == "post":
            outbox.post(reply(identity, b"%d" % number), 0.0)
        else:
            pipes.full = {outbox.topic_of(identity)} if step == "full" else set()
            outbox.deliver(pipes.send)
    by_topic: dict[bytes, list[int]] = {}
    for topic, body in pipes.sent:
        by_topic.setdefault(topic, []).append(int(body))
    assert all(numbers == sorted(set(numbers)) for numbers in by_topic.values())
    assert outbox.num_subscribers == len(+num_clients)
    for identity in list(+num_clients):
        for _ in range(num_clients[identity]):
            outbox.unsubscribe(identity)
    outbox.expire(1e9)
    assert (outbox.held_bytes, outbox.num_subscribers, outbox.has_deliverable) == (0, 0, False)
