"""What is decided before any process starts: the model's folder, its limits, the workers and their devices."""

from __future__ import annotations

import os
from pathlib import Path

from ..model.demo import DEMO_MODEL
from ..model.errors import ModelError
from ..model.folder import ModelFolder
from ..model.sentence_transformers import read_sentence_transformers
from ..model.spec import ModelSpec
from ..settings import Settings


class StartError(Exception):
    """The server cannot start, or cannot continue; the message is one line for the user who started it."""


def resolve(settings: Settings) -> Settings:
    """Return the settings, with the defaults that depend on the machine and the model filled in.

    A max_seq_len of "NONE" stays as it is, because the server reports this value to clients. Raises StartError.
    """
    try:
        folder = ModelFolder.of(settings)
        max_seq_len = folder.max_seq_len(settings.max_seq_len)
        read_sentence_transformers(folder.path)  # reports errors once; each worker would repeat them
    except ModelError as exc:
        raise StartError(str(exc)) from exc
    gpus = () if settings.cpu else settings.device_map or tuple(range(count_gpus()))
    update = {
        "model_dir": str(folder.path),
        "served_model_name": settings.served_model_name or _model_name(settings.model_dir, folder.path),
        "tuned_model_dir": None if folder.tuned_dir is None else str(folder.tuned_dir),
        "max_seq_len": settings.max_seq_len or max_seq_len,
        "device_map": gpus,
        "num_worker": settings.num_worker or max(1, len(gpus)),
    }
    return settings.model_copy(update=update)


def worker_spec(resolved: Settings, index: int) -> ModelSpec:
    """Return what worker number `index` loads, and on which device."""
    gpus = resolved.device_map
    device = "cpu" if resolved.cpu else f"cuda:{gpus[index % len(gpus)]}" if gpus else "auto"
    # A revision is valid only with a hub name; the resolved folder already contains the files of the revision.
    return ModelSpec.of(resolved.model_copy(update={"revision": None}), device=device)


def max_seq_len_in_force(resolved: Settings) -> int:
    """Return the longest sequence that the resolved settings allow, in tokens. Raises ModelError."""
    return _folder(resolved).max_seq_len(resolved.max_seq_len)


def token_rows(asked: Settings, resolved: Settings) -> int | None:
    """Return the number of rows for each text when the vectors of all tokens are returned as one array.

    With -fixed_embed_length, this number is the model's number of positions. Otherwise, as in bert-as-service, it
    is max_seq_len if the user gave max_seq_len as a number. None: each text gets as many rows as the longest text
    of the request has tokens.
    """
    if asked.fixed_embed_length:
        return _folder(resolved).position_limit
    return asked.max_seq_len if isinstance(asked.max_seq_len, int) else None


def _folder(resolved: Settings) -> ModelFolder:
    assert resolved.model_dir is not None
    return ModelFolder(Path(resolved.model_dir), config_name=resolved.config_name)


def _model_name(asked: str | None, folder: Path) -> str:
    """Return the model's name on the hub, or the name of its folder."""
    if asked is None:
        return DEMO_MODEL
    return folder.resolve().name if Path(asked).expanduser().exists() else asked


def count_gpus() -> int:
    """Return how many NVIDIA GPUs the workers will see, without loading torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([gpu for gpu in visible.split(",") if gpu.strip() not in ("", "-1")])
    gpus = Path("/proc/driver/nvidia/gpus")
    return len(list(gpus.iterdir())) if gpus.is_dir() else 0
