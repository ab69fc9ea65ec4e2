"""What a server sets up for its process before it starts."""

from __future__ import annotations

import logging
import resource

import pytest
from bert_serving.server.supervisor import serve


def test_as_many_files_may_be_open_as_the_system_allows(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[tuple[int, tuple[int, int]]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 524_288))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limits: asked.append((kind, limits)))
    with caplog.at_level(logging.DEBUG):
        serve._allow_many_files()
    assert asked == [(resource.RLIMIT_NOFILE, (524_288, 524_288))]
    assert caplog.messages == ["limit for open files: 524288, it was 1024"]


@pytest.mark.parametrize("error", [ValueError("not allowed"), OSError("not allowed")])
def test_a_system_that_does_not_allow_more_files_does_not_stop_the_server(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(*_: object) -> None:
        raise error

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    monkeypatch.setattr(resource, "setrlimit", refuse)
    serve._allow_many_files()
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == before
