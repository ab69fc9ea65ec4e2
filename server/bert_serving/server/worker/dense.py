"""The modules that sentence-transformers applies after the pooling: Dense and Normalize, in float32."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from ..model.errors import ModelError, one_line
from ..model.json_files import JsonObject, read_json
from ..model.sentence_transformers import SentenceTransformersConfig
from .pooling_plan import AfterPooling

_ACTIVATIONS = "torch.nn.modules.activation"
_IDENTITY = "torch.nn.modules.linear.Identity"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


class Normalize(nn.Module):
    """Divides each row by its L2 norm."""

    def forward(self, rows: Tensor) -> Tensor:
        """Return the rows scaled to unit length, (B, D)."""
        return nn.functional.normalize(rows, dim=1)


class Dense(nn.Module):
    """A linear layer and its activation. The attributes have the names of sentence-transformers' weights."""

    def __init__(
        self, in_features: int, out_features: int, *, bias: bool, use_residual: bool, activation: nn.Module
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features, bias=bias)
        self.activation_function = activation
        self.use_residual = use_residual
        if use_residual and in_features != out_features:
            self.residual = nn.Linear(in_features, out_features, bias=False)

    def forward(self, rows: Tensor) -> Tensor:
        """Return (B, out_features) for rows (B, in_features)."""
        if rows.shape[1] != self.linear.in_features:
            raise ModelError(
                f"in_features of Dense must be {rows.shape[1]}, the width of its input, "
                f"got {self.linear.in_features}"
            )
        mapped: Tensor = self.activation_function(self.linear(rows))
        if not self.use_residual:
            return mapped
        return mapped + (self.residual(rows) if hasattr(self, "residual") else rows)


def load_after_pooling(config: SentenceTransformersConfig | None, device: torch.device) -> AfterPooling:
    """Return what a model folder is configured to compute after its pooling, on the device.

    Raises ModelError for files or weights that are missing or do not fit.
    """
    kinds = () if config is None else config.modules_after_pooling
    # The pooling plan does the last Normalize: a request may turn it off, or shorten the vector before it.
    normalizes = bool(kinds) and kinds[-1][0] == "Normalize"
    modules = _load_modules(kinds[:-1] if normalizes else kinds, device)
    width = next((layer.linear.out_features for layer in reversed(modules) if isinstance(layer, Dense)), None)
    return AfterPooling(modules if len(modules) else None, width, normalizes)


def _load_modules(modules: Sequence[tuple[str, Path]], device: torch.device) -> nn.Sequential:
    """Return the modules as one module, which maps pooled rows (B, D) in float32.

    modules: the kind and the folder of each module, in order.
    """
    loaded = nn.Sequential(*(load_dense(folder) if kind == "Dense" else Normalize() for kind, folder in modules))
    return loaded.eval().requires_grad_(False).to(device)


def load_dense(folder: Path) -> Dense:
    """Return the Dense module in the folder, on the CPU. Raises ModelError."""
    config = read_json(folder / "config.json")
    dense = Dense(
        _size(config, "in_features", folder),
        _size(config, "out_features", folder),
        bias=bool(config.get("bias", True)),
        use_residual=bool(config.get("use_residual", False)),
        activation=_activation(config.get("activation_function", f"{_ACTIVATIONS}.Tanh"), folder),
    )
    weights = _read_weights(folder)
    _check_fit(dense.state_dict(), weights, folder)
    dense.load_state_dict(weights)
    return dense


def _size(config: JsonObject, key: str, folder: Path) -> int:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ModelError(f"{key} must be a whole number from 1 in {folder / 'config.json'}, got {value!r}")
    return value


def _activation(dotted: object, folder: Path) -> nn.Module:
    """Return a new activation from torch.nn. The name comes with the model, so it must not cause an import."""
    module, _, name = str(dotted).rpartition(".")
    kind = getattr(nn, name, None)
    is_known = isinstance(kind, type) and issubclass(kind, nn.Module) and kind.__module__ == module
    if is_known and (module == _ACTIVATIONS or dotted == _IDENTITY):
        try:
            return kind()  # type: ignore[no-any-return, misc]  # a subclass of nn.Module, see above
        except TypeError:  # MultiheadAttention is in the same module, and needs arguments
            pass
    raise ModelError(
        f"activation_function must be a class of {_ACTIVATIONS} or {_IDENTITY}, got {dotted!r}: {folder}"
    )


def _read_weights(folder: Path) -> dict[str, Tensor]:
    path = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if path is None:
        raise ModelError(f"Dense has no weights ({' or '.join(_WEIGHTS)}): {folder}")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as exc:  # damaged files make these libraries raise many kinds of exception
        raise ModelError(f"cannot read {path}: {one_line(exc)}") from exc


def _check_fit(expected: dict[str, Tensor], found: dict[str, Tensor], folder: Path) -> None:
    if missing := sorted(expected.keys() - found.keys()):
        raise ModelError(f"weights of Dense are missing in {folder}: {', '.join(missing)}")
    if unknown := sorted(map(str, found.keys() - expected.keys())):
        raise ModelError(f"weights of Dense are not in its config in {folder}: {', '.join(unknown)}")
    for name, weight in expected.items():
        got = tuple(getattr(found[name], "shape", ()))
        if got != tuple(weight.shape):
            raise ModelError(f"{name} of Dense must have shape {tuple(weight.shape)}, got {got}: {folder}")
