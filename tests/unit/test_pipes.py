"""The bytes of a reply stay reserved while libzmq holds the reply."""

from __future__ import annotations

from bert_serving.server.broker.account import Account
from bert_serving.server.broker.pipes import Pipes


class FakeTracker:
    done = False


def test_a_reservation_is_kept_until_every_frame_is_sent() -> None:
    account, pipes = Account(1000, share=1.0), Pipes()
    trackers = [FakeTracker(), FakeTracker()]
    pipes.add(trackers, account.reserve(b"me", 100))
    held = []
    for tracker in trackers:
        pipes.collect()
        held.append(account.held)
        tracker.done = True
    pipes.collect()
    assert (held, account.held, len(pipes)) == ([100, 100], 0, 0)


def test_replies_that_are_never_sent_do_not_keep_the_bytes_of_others() -> None:
    account, pipes = Account(1000, share=1.0), Pipes()
    for _ in range(500):
        pipes.add([FakeTracker()], account.reserve(b"does not read", 1))
    sent = FakeTracker()
    sent.done = True
    pipes.add([sent], account.reserve(b"reads", 1))
    for _ in range(500):
        pipes.collect()
    assert (account.held_by(b"does not read"), account.held_by(b"reads")) == (500, 0)
