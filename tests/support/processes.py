"""Runs commands that should succeed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.waiting import HANG_S


def run(*command: object, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """Run a command; return its standard output. If the command fails, raise an error with all its output."""
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **(env or {})},
        timeout=2 * HANG_S,  # some commands download packages
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def find_program(name: str, where: str) -> str:
    """Return the path of a program; raise AssertionError if it is missing. where: what `make` gets it from."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert found, f"{name} is missing from PATH: `make test` gets it from {where}"
    return found
