"""A port that other machines can use without a key gives one warning, which names the risk and the option."""

from __future__ import annotations

import pytest
from bert_serving.server.broker.ports import is_loopback
from bert_serving.server.settings import Settings
from bert_serving.server.supervisor.exposure import exposures


@pytest.mark.parametrize(
    ("settings", "risks"),
    [
        ({}, []),
        ({"http_port": 8125}, []),
        ({"host": "localhost", "http_port": 8125}, []),
        ({"host": "::1", "http_port": 8125}, []),
        ({"host": "0.0.0.0"}, ["ZeroMQ"]),
        ({"host": "*"}, ["ZeroMQ"]),
        ({"host": "0.0.0.0", "curve_dir": "/keys"}, []),
        ({"host": "0.0.0.0", "http_port": 8125}, ["ZeroMQ", "HTTP"]),
        ({"host": "0.0.0.0", "http_port": 8125, "http_host": "127.0.0.1"}, ["ZeroMQ"]),
        ({"http_port": 8125, "http_host": "0.0.0.0"}, ["HTTP"]),
        ({"http_host": "0.0.0.0"}, []),
        ({"http_port": 8125, "http_host": "0.0.0.0", "api_key": ["secret"]}, []),
        ({"http_port": 8125, "http_host": "0.0.0.0", "api_key_file": "/keys"}, []),
    ],
)
def test_each_unprotected_port_has_a_line(settings: dict[str, object], risks: list[str]) -> None:
    assert [line.split()[0] for line in exposures(Settings(**settings))] == risks


def test_a_line_names_the_risk_and_both_ways_out() -> None:
    zeromq, http = exposures(Settings(host="0.0.0.0", http_port=8125))
    for words in ("0.0.0.0", "5555 and 5556", "can use this server", "-curve_dir", "-host 127.0.0.1"):
        assert words in zeromq
    for words in ("0.0.0.0", "8125", "can use this server", "-api_key_file", "-http_host 127.0.0.1"):
        assert words in http


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.0.1", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("localhost", True),
        ("::ffff:10.0.0.1", False),
        ("10.0.0.1", False),
        ("0.0.0.0", False),
        ("*", False),
        ("unknown", False),
    ],
)
def test_loopback_addresses_are_known_in_all_spellings(address: str, expected: bool) -> None:
    assert is_loopback(address) is expected
