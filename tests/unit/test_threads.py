"""A pass runs in one thread as long as passes with all threads are slow."""

from __future__ import annotations

from collections.abc import Callable

from bert_serving.server.worker.compiled.threads import ThreadChoice

TOKENS = 20


def run(choice: ThreadChoice, count: int, seconds: Callable[[bool], float], tokens: int = TOKENS) -> list[bool]:
    """Run passes that take seconds(alone); return for each whether it ran alone."""
    ran = []
    for _ in range(count):
        alone = choice.should_run_alone(tokens)
        choice.note(tokens, seconds(alone), alone=alone)
        ran.append(alone)
    return ran


def at_rest(alone: bool) -> float:
    return 0.002 if alone else 0.0015


def beside_a_busy_core(alone: bool) -> float:
    return 0.0025 if alone else 0.020


def test_at_rest_all_threads_run() -> None:
    assert not any(run(ThreadChoice(), 1000, at_rest))


def test_one_thread_runs_beside_a_busy_core() -> None:
    choice = ThreadChoice()
    run(choice, 50, at_rest)
    ran = run(choice, 200, beside_a_busy_core)
    assert ran[:3] == [False, False, True]
    assert sum(not alone for alone in ran[2:]) == 3, "all threads are tried again every 64 passes"


def test_all_threads_run_again_soon_after_the_core_is_free() -> None:
    choice = ThreadChoice()
    run(choice, 50, at_rest)
    run(choice, 100, beside_a_busy_core)
    ran = run(choice, 200, at_rest)
    assert ran.index(False) < 64
    assert not any(ran[64:])


def test_a_single_slow_pass_changes_nothing() -> None:
    choice = ThreadChoice()
    run(choice, 50, at_rest)
    assert run(choice, 1, lambda alone: 0.05) == [False]
    assert not any(run(choice, 50, at_rest))


def test_one_thread_that_is_slower_still_is_given_up() -> None:
    choice = ThreadChoice()
    run(choice, 50, at_rest)
    ran = run(choice, 30, lambda alone: 0.030 if alone else 0.004)
    assert ran[2] is True
    assert ran[3] is False


def test_each_size_has_its_own_choice() -> None:
    choice = ThreadChoice()
    run(choice, 50, at_rest)
    run(choice, 50, lambda alone: 0.04, tokens=1000)
    run(choice, 3, beside_a_busy_core)
    assert choice.should_run_alone(TOKENS)
    assert not choice.should_run_alone(1000)
