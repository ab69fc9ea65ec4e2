"""The environments of the clients: which packages they contain, and in which folder they are kept."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.kept_folders import kept

#: The packages of each virtual environment. The keys are the names of the environments.
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
        "langchain-text-splitters==1.1.3",
        "llama-index-embeddings-openai-like==0.4.0",
        "llama-index-embeddings-text-embeddings-inference==0.6.0",
        "llama-index-llms-openai-like==0.8.1",
        "llama-index-postprocessor-tei-rerank==0.6.0",
        "pymilvus-model==0.3.4",
    ],
    "agents": [
        "mem0ai==2.2.1",
        "pydantic-ai-slim[openai]==2.68.0",
        "semantic-kernel==1.45.0",
    ],
    "databases": [
        "milvus-lite==3.2.2",
        "openai==3.52.0",
        "pgserver==0.1.4",
        "pgvector==0.5.1",
        "psycopg[binary]==3.3.9",
        "pymilvus==3.0.2",
        "qdrant-client==1.20.0",
    ],
    "litellm": ["litellm==1.106.2"],  # requires an older huggingface_hub than the other clients
    "infinity": ["infinity_client==0.0.78"],  # requires an older httpx than the other clients
}

#: Packages that are imported beside those of this project, from a folder on PYTHONPATH.
FOLDERS: dict[str, list[str]] = {
    "spark": ["py4j==0.10.9.9", "pyspark==4.3.0"],  # 500 MB, and it needs Java 17
}

#: The packages of each environment of Node.
NPM_PACKAGES: dict[str, list[str]] = {
    "npm": [
        "@ai-sdk/openai-compatible@3.0.92",
        "@huggingface/inference@4.13.30",
        "@langchain/core@1.4.0",
        "@langchain/ollama@1.3.0",
        "@langchain/openai@1.6.0",
        "ai@7.0.173",
        "cohere-ai@8.1.0",
        "ollama@0.6.4",
        "openai@7.55.0",
    ],
}


def python_of(name: str) -> Path:
    """Return the interpreter of a virtual environment; make the environment if it does not exist."""
    requirements = REQUIREMENTS[name]

    def make(folder: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        install = [str(folder / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*install, *requirements], check=True)

    return kept(name, [sys.version, *requirements], make) / "bin" / "python"


def folder_of(name: str) -> Path:
    """Return a folder with packages for PYTHONPATH; make it if it does not exist."""
    packages = FOLDERS[name]

    def make(folder: Path) -> None:
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*install, "--target", folder, *packages], check=True)

    return kept(name, [sys.version, *packages], make)


def npm_folder_of(name: str) -> Path:
    """Return a folder that has the packages of an environment in node_modules; make it if it does not exist."""
    packages = NPM_PACKAGES[name]

    def make(folder: Path) -> None:
        folder.mkdir()
        install = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix"]
        subprocess.run([*install, str(folder), *packages], check=True)

    return kept(name, packages, make)
