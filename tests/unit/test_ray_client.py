"""The client of a gateway in Ray Serve, with handles that were written for these tests. No Ray is started."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from bert_serving.protocol import (
    DeadlineExceeded,
    EncodeOptions,
    EncodeReply,
    InvalidRequest,
    Overloaded,
    ServingError,
    Unavailable,
)
from bert_serving.ray.client import ReplicasClient
from bert_serving.ray.metrics import merged
from bert_serving.server.settings import Settings
from ray.exceptions import ActorDiedError, RayTaskError, TaskCancelledError
from ray.serve.exceptions import BackPressureError, RequestCancelledError

REPLY = EncodeReply(b"", b"1", np.zeros((1, 2), np.float32))

Answer = Callable[[], Awaitable[Any]]


class Response:
    """A response of a handle: it awaits the answer, and notes whether it was cancelled."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.is_cancelled = False

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._answer().__await__()

    def cancel(self) -> None:
        self.is_cancelled = True


class Engine:
    """A handle whose calls have the given answers, one after the other."""

    def __init__(self, *answers: Answer) -> None:
        self._answers = iter(answers)
        self.calls: list[dict[str, Any]] = []
        self.responses: list[Response] = []
        self.encode_reply = SimpleNamespace(remote=self._remote)

    def _remote(self, *_: Any, **more: Any) -> Response:
        self.calls.append(more)
        self.responses.append(Response(next(self._answers)))
        return self.responses[-1]


def returns(value: Any) -> Answer:
    async def answer() -> Any:
        return value

    return answer


def raises(exc: BaseException, *, after_s: float = 0.0) -> Answer:
    async def answer() -> Any:
        await asyncio.sleep(after_s)
        raise exc

    return answer


async def waits() -> Any:
    await asyncio.Event().wait()


def client_of(engine: Engine) -> ReplicasClient:
    return ReplicasClient(engine, Settings())


async def encode(client: ReplicasClient, timeout_ms: int | None = None) -> EncodeReply:
    asked = {"timeout_ms": timeout_ms, "flow": "me", "flow_share": None, "trace": "t"}
    return (await client.encode_reply(["a"], EncodeOptions(), None, **asked))[1]


def test_a_request_whose_replica_dies_is_sent_once_more() -> None:
    engine = Engine(raises(ActorDiedError()), returns(REPLY))
    assert asyncio.run(encode(client_of(engine))) is REPLY
    assert (
        engine.calls[0]
        == engine.calls[1]
        == {
            "timeout_ms": None,
            "flow": "me",
            "flow_share": None,
            "trace": "t",
        }
    )


def test_a_request_whose_second_replica_dies_is_not_sent_again() -> None:
    engine = Engine(raises(ActorDiedError()), raises(ActorDiedError()), returns(REPLY))
    with pytest.raises(Unavailable, match="the replica has ended") as raised:
        asyncio.run(encode(client_of(engine)))
    assert raised.value.retry_after_ms == 1000
    assert len(engine.calls) == 2


def test_a_request_to_an_engine_that_has_failed_is_sent_once_more() -> None:
    engine = Engine(returns(Unavailable("the engine has failed").to_info()), returns(REPLY))
    assert asyncio.run(encode(client_of(engine))) is REPLY


@pytest.mark.parametrize(
    "error", [InvalidRequest("texts[0] is wrong"), Overloaded("the queue is full", retry_after_ms=70)]
)
def test_an_error_of_a_replica_arrives_as_it_was(error: ServingError) -> None:
    engine = Engine(returns(error.to_info()))
    with pytest.raises(type(error)) as raised:
        asyncio.run(encode(client_of(engine)))
    assert raised.value.to_info() == error.to_info()


def test_an_error_that_ray_has_wrapped_is_unwrapped() -> None:
    cause = Overloaded("the queue is full", retry_after_ms=70)
    engine = Engine(raises(RayTaskError("encode_reply", "traceback", cause).as_instanceof_cause()))
    with pytest.raises(Overloaded) as raised:
        asyncio.run(encode(client_of(engine)))
    assert raised.value.to_info() == cause.to_info()


def test_too_many_queued_requests_are_overloaded() -> None:
    engine = Engine(raises(BackPressureError(5, 4)))
    with pytest.raises(Overloaded) as raised:
        asyncio.run(encode(client_of(engine)))
    assert raised.value.retry_after_ms == 1000


def test_the_second_attempt_has_only_the_time_that_is_left() -> None:
    engine = Engine(raises(ActorDiedError(), after_s=0.05), returns(REPLY))
    asyncio.run(encode(client_of(engine), timeout_ms=10_000))
    assert engine.calls[0]["timeout_ms"] == 10_000
    assert engine.calls[1]["timeout_ms"] <= 9_951


def test_after_the_deadline_there_is_no_second_attempt() -> None:
    engine = Engine(raises(ActorDiedError(), after_s=0.01), returns(REPLY))
    with pytest.raises(DeadlineExceeded):
        asyncio.run(encode(client_of(engine), timeout_ms=5))
    assert len(engine.calls) == 1


def test_a_request_that_is_cancelled_is_cancelled_in_its_replica() -> None:
    engine = Engine(waits)

    async def leave() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(encode(client_of(engine)), 0.01)

    asyncio.run(leave())
    assert engine.responses[0].is_cancelled


@pytest.mark.parametrize("error", [asyncio.CancelledError(), TaskCancelledError(), RequestCancelledError("1")])
def test_a_call_that_ray_has_cancelled_is_not_sent_again(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bert_serving.ray.client._CANCELLED_S", 0.01)
    engine = Engine(raises(error), returns(REPLY))
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(encode(client_of(engine)))
    assert len(engine.calls) == 1


def test_metrics_of_several_replicas_are_one_text_with_a_label() -> None:
    text = '# HELP n_total Things\n# TYPE n_total counter\nn_total{code="a"} %s\n'
    assert merged([("one", text % 1), ("two", text % 2)]) == (
        "# HELP n_total Things\n# TYPE n_total counter\n"
        'n_total{code="a",replica="one"} 1.0\nn_total{code="a",replica="two"} 2.0\n'
    )
