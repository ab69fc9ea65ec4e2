"""Workers are replaced one at a time, in the order in which their replacement was requested."""

from __future__ import annotations

from bert_serving.server.supervisor.rollout import Reason, Rollout

NAMES = ["w0", "w1", "w2"]


def requested(*reasons: Reason) -> Rollout:
    """Return a rollout in which w0, w1 ... wait for these reasons."""
    rollout = Rollout()
    for name, reason in zip(NAMES, reasons, strict=False):
        assert rollout.request(name, reason)
    return rollout


def test_nothing_is_replaced_without_a_reason() -> None:
    assert Rollout().next(NAMES) is None


def test_a_reload_replaces_one_worker_after_the_other() -> None:
    rollout = requested(*[Reason.RELOAD] * 3)
    order = []
    while (found := rollout.next(NAMES)) is not None:
        assert rollout.next(NAMES) is None  # not before the first one is finished
        order.append(found)
        rollout.finished(found[0])
    assert order == [(name, Reason.RELOAD) for name in NAMES]


def test_a_worker_that_is_not_ready_lets_others_go_first_and_is_replaced_later() -> None:
    rollout = requested(Reason.RELOAD, Reason.RELOAD)
    assert rollout.next(["w1"]) == ("w1", Reason.RELOAD)
    rollout.finished("w1")
    assert rollout.next(["w1"]) is None
    assert rollout.next(NAMES) == ("w0", Reason.RELOAD)


def test_a_worker_that_died_and_was_started_again_needs_no_replacement() -> None:
    rollout = requested(Reason.RELOAD, Reason.RELOAD)
    rollout.finished("w0")
    assert rollout.next(NAMES) == ("w1", Reason.RELOAD)


def test_a_worker_waits_only_once() -> None:
    rollout = requested(Reason.OUTDATED)
    assert not rollout.request("w0", Reason.OUTDATED)
    assert rollout.next(NAMES) == ("w0", Reason.OUTDATED)
    assert not rollout.request("w0", Reason.OUTDATED)
    rollout.finished("w0")
    assert rollout.next(NAMES) is None


def test_a_reload_during_a_replacement_replaces_the_worker_again() -> None:
    rollout = requested(Reason.RELOAD)
    rollout.next(NAMES)
    rollout.request("w0", Reason.RELOAD)
    rollout.finished("w0")
    assert rollout.next(NAMES) == ("w0", Reason.RELOAD)


def test_a_replacement_that_cannot_start_ends_the_reload() -> None:
    rollout = requested(Reason.RELOAD, Reason.RELOAD, Reason.MEMORY)
    rollout.next(NAMES)
    assert rollout.failed("w0") is Reason.RELOAD
    assert rollout.next(NAMES) == ("w2", Reason.MEMORY)
    rollout.finished("w2")
    assert rollout.next(NAMES) is None


def test_a_failure_outside_of_a_replacement_changes_nothing() -> None:
    rollout = requested(Reason.RELOAD)
    assert rollout.failed("w0") is None
    assert rollout.next(NAMES) == ("w0", Reason.RELOAD)
