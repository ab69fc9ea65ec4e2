"""The server that the attacks in this folder share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.hostile.neighbours import SERVER_FLAGS
from tests.hostile.target import Target
from tests.support.running_server import RunningServer


@pytest.fixture(scope="session")
def target() -> Iterator[Target]:
    """A server with little memory, which no attack may end."""
    with RunningServer(*SERVER_FLAGS) as server:
        yield Target.of(server.wait_ready())
