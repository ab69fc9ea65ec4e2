"""A short value that differs when a model computes other vectors."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

_DIGEST_BYTES = 8
_WITHOUT_EFFECT = ("_name_or_path", "_commit_hash", "transformers_version")


def weights_hash(module: nn.Module) -> str:
    """Return a hash of a module's config, if it has one, and of the names, shapes and values of its weights.

    The result does not depend on the device. Hashing takes about a second for a gigabyte, less than loading it.
    """
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    if isinstance(module, PreTrainedModel):
        digest.update(repr(sorted(_settings_of(module).items())).encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(_bytes_of(tensor))
    return digest.hexdigest()


def fingerprint(parts: Iterable[object]) -> str:
    """Return one hash of all parts. A part is a hash, or a configuration whose `repr` is always the same."""
    text = "\n".join(map(repr, parts))
    return hashlib.blake2b(text.encode(), digest_size=_DIGEST_BYTES).hexdigest()


def _settings_of(model: PreTrainedModel) -> dict[str, object]:
    settings = model.config.to_diff_dict()
    return {name: value for name, value in settings.items() if name not in _WITHOUT_EFFECT}


def _bytes_of(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
