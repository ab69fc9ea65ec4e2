"""bert-serving-client 1.10.0 from PyPI, installed in a separate environment and called by scripts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.waiting import HANG_S


def install_old_client(folder: Path) -> None:
    """Make a virtual environment in the folder, and install only the old client in it."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    install = [python_of(folder), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, "bert-serving-client==1.10.0"], check=True)


def python_of(folder: Path) -> Path:
    """Return the Python interpreter of a virtual environment."""
    return folder / "bin" / "python"


def run_with(python: Path, script: str, ports: dict[str, int], folder: Path, stdin: str | None = None) -> Any:
    """Run a script in `folder`, outside this repository; return the JSON that the script prints.

    The script's arguments are the server's port and port_out, and a timeout for the old client in milliseconds.
    """
    path = folder / "script.py"
    path.write_text(script)
    done = subprocess.run(
        [python, "-I", path, *map(str, (ports["port"], ports["port_out"], HANG_S * 1000))],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=HANG_S,
        cwd=folder,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
