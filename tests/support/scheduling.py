"""A scheduler for pytest-xdist, which is imported only where pytest-xdist is used."""

from __future__ import annotations

from pathlib import PurePosixPath

from xdist.scheduler import LoadScopeScheduling

from tests.support.distribution import SERVERS


class SharedServersScheduling(LoadScopeScheduling):
    """Assigns all tests that use the same servers to one process together, and every other test alone."""

    def _split_scope(self, nodeid: str) -> str:
        return SERVERS.get(PurePosixPath(nodeid.partition("::")[0]).stem, nodeid)
