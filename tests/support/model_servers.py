"""A running server for each kind of model, started together."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.support.running_server import RunningServer
from tests.support.tiny_models import make_classifier, make_masked
from tests.support.waiting import HANG_S

PROMPTS = {"query": "query: ", "passage": "a passage: "}
LABELS = ("bad", "so-so", "good")


@dataclass(frozen=True)
class Served:
    """A server, the folder of its model, and an HTTP client that sends an API key. running: None: it is in Ray."""

    running: RunningServer | None
    folder: Path
    http: httpx.Client


@dataclass(frozen=True)
class ModelServers:
    """Servers that compute in float32, one for each kind of model.

    prompted: the demo model with PROMPTS. This server requires an API key, has two gateway processes, and accepts
        messages of at most 1 MiB.
    reranker: a classifier with one label.
    classifier: a classifier with LABELS.
    sparse: a model with SPLADE pooling.
    """

    prompted: Served
    reranker: Served
    classifier: Served
    sparse: Served


@contextmanager
def running_model_servers(base: Path, demo_model: Path) -> Iterator[ModelServers]:
    """Write each model to a folder in `base`, and start a server for each model."""
    folders = model_folders(base, demo_model)
    args: dict[str, list[object]] = {
        "prompted": [
            *("-api_key", "one", "two", "-http_workers", 2, "-max_message_mb", 1),
            "-cors",
            "https://a.org",
        ],
        "sparse": ["-pooling_strategy", "SPLADE"],
    }
    with ExitStack() as stack:
        started = {
            name: stack.enter_context(
                RunningServer("-model_dir", folder, "-dtype", "float32", *args.get(name, []))
            )
            for name, folder in folders.items()
        }
        headers = {"Authorization": "Bearer one"}
        yield ModelServers(
            **{
                name: Served(
                    running.wait_ready(),
                    folders[name],
                    stack.enter_context(httpx.Client(base_url=running.url, timeout=HANG_S, headers=headers)),
                )
                for name, running in started.items()
            }
        )


def model_folders(base: Path, demo_model: Path) -> dict[str, Path]:
    """Write each model to a folder in `base`; return the folders by the names of ModelServers."""
    names = dict(enumerate(LABELS))
    ids = {label: i for i, label in names.items()}
    return {
        "prompted": with_prompts(base / "prompted", demo_model),
        "reranker": make_classifier(base / "reranker", "bert", num_labels=1),
        "classifier": make_classifier(base / "classifier", "bert", id2label=names, label2id=ids),
        "sparse": make_masked(base / "sparse", "bert"),
    }


def with_prompts(folder: Path, model: Path) -> Path:
    """Make a folder with links to a model's files and with a new configuration of PROMPTS; return the folder."""
    folder.mkdir()
    for path in model.iterdir():
        (folder / path.name).symlink_to(path)
    config = folder / "config_sentence_transformers.json"
    config.unlink()
    config.write_text(json.dumps({"prompts": PROMPTS}))
    return folder
