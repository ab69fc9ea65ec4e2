"""bert-serving-client 1.10.0 as PyPI has it, driven by scripts in an environment of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def install_old_client(folder: Path) -> Path:
    """Make an environment with nothing but the old client; return its Python."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, "bert-serving-client==1.10.0"], check=True)
    return python


def run_with(python: Path, script: str, ports: dict[str, int], folder: Path, stdin: str | None = None) -> Any:
    """Run a script on a server's ports, far from this repository; return the JSON that it prints."""
    path = folder / "script.py"
    path.write_text(script)
    done = subprocess.run(
        [python, "-I", path, str(ports["port"]), str(ports["port_out"])],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=folder,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
