"""Makes students, before they are trained: from layers of the teacher, or from a smaller model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize
from torch import nn

from .agreement import Vectors, pairwise_cosines, rank_correlation
from .errors import TrainError

_SAME = 1e-4  # the largest difference of vectors that reading a folder again may make


def opened(model: str, device: str, max_seq_len: int | None) -> SentenceTransformer:
    """Return a model in float32. model: folder or name. Raises TrainError."""
    try:
        found = SentenceTransformer(
            model, device=None if device == "auto" else device, model_kwargs={"dtype": torch.float32}
        )
    except (OSError, ValueError, RuntimeError, ImportError) as exc:
        raise TrainError(f"{model}: {' '.join(str(exc).split())}") from exc
    if max_seq_len is not None:
        found.max_seq_length = max_seq_len
    return found


class LayeredModel:
    """A model whose layers can be left out. Raises TrainError if its layers are not found."""

    def __init__(self, model: SentenceTransformer) -> None:
        self.model = model
        self._transformer: Any = model[0].auto_model
        self._layers = self._all_layers()

    @property
    def num_layers(self) -> int:
        """The number of layers of the whole model."""
        return len(self._layers)

    def reduced(self, keep: Sequence[int]) -> SentenceTransformer:
        """Return a copy with these layers only, numbered from 0."""
        self._use(range(self.num_layers))
        copied = LayeredModel(deepcopy(self.model))
        copied._use(keep)
        config = copied._transformer.config
        config.num_hidden_layers = len(keep)
        if getattr(config, "layer_types", None):
            config.layer_types = [config.layer_types[i] for i in keep]
        return copied.model

    def chosen_layers(
        self, num_kept: int, texts: Sequence[str], wanted: Vectors, say: Callable[[str], None]
    ) -> list[int]:
        """Return the layers to keep: again and again, the layer is left out without which agreement is best.

        Agreement is Spearman's correlation of the texts' pairwise cosines with those of `wanted`, the teacher's
        vectors of the same texts; nothing is trained for it.
        """
        cosines = pairwise_cosines(wanted)
        keep = list(range(self.num_layers))
        while len(keep) > num_kept:
            without = [[each for each in keep if each != layer] for layer in keep]
            scores = [self._agreement(some, texts, cosines) for some in without]
            keep = without[int(np.nanargmax(scores))]
            say(f"with the layers {_listed(keep)}: Spearman's correlation {max(scores):.3f}, before training")
        self._use(range(self.num_layers))
        return keep

    def _agreement(self, keep: Sequence[int], texts: Sequence[str], cosines: Vectors) -> float:
        self._use(keep)
        vectors = self.model.encode(list(texts), show_progress_bar=False)
        found = rank_correlation(pairwise_cosines(vectors), cosines)
        return -1.0 if np.isnan(found) else found

    def _all_layers(self) -> list[nn.Module]:
        self._owner, self._name = _find_layers(self._transformer)
        return list(getattr(self._owner, self._name))

    def _use(self, keep: Sequence[int]) -> None:
        setattr(self._owner, self._name, nn.ModuleList(self._layers[i] for i in keep))


def _find_layers(transformer: Any) -> tuple[nn.Module, str]:
    """Return the module that has the list of layers, and the list's name in it."""
    config = transformer.config
    for owner in transformer.modules():
        for name, part in owner.named_children():
            if isinstance(part, nn.ModuleList) and len(part) == config.num_hidden_layers:
                return owner, name
    raise TrainError(
        f"no list of {config.num_hidden_layers} layers in a {config.model_type} model: give a smaller -student"
    )


def checked_keep(keep: Sequence[int], num_layers: int) -> list[int]:
    """Return the layers. Raises TrainError if the model does not have them."""
    if keep and keep[-1] >= num_layers:
        raise TrainError(f"keep: the teacher has the layers 0 to {num_layers - 1}, got {keep[-1]}")
    return list(keep)


def with_width(student: SentenceTransformer, teacher: Vectors) -> SentenceTransformer:
    """Return the student with vectors of the teacher's width, and of norm 1 if the teacher's have it."""
    width = int(student.encode("a", show_progress_bar=False).shape[-1])
    has_norm = np.allclose(np.linalg.norm(teacher[:100].astype(np.float32), axis=1), 1, atol=1e-2)
    if isinstance(student[-1], Normalize) and (width != teacher.shape[1] or not has_norm):
        student.pop(len(student) - 1)
    if width != teacher.shape[1]:
        dense = Dense(width, teacher.shape[1], activation_function=nn.Identity())
        student.append(dense.to(student.device))
    if has_norm and not isinstance(student[-1], Normalize):
        student.append(Normalize())
    return student


def save(student: SentenceTransformer, folder: Path) -> None:
    """Write a folder that sentence-transformers and this server load.

    Raises TrainError if the folder gives other vectors.
    """
    student.save_pretrained(str(folder), create_model_card=False)
    again = SentenceTransformer(str(folder), device=str(student.device), model_kwargs={"dtype": torch.float32})
    probe = ["a", "some words of a probe"]
    before, after = (model.eval().encode(probe, show_progress_bar=False) for model in (student, again))
    if not np.allclose(before, after, atol=_SAME):
        raise TrainError(
            f"{folder} gives other vectors than the model that was written to it: this kind of model cannot be "
            "written; give another -student"
        )


def _listed(layers: Sequence[int]) -> str:
    return ", ".join(map(str, layers))
