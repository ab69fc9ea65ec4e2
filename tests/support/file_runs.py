"""Waits for a run of bert-serving-encode in another process."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any


def wait_for_rows(parts: Path, num_rows: int, process: subprocess.Popen[Any]) -> None:
    """Wait until the parts of a running output have so many rows."""
    deadline = time.monotonic() + 300
    manifest = parts / "manifest.json"
    while not (manifest.exists() and json.loads(manifest.read_text())["rows"] >= num_rows):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
