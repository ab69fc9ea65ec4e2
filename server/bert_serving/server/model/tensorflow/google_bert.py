"""Google's BERT checkpoints, whose weights are named as in its TensorFlow code, as weights of Transformers."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from transformers import BertModel, PreTrainedConfig

from ..errors import ModelError
from .tensor_bundle import TensorBundle


def read_google_bert(prefix: Path, config: PreTrainedConfig) -> dict[str, torch.Tensor]:
    """Return the weights of a BertModel of this config, by Transformers' names.

    prefix: the checkpoint's path, without `.index`. What else is in it is left alone: heads, the optimizer's
    state, layers above the config's. Raises ModelError that names a weight which is missing or has the wrong
    shape; the pooler may be missing.
    """
    if config.model_type != "bert":
        raise ModelError(
            f"a TensorFlow checkpoint must be of model type bert, the config is of {config.model_type}: {prefix}"
        )
    bundle = TensorBundle(prefix)
    if albert := next((name for name in bundle.names if "/group_0/" in name), None):
        raise ModelError(f"Google's ALBERT checkpoints are not read, only BERT's; it has {albert}: {prefix}")
    with torch.device("meta"):
        shapes = {name: tuple(weight.shape) for name, weight in BertModel(config).state_dict().items()}
    found = set(bundle.names)
    has_pooler = {"bert/pooler/dense/kernel", "bert/pooler/dense/bias"} <= found
    wanted = {name: shape for name, shape in shapes.items() if has_pooler or not name.startswith("pooler.")}
    if missing := [google_name(name) for name in wanted if google_name(name) not in found]:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ModelError(f"weights are missing in {prefix}: {missing[0]}{more}")
    return {name: _read(bundle, prefix, google_name(name), shape) for name, shape in wanted.items()}


def with_google_head(
    weights: dict[str, torch.Tensor], prefix: Path, config: PreTrainedConfig
) -> dict[str, torch.Tensor]:
    """Return the weights of a BertForSequenceClassification: those of its BertModel, and run_classifier.py's head.

    The config is told how many labels there are. Raises ModelError that names a weight which is missing or has
    the wrong shape.
    """
    bundle = TensorBundle(prefix)
    if missing := [name for name in ("output_weights", "output_bias") if name not in bundle.names]:
        raise ModelError(f"weights of the classification head are missing in {prefix}: {missing[0]}")
    if not any(name.startswith("pooler.") for name in weights):
        raise ModelError(f"weights are missing in {prefix}: bert/pooler/dense/kernel")
    num_labels = (bundle.shape("output_bias") or (0,))[0]
    if num_labels != config.num_labels:
        config.num_labels = num_labels
    head = {
        "classifier.weight": _read(bundle, prefix, "output_weights", (num_labels, config.hidden_size)),
        "classifier.bias": _read(bundle, prefix, "output_bias", (num_labels,)),
    }
    return {f"bert.{name}": weight for name, weight in weights.items()} | head


def google_name(name: str) -> str:
    """Return what Google's modeling.py calls a weight of BertModel."""
    stem, _, kind = re.sub(r"\blayer\.(\d+)\.", r"layer_\1.", name).rpartition(".")
    if stem.endswith("LayerNorm"):
        stem += {"weight": "/gamma", "bias": "/beta"}[kind]
    elif not stem.endswith("_embeddings"):
        stem += {"weight": "/kernel", "bias": "/bias"}[kind]
    return "bert/" + stem.replace(".", "/")


def _read(bundle: TensorBundle, prefix: Path, googles: str, shape: tuple[int, ...]) -> torch.Tensor:
    is_kernel = googles.endswith("/kernel")  # (in, out), where torch has (out, in)
    expected = shape[::-1] if is_kernel else shape
    if bundle.shape(googles) != expected:
        raise ModelError(
            f"weights do not fit the config in {prefix}: {googles} must be {expected}, got {bundle.shape(googles)}"
        )
    values = bundle.read(googles)
    # A copy: nobody should be able to change a model that is in use by writing to its file.
    return torch.from_numpy(np.array(values.T if is_kernel else values, np.float32, order="C"))
