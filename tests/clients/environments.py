"""The virtual environments of the clients: which packages they contain, and in which folder they are kept."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

#: The packages of each environment. The keys are the names of the environments.
REQUIREMENTS: dict[str, list[str]] = {
    "light": [
        "cohere==7.3.1",
        "huggingface_hub==2.4.0",
        "numpy==2.2.6",  # huggingface_hub returns arrays but does not require NumPy
        "ollama==0.6.3",
        "openai==3.52.0",
    ],
    "frameworks": [
        "chromadb==1.5.9",
        "huggingface-api-haystack==3.1.0",
        "langchain-community==0.4.2",
        "langchain-ollama==1.1.0",
        "langchain-openai==1.7.3",
        "llama-index-embeddings-openai-like==0.4.0",
        "llama-index-embeddings-text-embeddings-inference==0.6.0",
        "llama-index-postprocessor-tei-rerank==0.6.0",
        "pymilvus-model==0.3.4",
    ],
    "litellm": ["litellm==1.106.2"],  # requires an older huggingface_hub than the other clients
    "infinity": ["infinity_client==0.0.78"],  # requires an older httpx than the other clients
}


def python_of(name: str) -> Path:
    """Return the interpreter of an environment; make the environment if it does not exist."""
    requirements = REQUIREMENTS[name]
    digest = hashlib.sha256(" ".join([sys.version, *requirements]).encode()).hexdigest()
    folder = _cache() / f"{name}-{digest[:12]}"
    python, done = folder / "bin" / "python", folder / "complete"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{folder}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another test run may be making this environment
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", folder], check=True)
            install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            subprocess.run([*install, *requirements], check=True)
            done.touch()
    return python


def _cache() -> Path:
    return Path(os.environ.get("BERT_SERVING_CLIENTS_CACHE", "~/.cache/bert-serving-test-clients")).expanduser()
