"""AsyncEncoder gives the vectors of Encoder to many tasks at once, and no call waits forever."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import weakref
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from bert_serving.protocol import DeadlineExceeded, InvalidRequest, Overloaded, Unavailable, WorkerFailed
from bert_serving.server import AsyncEncoder, Encoder
from bert_serving.server.model.errors import ModelError
from bert_serving.server.worker.micro_batches import PreparedText

from tests.support.tiny_models import make_model
from tests.support.waiting import HANG_S

T = TypeVar("T")
TEXTS = ["First do it", "then do it right", "then do it better " * 20]
_LIMIT_S = float(HANG_S)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "bert", "bert")


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Encoder:
    return Encoder(folder, dtype="float32")


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(coroutine, _LIMIT_S))


def many(count: int) -> list[str]:
    return [f"text number {i} of many, with some more words" for i in range(count)]


class Gate:
    """Lets forward passes of an encoder wait until it is opened."""

    def __init__(self, encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_open, self.num_waiting = threading.Event(), 0
        inner = encoder.forward_steps

        def steps(prepared: Sequence[PreparedText], **options: Any) -> Any:
            self.num_waiting += 1
            assert self.is_open.wait(_LIMIT_S)
            return (yield from inner(prepared, **options))

        monkeypatch.setattr(encoder, "forward_steps", steps)

    async def wait(self) -> None:
        while not self.num_waiting:
            await asyncio.sleep(0.01)


def test_vectors_tokens_and_spans_are_those_of_an_encoder(folder: Path, encoder: Encoder) -> None:
    async def use() -> None:
        async with AsyncEncoder(folder, dtype="float32") as engine:
            for options in ({}, {"normalize": True}, {"pooling_strategy": "CLS_TOKEN", "pooling_layer": -2}):
                found = await engine.encode(TEXTS, **options)
                assert np.allclose(found, encoder.encode(TEXTS, **options), atol=1e-6)
            mine, theirs = (await engine.encode_tokens(TEXTS))[1], encoder.encode_tokens(TEXTS)[1]
            assert (mine.tokens, mine.offsets) == (theirs.tokens, theirs.offsets)
            assert np.allclose(mine.vectors, theirs.vectors, atol=1e-6)
            (span,), _ = await engine.encode_spans(TEXTS[:2], [[(0, 5)], [(0, 4)]])
            assert np.allclose(span, encoder.encode_spans(TEXTS[:1], [[(0, 5)]])[0][0], atol=1e-6)
            assert np.allclose(
                await engine.encode([["First", "do"]], is_tokenized=True), encoder.encode([["First", "do"]])
            )

    run(use())


def test_tasks_are_merged_into_batches_and_equal_texts_computed_once(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def use() -> None:
        texts = many(60)
        async with AsyncEncoder(encoder) as engine:
            gate = Gate(encoder, monkeypatch)
            calls = asyncio.gather(*(engine.encode([text]) for text in [*texts, *texts]))
            await gate.wait()
            gate.is_open.set()
            rows = await calls
            assert np.allclose(np.concatenate(rows[:60]), encoder.encode(texts), atol=1e-6)
            assert np.array_equal(rows[:60], rows[60:])
            assert engine.status["num_batch"] < 20
            assert engine.status["num_encoded_seq"] < 120
            text = engine.metrics_text()
            assert "bert_serving_requests_total 120.0" in text
            assert f"bert_serving_texts_total {engine.status['num_encoded_seq']}.0" in text
            assert 'bert_serving_worker_state{state="ready",worker="engine"} 1.0' in text
            assert engine.model["dimension"] == encoder.dimension

    run(use())


def test_a_small_request_overtakes_a_large_one(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    async def use() -> None:
        async with AsyncEncoder(encoder, max_batch_size=32) as engine:
            gate = Gate(encoder, monkeypatch)
            ended: list[str] = []
            large = asyncio.create_task(engine.encode(many(400)))
            large.add_done_callback(lambda _: ended.append("large"))
            await gate.wait()
            small = asyncio.create_task(engine.encode(["a small one"]))
            small.add_done_callback(lambda _: ended.append("small"))
            await asyncio.sleep(0)
            gate.is_open.set()
            await asyncio.gather(large, small)
            assert ended == ["small", "large"]

    run(use())


def test_cancelled_tasks_take_their_texts_out_of_the_queue(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def use() -> None:
        async with AsyncEncoder(encoder, max_batch_size=16) as engine:
            gate = Gate(encoder, monkeypatch)
            task = asyncio.create_task(engine.encode(many(300)))
            await gate.wait()
            assert engine.status["queue_texts"] > 200
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert (engine.status["queue_texts"], engine.status["open_requests"]) == (0, 0)
            gate.is_open.set()
            assert np.allclose(await engine.encode(TEXTS), encoder.encode(TEXTS), atol=1e-6)
            assert "bert_serving_cancelled_requests_total 1.0" in engine.metrics_text()

    run(use())


def test_a_deadline_ends_a_call_in_time(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    async def use() -> None:
        async with AsyncEncoder(encoder) as engine:
            gate = Gate(encoder, monkeypatch)
            patient = asyncio.create_task(engine.encode(["a patient one"], timeout_ms=50_000))
            with pytest.raises(DeadlineExceeded):
                await engine.encode(["a hurried one"], timeout_ms=50)
            gate.is_open.set()
            assert (await patient).shape == (1, encoder.dimension)

    run(use())


def test_bad_input_costs_nobody_else_anything(encoder: Encoder) -> None:
    async def use() -> None:
        async with AsyncEncoder(encoder, queue_capacity=100) as engine:
            good = asyncio.create_task(engine.encode(TEXTS))
            for texts, error in ((["a", 1], TypeError), ([], ValueError), ([" "], ValueError)):
                with pytest.raises(error):
                    await engine.encode(texts)  # type: ignore[arg-type]
            with pytest.raises(TypeError, match="no option 'pool'"):
                await engine.encode(["a"], pool="x")  # type: ignore[call-arg]
            with pytest.raises(InvalidRequest, match="pooling_layer"):
                await engine.encode(["a"], pooling_layer=-99)
            with pytest.raises(InvalidRequest, match=r"at most 100 texts, got 101"):
                await engine.encode(many(101))
            assert (await good).shape == (3, encoder.dimension)

    run(use())


def test_a_full_queue_refuses_at_once(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    async def use() -> None:
        async with AsyncEncoder(encoder, queue_capacity=100, max_batch_size=8) as engine:
            gate = Gate(encoder, monkeypatch)
            first = asyncio.create_task(engine.encode(many(100)))
            await gate.wait()
            with pytest.raises(Overloaded, match="the queue is full"):
                await engine.encode(many(90)[::-1])
            gate.is_open.set()
            await first

    run(use())


def test_an_error_in_the_model_fails_its_text_only(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = encoder.forward_steps
    (bad,) = encoder.prepare(["a bad one"])
    assert isinstance(bad, PreparedText)

    def steps(prepared: Sequence[PreparedText], **options: Any) -> Any:
        if any(each.text.ids == bad.text.ids for each in prepared):
            raise RuntimeError("cannot compute this")
        return (yield from inner(prepared, **options))

    monkeypatch.setattr(encoder, "forward_steps", steps)

    async def use() -> None:
        async with AsyncEncoder(encoder) as engine:
            calls = (engine.encode([text]) for text in [*many(20), "a bad one"])
            *good, error = await asyncio.gather(*calls, return_exceptions=True)
            assert isinstance(error, WorkerFailed)
            assert all(isinstance(each, np.ndarray) for each in good)

    run(use())


def test_calls_before_and_after_fail_at_once(encoder: Encoder) -> None:
    async def use() -> None:
        engine = AsyncEncoder(encoder)
        with pytest.raises(Unavailable, match="is not running"):
            await engine.encode(["a"])
        await engine.close()
        async with engine:
            last = asyncio.create_task(engine.encode(TEXTS))
            await asyncio.sleep(0)
        assert (await last).shape == (3, encoder.dimension), "what was accepted is computed"
        with pytest.raises(Unavailable, match="is closed"):
            await engine.encode(["a"])
        with pytest.raises(RuntimeError, match="only once"):
            await engine.start()

    run(use())


def test_a_model_that_cannot_be_loaded_is_an_error_of_the_start(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="dtype"):
        AsyncEncoder(tmp_path, dtype="float8")
    with pytest.raises(TypeError, match="an Encoder has its options"):
        AsyncEncoder.__init__(object.__new__(AsyncEncoder), object.__new__(Encoder), dtype="float32")

    async def use() -> None:
        with pytest.raises(ModelError):
            async with AsyncEncoder(tmp_path / "missing"):
                pass

    run(use())


def test_a_thread_that_dies_fails_all_calls(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    def steps(prepared: Sequence[PreparedText], **options: Any) -> Any:
        raise torch.AcceleratorError("the device is gone")
        yield

    async def use() -> None:
        async with AsyncEncoder(encoder) as engine:
            monkeypatch.setattr(encoder, "forward_steps", steps)
            with pytest.raises(Unavailable, match="the device is gone"):
                await engine.encode(["a"])
            with pytest.raises(Unavailable, match="has failed"):
                await engine.encode(["a"])
            assert "bert_serving_workers_ready 0.0" in engine.metrics_text()

    run(use())


@pytest.mark.parametrize("where", ["prepare", "forward_steps"])
def test_whatever_ends_a_thread_fails_all_calls(
    where: str, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def panic(*_: object, **__: object) -> Any:
        raise KeyboardInterrupt("as when Rust panics")

    async def use() -> None:
        async with AsyncEncoder(encoder) as engine:
            monkeypatch.setattr(encoder, where, panic)
            monkeypatch.setattr(threading, "excepthook", lambda _: None)
            for _ in range(2):
                with pytest.raises(Unavailable, match="has failed"):
                    await engine.encode(["a"])

    run(use())


def test_a_caller_may_change_its_list(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    async def use() -> None:
        async with AsyncEncoder(encoder, cache_mb=8) as engine:
            gate = Gate(encoder, monkeypatch)
            mine = ["cats", "dogs"]
            first = asyncio.create_task(engine.encode(mine))
            await gate.wait()
            second = asyncio.create_task(engine.encode(["stock prices"]))
            await asyncio.sleep(0)
            mine[0] = "stock prices"
            mine.pop()
            gate.is_open.set()
            assert np.allclose(await first, encoder.encode(["cats", "dogs"]), atol=1e-6)
            for found in (await second, await engine.encode(["stock prices"])):
                assert np.allclose(found, encoder.encode(["stock prices"]), atol=1e-6)

    run(use())


def test_nothing_is_held_when_calls_have_ended_in_any_way(encoder: Encoder) -> None:
    async def use() -> None:
        async with AsyncEncoder(encoder) as engine:
            ended = await asyncio.gather(
                *(asyncio.wait_for(engine.encode([f"text {i}"]), i % 40 / 1000) for i in range(400)),
                *(engine.encode([f"other text {i}"], timeout_ms=i % 20) for i in range(200)),
                return_exceptions=True,
            )
            assert {type(each) for each in ended} <= {
                np.ndarray,
                TimeoutError,
                asyncio.TimeoutError,
                DeadlineExceeded,
            }
            dropped = engine.encode(["dropped"])
            dropped.send(None)
            dropped.close()
            assert (await engine.encode(["a"])).shape == (1, encoder.dimension)
            assert engine.status["open_requests"] == 0
            assert "bert_serving_held_bytes 0.0" in engine.metrics_text()

    run(use())


@pytest.mark.parametrize(
    "arguments",
    [
        {"timeout_ms": "1000"},
        {"timeout_ms": float("nan")},
        {"timeout_ms": -1},
        {"flow": ""},
        {"flow_share": 2},
        {"trace": 5},
        {"texts": [None]},
        {"texts": "abc"},
        {"texts": []},
        {"spans": [[(0, 1, 2)]]},
    ],
)
def test_wrong_arguments_are_refused_at_the_door(arguments: dict[str, Any], encoder: Encoder) -> None:
    async def use() -> None:
        async with AsyncEncoder(encoder) as engine:
            good = asyncio.create_task(engine.encode(["ok"]))
            with pytest.raises(InvalidRequest):
                await engine.encode_reply(**{"texts": ["a"], **arguments})
            assert (await good).shape == (1, encoder.dimension)

    run(use())


@pytest.mark.parametrize(
    "arguments",
    [{"max_batch_size": 0}, {"memory_mb": "2"}, {"flow_share": 7}, {"cache_mb": -1}, {"queue_capacity": 0}],
)
def test_wrong_limits_are_refused(arguments: dict[str, Any], encoder: Encoder) -> None:
    with pytest.raises(ModelError, match=f"{next(iter(arguments))} must be"):
        AsyncEncoder(encoder, **arguments)


def test_closing_while_it_loads_or_while_calls_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    others = set(threading.enumerate())  # of engines that other tests of this process have left open

    async def use() -> None:
        loading = AsyncEncoder(folder, compile="off")
        start = asyncio.create_task(loading.start())
        await asyncio.sleep(0)
        await loading.close()
        with pytest.raises(Unavailable, match="closed while it started"):
            await start

        encoder = Encoder(folder, compile="off")
        engine = AsyncEncoder(encoder)
        await engine.start()
        gate = Gate(encoder, monkeypatch)
        call = asyncio.create_task(engine.encode(["a"]))
        await gate.wait()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(engine.close(), 0.05)
        with pytest.raises(Unavailable, match="is closed"):
            await call
        gate.is_open.set()
        await engine.close()
        left = [thread.name for thread in threading.enumerate() if thread not in others]
        assert not [name for name in left if name.startswith(("encoder", "tokenizer-"))]

    run(use())


def test_a_closed_engine_keeps_no_weights(folder: Path) -> None:
    async def use() -> None:
        engine = AsyncEncoder(folder, dtype="float32", compile="off")
        await engine.start()
        assert engine._thread is not None
        encoder = weakref.ref(engine._thread.encoder)
        assert encoder() is not None
        await engine.close()
        gc.collect()
        assert encoder() is None

    run(use())


def test_another_event_loop_is_refused(encoder: Encoder) -> None:
    engine = AsyncEncoder(encoder)

    async def other() -> None:
        with pytest.raises(RuntimeError, match="another event loop"):
            await engine.encode(["a"])

    async def use() -> None:
        async with engine:
            await asyncio.to_thread(run, other())

    run(use())


_ENDS = """
import asyncio, sys
from bert_serving.server import AsyncEncoder

async def main():
    engine = AsyncEncoder(sys.argv[1], compile="off")
    await engine.start()
    asyncio.ensure_future(engine.encode(["some words " * 100] * 3000))
    await asyncio.sleep(0.3)

asyncio.run(main())
sys.exit(3)
"""


def test_a_program_may_end_while_it_computes(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _ENDS, str(folder)],
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert done.returncode == 3, done.stderr
