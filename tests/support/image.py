"""What the Dockerfile says about the image."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

DOCKERFILE = (Path(__file__).parents[2] / "Dockerfile").read_text()


def health_check(http_port: int) -> list[str]:
    """Return the command of the image's health check, for another port and this Python."""
    (command,) = re.findall(r"^HEALTHCHECK.*\\\n +CMD (\[.+\])$", DOCKERFILE, re.M)
    program, *args = json.loads(command)
    assert program == "python"
    return [sys.executable, *(arg.replace("127.0.0.1:8125", f"127.0.0.1:{http_port}") for arg in args)]
