"""What is decided before any process starts: the model's folder, the limits in force, how many workers."""

from __future__ import annotations

import os
from pathlib import Path

from ..model.errors import ModelError
from ..model.folder import (
    DEMO_MODEL,
    check_max_seq_len,
    position_limit,
    read_sentence_transformers,
    refuse_code,
    resolve_model_dir,
    resolve_tuned_model_dir,
)
from ..settings import Settings


class StartError(Exception):
    """The server cannot start, or cannot go on; the message is one line for the person who started it."""


def resolve(settings: Settings) -> Settings:
    """Return the settings with every default filled in that depends on the machine and the model.

    A max_seq_len of "NONE" stays what it is, for that is what clients are told. Raises StartError.
    """
    try:
        tuned_dir = resolve_tuned_model_dir(settings.tuned_model_dir, ckpt_name=settings.ckpt_name)
        folder = resolve_model_dir(
            settings.model_dir,
            revision=settings.revision,
            trust_remote_code=settings.trust_remote_code,
            needs_weights=tuned_dir is None,
            config_name=settings.config_name,
            ckpt_name=settings.ckpt_name,
        )
        if settings.model_module is None and not settings.trust_remote_code:
            refuse_code(folder)
        max_seq_len = check_max_seq_len(folder, settings.max_seq_len, settings.config_name)
        read_sentence_transformers(folder)  # what it cannot mean is better said here than by each worker
    except ModelError as exc:
        raise StartError(str(exc)) from exc
    gpus = () if settings.cpu else settings.device_map or tuple(range(_count_gpus()))
    update = {
        "model_dir": str(folder),
        "served_model_name": settings.served_model_name or _model_name(settings.model_dir, folder),
        "tuned_model_dir": None if tuned_dir is None else str(tuned_dir),
        "max_seq_len": settings.max_seq_len or max_seq_len,
        "device_map": gpus,
        "num_worker": settings.num_worker or max(1, len(gpus)),
    }
    return settings.model_copy(update=update)


def _model_name(asked: str | None, folder: Path) -> str:
    """Return what to call a model: its name on the hub, or that of its folder."""
    if asked is None:
        return DEMO_MODEL
    return folder.resolve().name if Path(asked).expanduser().exists() else asked


def token_rows(asked: Settings, resolved: Settings) -> int | None:
    """Return how many rows a text has where the vectors of all tokens are answered as a rectangle.

    As in bert-as-service: max_seq_len if a number was asked for; else None, as many as the longest text of
    the request has; with -fixed_embed_length as many as the model has positions for.
    """
    assert resolved.model_dir is not None
    if asked.fixed_embed_length:
        return position_limit(Path(resolved.model_dir), resolved.config_name)
    return asked.max_seq_len if isinstance(asked.max_seq_len, int) else None


def _count_gpus() -> int:
    """Return how many NVIDIA GPUs the workers will see, without loading torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([gpu for gpu in visible.split(",") if gpu.strip() not in ("", "-1")])
    gpus = Path("/proc/driver/nvidia/gpus")
    return len(list(gpus.iterdir())) if gpus.is_dir() else 0
