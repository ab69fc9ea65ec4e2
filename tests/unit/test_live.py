"""The streams of /page/live: the broker is asked only while a page is open."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest
from bert_serving.protocol import Command, JsonObject, Unavailable
from bert_serving.server.gateway import live
from bert_serving.server.gateway.live import LiveHistory

from tests.support.gateway import make_service
from tests.support.waiting import HANG_S

ALICE, BOB = "key:alice", "key:bob"


class Broker:
    """Counts how often it is asked; each time it has one point more. is_down: it does not answer.

    asked_often: is set when it has been asked 20 times.
    """

    def __init__(self) -> None:
        self.num_asked = 0
        self.asked_often = asyncio.Event()
        self.is_down = False

    async def ask(self, command: Command) -> JsonObject:
        if self.is_down:
            raise Unavailable("the broker is away")
        self.num_asked += 1
        if self.num_asked == 20:
            self.asked_often.set()
        points = [[float(i + 1)] for i in range(self.num_asked)]
        return {"ready": True, "points": points if command is Command.SHOW_HISTORY else points[-2:]}


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Broker:
    monkeypatch.setattr(live, "_PERIOD_S", 0.01)
    return Broker()


async def read(events: Any) -> JsonObject:
    content: JsonObject = orjson.loads((await anext(events)).removeprefix(b"data: "))
    return content


def test_pages_share_one_task_and_nobody_costs_nothing(broker: Broker) -> None:
    async def use() -> None:
        history = LiveHistory(make_service(broker))
        assert (broker.num_asked, history._polling) == (0, None)
        first, second = history.events(ALICE), history.events(ALICE)
        assert (await read(first))["points"] == [[1.0]]
        assert (await read(first))["points"] == [[1.0], [2.0]]
        assert (await read(second))["points"][0] == [1.0]
        both = [await read(each) for each in (first, second)]
        assert both[0] == both[1]
        assert len(both[0]["points"]) == 2
        assert history.num_streams == 2
        await first.aclose()
        await second.aclose()
        assert (history.num_streams, history._polling) == (0, None)

    asyncio.run(use())


def test_a_broker_that_does_not_answer_is_shown(broker: Broker) -> None:
    async def use() -> None:
        events = LiveHistory(make_service(broker)).events(ALICE)
        await read(events)
        broker.is_down = True
        while (event := await read(events)).get("ready"):
            pass
        assert event == {"ready": False, "reason": "the broker is away"}
        broker.is_down = False
        while not (event := await read(events)).get("ready"):
            pass
        assert len(event["points"]) == 2

    asyncio.run(use())


def test_a_page_that_does_not_read_holds_few_events(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_MAX_UNREAD", 3)

    async def use() -> None:
        history = LiveHistory(make_service(broker))
        events = history.events(ALICE)
        await read(events)
        await read(events)
        await broker.asked_often.wait()
        (mine,) = history._streams
        assert mine.qsize() == 3
        history.close()
        assert [event async for event in events][-1] == b"event: end\ndata: {}\n\n"

    asyncio.run(asyncio.wait_for(use(), HANG_S))


def test_a_key_that_is_removed_ends_the_stream(broker: Broker) -> None:
    async def use() -> None:
        allowed = [True]
        events = LiveHistory(make_service(broker)).events(ALICE, lambda: allowed[0])
        await read(events)
        await read(events)
        allowed.clear()
        allowed.append(False)
        assert [event async for event in events] == [b"event: end\ndata: {}\n\n"]

    asyncio.run(asyncio.wait_for(use(), HANG_S))


def test_the_number_of_streams_is_limited(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_MAX_STREAMS", 1)

    async def use() -> None:
        history = LiveHistory(make_service(broker))
        first = history.events(ALICE)
        await read(first)
        second = [event async for event in history.events(BOB)]
        assert [b"the limit" in event for event in second] == [True]
        await first.aclose()
        assert (await read(history.events(ALICE)))["ready"]

    asyncio.run(asyncio.wait_for(use(), 20))


def test_a_caller_may_have_as_many_streams_as_are_free(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_MAX_STREAMS", 8)

    async def use() -> None:
        history = LiveHistory(make_service(broker))

        async def opened(caller: str) -> tuple[list[Any], str]:
            """Open streams until one is refused; return those that are open, and the reason."""
            streams = []
            while (event := await read(events := history.events(caller)))["ready"]:
                streams.append(events)
            return streams, event["reason"]

        of_alice, reason = await opened(ALICE)
        assert (len(of_alice), reason) == (
            4,
            "4 pages are open for this key or address, which is the limit while 4 are free",
        )
        of_bob, _ = await opened(BOB)
        assert len(of_bob) == 2
        await of_alice[0].aclose()
        assert not (await read(history.events(ALICE)))["ready"]  # she still has more than are free
        assert (await read(of_bob[0]))["ready"]

    asyncio.run(asyncio.wait_for(use(), HANG_S))
