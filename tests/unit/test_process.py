"""A child process that has died is started again, at once or after a pause."""

from __future__ import annotations

import time

from bert_serving.server.supervisor.process import ChildProcess


class _Dead:
    """A process that has ended."""

    exitcode = 3

    def join(self) -> None: ...

    def close(self) -> None: ...


def pause_after_death(child: ChildProcess, *, died_early: bool) -> float:
    """Let the child die; return the seconds until it may start again."""
    child._process = _Dead()  # type: ignore[assignment]
    assert child.release(died_early=died_early) == 3
    return round(child.restart_at - time.monotonic())


def make_child() -> ChildProcess:
    return ChildProcess("worker-0", "module:function", {}, verbose=False, scratch_dir="/nowhere")


def test_a_child_that_was_ready_starts_again_at_once() -> None:
    child = make_child()
    assert pause_after_death(child, died_early=False) == 0
    assert child.num_early_deaths == 0


def test_pauses_double_with_each_early_death_up_to_a_limit() -> None:
    child = make_child()
    assert [pause_after_death(child, died_early=True) for _ in range(7)] == [1, 2, 4, 8, 16, 30, 30]
    assert child.num_early_deaths == 7


def test_a_child_that_was_ready_has_no_early_deaths_any_more() -> None:
    child = make_child()
    pause_after_death(child, died_early=True)
    pause_after_death(child, died_early=False)
    assert child.num_early_deaths == 0
    assert not child.is_started
