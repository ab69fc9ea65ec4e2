"""Weights from a folder into a Transformers model, all of them or an error."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    BertModel,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from ..model.errors import ModelError, one_line
from ..model.folder import checkpoint_prefix, config_path, read_json, unnamed_model_type
from ..model.tensorflow.google_bert import read_google_bert, with_google_head


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where a model lies. weights_dir: where its weights are, if not beside its config; they may be those of
    a model for a task that is built on it. trust_remote_code: the folder's own code may run. config_name,
    ckpt_name: of the config and of a TensorFlow checkpoint, see `config_path` and `checkpoint_prefix`.

    Every method raises ModelError for what cannot be read.
    """

    folder: Path
    weights_dir: Path | None = None
    trust_remote_code: bool = False
    config_name: str | None = None
    ckpt_name: str | None = None

    @property
    def num_layers(self) -> int:
        """Transformer layers of the whole model."""
        config = self._config()
        try:
            return int(config.num_hidden_layers)
        except (AttributeError, TypeError, ValueError) as exc:
            raise ModelError(
                f"the model config in {self.folder} must have num_hidden_layers: {one_line(exc)}"
            ) from exc

    def layers_to_load(self, *, highest: int) -> int:
        """Return how many layers give the hidden states of layer `highest`: those up to it, where that is safe."""
        config = self._config()
        is_known = config.model_type in _NO_LAST_NORM and type(config).__module__.startswith("transformers.")
        if getattr(config, "num_hidden_groups", 1) > 1:
            is_known = False  # ALBERT: which layer has which weights depends on how many layers there are
        return highest + 1 if is_known else self.num_layers

    def load(self, *, device: torch.device, num_layers: int | None = None) -> PreTrainedModel:
        """Return the encoder, in float32 and evaluation mode on the device.

        num_layers: build only so many transformer layers from the bottom; None: all. Without weights for its
        pooler it has none. Raises ModelError that names a weight which is missing or has the wrong shape.
        """
        model, report = self._load(num_layers=num_layers)
        _check_complete(self._weights_dir, report, besides="pooler.")
        if any("pooler." in name for name in _missing(report) + _mismatched(report)):
            model.pooler = None  # what Transformers put in its place is random
        return model.eval().requires_grad_(False).to(device)

    def load_classifier(self, *, device: torch.device, num_labels: int | None = None) -> PreTrainedModel:
        """Return the whole model for sequence classification, encoder and head, as `load` does.

        num_labels: that there must be; None: as many as there are. Raises ModelError as `load`, also for a
        weight of the head or the pooler.
        """
        labels = self._tuned_config().get("id2label")
        count = num_labels if labels is None and self.weights_dir is not None else None
        model, report = self._load(loader=AutoModelForSequenceClassification, labels=labels, num_labels=count)
        _check_complete(self._weights_dir, report)
        found: int = model.config.num_labels
        if num_labels not in (None, found):
            raise ModelError(f"num_labels must be {found}, as in {self._weights_dir}, got {num_labels}")
        return model.eval().requires_grad_(False).to(device)

    def load_masked(self, *, device: torch.device) -> PreTrainedModel:
        """Return the whole model for masked language modelling, encoder and head, as `load` does."""
        model, report = self._load(loader=AutoModelForMaskedLM)
        _check_complete(self._weights_dir, report)
        return model.eval().requires_grad_(False).to(device)

    @property
    def is_classifier(self) -> bool:
        """Whether the folder says that it is a model for sequence classification."""
        names = self._tuned_config().get("architectures") or getattr(self._config(), "architectures", None) or []
        return any(str(name).endswith("ForSequenceClassification") for name in names)

    def _tuned_config(self) -> dict[str, Any]:
        """Return the config beside the weights, where they lie in a folder of their own; empty: there is none."""
        path = None if self.weights_dir is None else self.weights_dir / "config.json"
        return read_json(path) if path is not None and path.is_file() else {}

    @property
    def _weights_dir(self) -> Path:
        return self.weights_dir or self.folder

    def _load(
        self,
        *,
        num_layers: int | None = None,
        loader: Any = AutoModel,
        labels: dict[str, str] | None = None,
        num_labels: int | None = None,
    ) -> tuple[PreTrainedModel, dict[str, object]]:
        """Return the model, and which of its weights were not there or did not fit.

        labels, num_labels: instead of the config's, if given.
        """
        transformers_logging.set_verbosity_error()  # what matters of its warnings is an error here
        transformers_logging.disable_progress_bar()
        config = self._config()
        if num_layers is not None:
            config.num_hidden_layers = num_layers
        if num_labels is not None:
            config.num_labels = num_labels
        if labels is not None:
            config.id2label = {int(i): label for i, label in labels.items()}
            config.label2id = {label: i for i, label in config.id2label.items()}
        try:
            return self._from_pretrained(config, loader)
        except ModelError:
            raise
        except Exception as exc:  # whatever a damaged file makes of the libraries that read it
            raise ModelError(f"cannot load the model in {self._weights_dir}: {one_line(exc)}") from exc

    def _from_pretrained(self, config: PreTrainedConfig, loader: Any) -> tuple[PreTrainedModel, dict[str, object]]:
        options = {"dtype": torch.float32, "ignore_mismatched_sizes": True, "output_loading_info": True}
        if (prefix := checkpoint_prefix(self._weights_dir, self.ckpt_name)) is not None:
            if loader is AutoModelForMaskedLM:
                raise ModelError(f"SPLADE: the head of a TensorFlow checkpoint is not read: {prefix}")
            weights = read_google_bert(prefix, config)
            kind: Any = BertModel
            if loader is AutoModelForSequenceClassification:
                kind, weights = BertForSequenceClassification, with_google_head(weights, prefix, config)
            return kind.from_pretrained(None, config=config, state_dict=weights, **options)  # type: ignore[no-any-return]
        if self.weights_dir is not None and self.trust_remote_code:
            with torch.device("meta"):  # the Auto class alone would look for the code beside the weights
                loader = type(loader.from_config(config, trust_remote_code=True))
        return loader.from_pretrained(  # type: ignore[no-any-return]
            self._weights_dir,
            config=config,
            local_files_only=True,
            trust_remote_code=self.trust_remote_code,
            **options,
        )

    def _config(self) -> PreTrainedConfig:
        model_type = unnamed_model_type(self.folder, self.config_name)
        try:
            if model_type is not None:
                return _read_config(config_path(self.folder, self.config_name), model_type)
            return AutoConfig.from_pretrained(
                self.folder, local_files_only=True, trust_remote_code=self.trust_remote_code
            )
        except ModelError:
            raise
        except Exception as exc:  # whatever a damaged file makes of the libraries that read it
            wants_code = not self.trust_remote_code and "custom code" in str(exc)
            hint = " Pass -trust_remote_code to run it." if wants_code else ""
            raise ModelError(f"cannot read the model config in {self.folder}: {one_line(exc)}{hint}") from exc


# What comes out of these models is what comes out of their top layer. Others pass it through a last norm, so
# that a model cut off at a lower layer would not give that layer's vectors.
_NO_LAST_NORM = {
    *("bert", "roberta", "xlm-roberta", "camembert", "distilbert", "electra", "albert", "mpnet", "nomic_bert"),
    *("deberta", "deberta-v2", "ernie", "convbert", "roc_bert", "squeezebert", "data2vec-text"),
}


def lower_precision(model: PreTrainedModel, dtype: torch.dtype, device: torch.device) -> None:
    """Let a model compute in a smaller dtype: all of it on a GPU, the linear layers alone on a CPU.

    On a CPU the float32 between the products is what keeps every row at cosine >= 0.9999 with the reference
    (tests/model/test_parity.py); all in bfloat16, some rows of short texts fall below.
    """
    if device.type != "cpu":
        model.to(dtype)
        return
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.to(dtype)
            module.register_forward_pre_hook(_cast_input)


def _cast_input(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    assert isinstance(module, torch.nn.Linear)
    return (args[0].to(module.weight.dtype), *args[1:])


def drop_position_embeddings(model: PreTrainedModel) -> None:
    """Take the position embeddings out of a model. Raises ModelError where it has none of its own."""
    found = [module for name, module in model.named_modules() if name.rpartition(".")[2] == "position_embeddings"]
    tables = [module for module in found if isinstance(module, torch.nn.Embedding)]
    if not tables:
        raise ModelError("no_position_embeddings: this model has no table of position embeddings to leave out")
    for table in tables:
        table.weight.data.zero_()


def _read_config(path: Path, model_type: str) -> PreTrainedConfig:
    """Return a config from a file that Transformers would not find. Raises ModelError for what it must say."""
    config = read_json(path)
    for key in ("hidden_size", "num_hidden_layers", "num_attention_heads"):
        if key not in config:  # a default would fit many a model's weights, and give wrong vectors
            raise ModelError(f"{path} must have {key}")
    return AutoConfig.for_model(**config | {"model_type": model_type})


def _check_complete(folder: Path, report: dict[str, object], *, besides: str | None = None) -> None:
    """Raise ModelError for a weight that is missing or does not fit. besides: no matter in names with this.

    The pooler sits above the hidden states that are pooled here; checkpoints often lack it.
    """

    def matters(name: str) -> bool:
        return besides is None or besides not in name

    if missing := sorted(filter(matters, _missing(report))):
        raise ModelError(f"weights are missing in {folder}: {missing[0]}{_and_more(missing)}")
    if mismatched := sorted(filter(matters, _mismatched(report))):
        raise ModelError(f"weights do not fit the config in {folder}: {mismatched[0]}{_and_more(mismatched)}")


def _missing(report: dict[str, object]) -> list[str]:
    return _names(report, "missing_keys")


def _mismatched(report: dict[str, object]) -> list[str]:
    return _names(report, "mismatched_keys")


def _names(report: dict[str, object], key: str) -> list[str]:
    names = report.get(key) or []
    assert isinstance(names, (list, set, tuple))
    return list(map(str, names))


def _and_more(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""
