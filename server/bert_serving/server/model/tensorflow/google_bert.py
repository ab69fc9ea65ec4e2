"""Google's BERT checkpoints: their weights, under the names that Transformers uses, as numpy arrays."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ..errors import ModelError
from .tensor_bundle import TensorBundle

Weights: TypeAlias = "dict[str, npt.NDArray[np.float32]]"

_POOLER = ("bert/pooler/dense/kernel", "bert/pooler/dense/bias")
_HEAD = ("output_weights", "output_bias")


class GoogleBert:
    """One checkpoint of Google's BERT, or of a classifier that run_classifier.py trained on it.

    prefix: the path of its files, without `.index`. Raises ModelError if the files cannot be read, or if the model
    is an ALBERT. All arrays are copies, because a loaded model must not change when its file changes.
    """

    def __init__(self, prefix: Path) -> None:
        self._prefix = prefix
        self._bundle = TensorBundle(prefix)
        self._names = set(self._bundle.names)
        if albert := next((name for name in self._bundle.names if "/group_0/" in name), None):
            raise ModelError(
                f"Google's ALBERT checkpoints are not supported, only BERT's; this one has {albert}: {prefix}"
            )

    def encoder(self, shapes: Mapping[str, tuple[int, ...]]) -> Weights:
        """Return the weights of a BertModel, float32.

        shapes: the shape of each weight, by its name in Transformers. Other tensors in the checkpoint are ignored:
        heads, the optimizer's state, layers that are not in `shapes`. The pooler's weights are left out if the
        checkpoint does not have them. Raises ModelError, which names the weight, if any other weight is missing,
        or if a weight has another shape.
        """
        has_pooler = self._names.issuperset(_POOLER)
        wanted = {name: shape for name, shape in shapes.items() if has_pooler or not name.startswith("pooler.")}
        if missing := [google_name(name) for name in wanted if google_name(name) not in self._names]:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise ModelError(f"weights are missing in {self._prefix}: {missing[0]}{more}")
        return {name: self._read(google_name(name), shape) for name, shape in wanted.items()}

    def head(self, hidden_size: int) -> Weights:
        """Return the weights of a classification head: classifier.weight (N, H) and classifier.bias (N,), float32.

        Raises ModelError, which names the weight, if a weight of the head or the pooler is missing, or if a weight
        of the head has another shape.
        """
        if missing := [name for name in _HEAD if name not in self._names]:
            raise ModelError(f"weights of the classification head are missing in {self._prefix}: {missing[0]}")
        if not self._names.issuperset(_POOLER):
            raise ModelError(f"weights are missing in {self._prefix}: {_POOLER[0]}")
        num_labels = (self._bundle.shape("output_bias") or (0,))[0]
        return {
            "classifier.weight": self._read("output_weights", (num_labels, hidden_size)),
            "classifier.bias": self._read("output_bias", (num_labels,)),
        }

    def _read(self, name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
        """Return a weight in Transformers' layout. name: Google's name. shape: the shape in Transformers."""
        is_kernel = name.endswith("/kernel")  # (in, out) in the checkpoint, (out, in) in Transformers
        expected, found = shape[::-1] if is_kernel else shape, self._bundle.shape(name)
        if found != expected:
            raise ModelError(
                f"weights do not fit the config in {self._prefix}: {name} must be {expected}, got {found}"
            )
        values = self._bundle.read(name)
        return np.array(values.T if is_kernel else values, np.float32, order="C")


def google_name(name: str) -> str:
    """Return Google's name of a weight. name: its name in Transformers' BertModel."""
    stem, _, kind = re.sub(r"\blayer\.(\d+)\.", r"layer_\1.", name).rpartition(".")
    if stem.endswith("LayerNorm"):
        stem += {"weight": "/gamma", "bias": "/beta"}[kind]
    elif not stem.endswith("_embeddings"):
        stem += {"weight": "/kernel", "bias": "/bias"}[kind]
    return "bert/" + stem.replace(".", "/")
