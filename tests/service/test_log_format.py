"""With -log_format json, every line of every process is a JSON object. The access log has no text and no key."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.running_server import RunningServer
from tests.support.waiting import HANG_S, wait_until

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
KEY = "secret-of-alice-1"
TEXT = "zanzibar"


@pytest.fixture(scope="module")
def logging_server(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(f"alice {KEY}\n")
    flags = ("-model_dir", tiny, "-cpu", "-api_key_file", keys, "-access_log", "-log_format", "json")
    with RunningServer(*flags, env={"PYTHONWARNINGS": "default"}) as running:
        yield running.wait_ready()


def events(server: RunningServer) -> list[dict[str, Any]]:
    """Return the events so far; fail if a line is not a JSON object. The last line may not be complete."""
    lines = server.log.split("\n")[:-1]
    return [dict(json.loads(line)) for line in lines]


def access(server: RunningServer, request_id: str) -> dict[str, Any]:
    """Wait for the event of a request in the access log, and return it."""

    def found() -> list[dict[str, Any]]:
        return [
            each
            for each in events(server)
            if each["logger"] == "bert_serving.access" and each["request_id"] == request_id
        ]

    wait_until(lambda: bool(found()))
    (event,) = found()
    return event


def test_the_access_log_names_a_request_and_says_what_it_took(logging_server: RunningServer) -> None:
    headers = {
        "Authorization": f"Bearer {KEY}",
        "X-Request-Id": "first",
        "traceparent": f"00-{TRACE_ID}-00f067aa0ba902b7-01",
    }
    url = f"{logging_server.url}/embed?query={TEXT}"
    response = httpx.post(url, json={"inputs": [TEXT, "b"]}, headers=headers, timeout=HANG_S)
    assert (response.status_code, response.headers["x-request-id"]) == (200, "first")
    event = access(logging_server, "first")
    assert event["seconds"] > 0
    assert event["tokens"] == int(response.headers["x-compute-tokens"])
    expected = {
        "level": "INFO",
        "process": "gateway",
        "method": "POST",
        "route": "/embed",
        "status": 200,
        "trace_id": TRACE_ID,
        "key": "alice",
        "texts": 2,
    }
    assert {name: event[name] for name in expected} == expected


def test_a_request_without_a_key_or_a_route_is_logged_without_what_the_caller_wrote(
    logging_server: RunningServer,
) -> None:
    headers = {"X-Request-Id": "no-key"}
    assert httpx.post(f"{logging_server.url}/embed", headers=headers, timeout=HANG_S).status_code == 401
    event = access(logging_server, "no-key")
    assert (event["status"], event["texts"]) == (401, 0)
    assert "key" not in event
    headers = {"X-Request-Id": "no-route"}
    httpx.request("PURGE", f"{logging_server.url}/{TEXT}/{KEY}", headers=headers, timeout=HANG_S)
    event = access(logging_server, "no-route")
    assert (event["method"], event["route"]) == ("_OTHER", "other")


def test_a_request_without_a_sane_id_gets_one(logging_server: RunningServer) -> None:
    response = httpx.get(f"{logging_server.url}/live", headers={"X-Request-Id": "x" * 1000}, timeout=HANG_S)
    request_id = response.headers["x-request-id"]
    assert len(request_id) == 32
    assert access(logging_server, request_id)["route"] == "/live"


def test_every_line_of_every_process_is_json_and_none_has_a_text_or_a_key(logging_server: RunningServer) -> None:
    """The last test of this file: it ends the server."""
    logging_server.signal(signal.SIGTERM)
    logging_server.wait_end()
    found = events(logging_server)
    assert {each["process"] for each in found} == {"server", "gateway", "worker-0"}
    assert found[-1]["message"] == "stopped"
    assert all({"time", "level", "logger", "message"} <= each.keys() for each in found)
    settings = next(each["settings"] for each in found if "settings" in each)
    assert settings["log_format"] == "json"
    for secret in (KEY, TEXT):
        assert secret not in logging_server.log


def test_the_access_log_is_text_by_default(tiny: Path) -> None:
    with RunningServer("-model_dir", tiny, "-cpu", "-access_log") as running:
        running.wait_for("HTTP is ready")
        httpx.get(f"{running.url}/live", headers={"X-Request-Id": "mine"}, timeout=HANG_S)
        running.wait_for("INFO gateway: request method=GET route=/live status=200 seconds=")
        running.wait_for("request_id=mine texts=0 tokens=0")
        httpx.get(f"{running.url}/live", headers={"X-Request-Id": 'mine key="root"'}, timeout=HANG_S)
        running.wait_for(r'request_id="mine key=\"root\"" texts=0 tokens=0')
