"""Loads the weights of a model folder into a Transformers model, and fails if they are incomplete."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

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
from ..model.folder import ModelFolder
from ..model.json_files import read_json
from ..model.tensorflow.google_bert import GoogleBert

# Transformers' loading_info: maps a kind of problem, such as missing_keys, to the names of the affected weights.
_Report: TypeAlias = "dict[str, object]"
_Loaded: TypeAlias = "tuple[PreTrainedModel, _Report]"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Loads the model in a folder, with or without a head.

    Every method raises ModelError for a file that cannot be read.
    """

    folder: ModelFolder

    @property
    def num_layers(self) -> int:
        """The number of transformer layers of the whole model."""
        config = self._config()
        try:
            return int(config.num_hidden_layers)
        except (AttributeError, TypeError, ValueError) as exc:
            raise ModelError(
                f"the model config in {self.folder.transformer_dir} must have num_hidden_layers: {one_line(exc)}"
            ) from exc

    def layers_to_load(self, *, highest: int) -> int:
        """Return how many layers to load so that the hidden states of layer `highest` can be computed.

        Known model types need only the layers up to `highest`. For others, all layers are loaded, which is always
        correct.
        """
        config = self._config()
        is_known = config.model_type in _NO_LAST_NORM and type(config).__module__.startswith("transformers.")
        if getattr(config, "num_hidden_groups", 1) > 1:
            is_known = False  # ALBERT: the number of layers decides which weights a layer uses
        return highest + 1 if is_known else self.num_layers

    @property
    def is_classifier(self) -> bool:
        """Whether the config names a model for sequence classification."""
        architectures = self.folder.tuned_config.get("architectures")
        names = architectures or getattr(self._config(), "architectures", None)
        return isinstance(names, list) and any(str(name).endswith("ForSequenceClassification") for name in names)

    def load(self, *, device: torch.device, num_layers: int | None = None) -> PreTrainedModel:
        """Return the encoder on the device, in float32 and evaluation mode.

        num_layers: build only this many transformer layers, counted from the bottom; None: all. The model has no
        pooler if the pooler's weights are missing. Raises ModelError with the name of a weight that is missing or
        has the wrong shape.
        """
        model, report = self._load(AutoModel, num_layers=num_layers)
        # Checkpoints often lack the pooler. It does not change the hidden states, so only CLS_POOLED needs it.
        _check_complete(self.folder.weights_dir, report, ignore="pooler.")
        if any(
            "pooler." in name for name in [*_names(report, "missing_keys"), *_names(report, "mismatched_keys")]
        ):
            model.pooler = None  # Transformers filled it with random weights
        return _placed(model, device)

    def load_classifier(self, *, device: torch.device, num_labels: int | None = None) -> PreTrainedModel:
        """Return the model for sequence classification, with encoder and head.

        The model is on the device, in float32 and evaluation mode. num_labels: the number of labels that the head
        must have; None: any number. Raises ModelError as `load` does, and also if weights of the head or the
        pooler are missing.
        """
        labels = self.folder.tuned_config.get("id2label")
        # If a tuned folder's config has no label names, it does not contain the number of labels either.
        count = num_labels if labels is None and self.folder.tuned_dir is not None else None
        model, report = self._load(AutoModelForSequenceClassification, labels=labels, num_labels=count)
        _check_complete(self.folder.weights_dir, report)
        found: int = model.config.num_labels
        if num_labels not in (None, found):
            raise ModelError(f"num_labels must be {found}, as in {self.folder.weights_dir}, got {num_labels}")
        return _placed(model, device)

    def load_masked(self, *, device: torch.device) -> PreTrainedModel:
        """Return the model for masked language modelling, with encoder and head.

        The model is on the device, in float32 and evaluation mode.
        """
        model, report = self._load(AutoModelForMaskedLM)
        _check_complete(self.folder.weights_dir, report)
        return _placed(model, device)

    # -- inside ----------------------------------------------------------------------------------------

    def _load(
        self, loader: Any, *, num_layers: int | None = None, labels: object = None, num_labels: int | None = None
    ) -> _Loaded:
        """Return the model, and a report of the weights that were missing or did not fit.

        loader: one of Transformers' Auto classes. labels, num_labels: replace the values in the config.
        """
        transformers_logging.set_verbosity_error()  # important problems raise ModelError here instead of a warning
        transformers_logging.disable_progress_bar()
        config = self._config()
        if num_layers is not None:
            config.num_hidden_layers = num_layers
        if num_labels is not None:
            config.num_labels = num_labels
        if isinstance(labels, dict):
            config.id2label = {int(i): label for i, label in labels.items()}
            config.label2id = {label: i for i, label in config.id2label.items()}
        try:
            prefix = self.folder.checkpoint_prefix
            if prefix is not None:
                return _from_google(prefix, config, loader)
            return self._from_pretrained(config, loader)
        except ModelError:
            raise
        except Exception as exc:  # damaged files make the libraries that read them raise many kinds of exception
            raise ModelError(f"cannot load the model in {self.folder.weights_dir}: {one_line(exc)}") from exc

    def _from_pretrained(self, config: PreTrainedConfig, loader: Any) -> _Loaded:
        trust = self.folder.trust_remote_code
        if self.folder.tuned_dir is not None and trust:
            # The code is in the folder of the config; the Auto class would look for it in the weights' folder.
            with torch.device("meta"):
                loader = type(loader.from_config(config, trust_remote_code=True))
        return loader.from_pretrained(  # type: ignore[no-any-return]
            self.folder.weights_dir,
            config=config,
            local_files_only=True,
            trust_remote_code=trust,
            **_HOW_TO_LOAD,
        )

    def _config(self) -> PreTrainedConfig:
        folder = self.folder
        try:
            model_type = folder.unnamed_model_type
            if model_type is not None:
                return _read_config(folder.config_path, model_type)
            return AutoConfig.from_pretrained(
                folder.transformer_dir, local_files_only=True, trust_remote_code=folder.trust_remote_code
            )
        except ModelError:
            raise
        except Exception as exc:  # damaged files, as in _load
            wants_code = not folder.trust_remote_code and "custom code" in str(exc)
            hint = " Pass -trust_remote_code to run it." if wants_code else ""
            raise ModelError(
                f"cannot read the model config in {folder.transformer_dir}: {one_line(exc)}{hint}"
            ) from exc


_HOW_TO_LOAD = {"dtype": torch.float32, "ignore_mismatched_sizes": True, "output_loading_info": True}

# Model types that return the output of their top layer unchanged. If only the layers up to N are loaded, they
# return the hidden states of layer N. Other types would apply their final norm to these hidden states.
_NO_LAST_NORM = {
    "bert",
    "roberta",
    "xlm-roberta",
    "camembert",
    "distilbert",
    "electra",
    "albert",
    "mpnet",
    "nomic_bert",
    "deberta",
    "deberta-v2",
    "ernie",
    "convbert",
    "roc_bert",
    "squeezebert",
    "data2vec-text",
}


def _placed(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """Return the model on the device, in evaluation mode, with weights that no longer depend on the files.

    On the CPU, the loader maps the files into memory. If a mapped file were overwritten, the weights of the
    running model would change, or the system would kill the process (SIGBUS).
    """
    model = model.eval().requires_grad_(False).to(device)
    if device.type == "cpu":
        for tensor in itertools.chain(model.parameters(), model.buffers()):
            tensor.data = tensor.data.clone()
    return model


def drop_position_embeddings(model: PreTrainedModel) -> None:
    """Set a model's table of position embeddings to zero. Raises ModelError if there is no such table."""
    found = [module for name, module in model.named_modules() if name.rpartition(".")[2] == "position_embeddings"]
    tables = [module for module in found if isinstance(module, torch.nn.Embedding)]
    if not tables:
        raise ModelError("no_position_embeddings: this model has no table of position embeddings to leave out")
    for table in tables:
        table.weight.data.zero_()


def _from_google(prefix: Path, config: PreTrainedConfig, loader: Any) -> _Loaded:
    """Return a model with the weights of a Google TensorFlow checkpoint."""
    if loader is AutoModelForMaskedLM:
        raise ModelError(f"SPLADE: the head of a TensorFlow checkpoint is not supported: {prefix}")
    if config.model_type != "bert":
        raise ModelError(
            f"a TensorFlow checkpoint must be of model type bert, the config has {config.model_type}: {prefix}"
        )
    google = GoogleBert(prefix)
    with torch.device("meta"):
        shapes = {name: tuple(weight.shape) for name, weight in BertModel(config).state_dict().items()}
    kind: Any = BertModel
    weights = google.encoder(shapes)
    if loader is AutoModelForSequenceClassification:
        kind = BertForSequenceClassification
        head = google.head(config.hidden_size)
        weights = {f"bert.{name}": weight for name, weight in weights.items()} | head
        num_labels = len(head["classifier.bias"])
        if num_labels != config.num_labels:  # an assignment would also reset the names of the labels
            config.num_labels = num_labels
    tensors = {name: torch.from_numpy(weight) for name, weight in weights.items()}
    return kind.from_pretrained(None, config=config, state_dict=tensors, **_HOW_TO_LOAD)  # type: ignore[no-any-return]


def _read_config(path: Path, model_type: str) -> PreTrainedConfig:
    """Return a config from a file that Transformers would not find. Raises ModelError if a size is missing."""
    config = read_json(path)
    for key in ("hidden_size", "num_hidden_layers", "num_attention_heads"):
        if key not in config:  # Transformers' default may fit the weights and still give wrong vectors
            raise ModelError(f"{path} must have {key}")
    if isinstance(activation := config.get("hidden_act"), str):
        config["hidden_act"] = activation.lower()  # Google's code ignores case
    return AutoConfig.for_model(**config | {"model_type": model_type})


def _check_complete(folder: Path, report: _Report, *, ignore: str | None = None) -> None:
    """Raise ModelError for a weight that is missing or does not fit.

    ignore: skip weights whose name contains this string.
    """
    for key, problem in (
        ("missing_keys", "weights are missing in"),
        ("mismatched_keys", "weights do not fit the config in"),
    ):
        if names := sorted(name for name in _names(report, key) if ignore is None or ignore not in name):
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ModelError(f"{problem} {folder}: {names[0]}{more}")


def _names(report: _Report, key: str) -> list[str]:
    names = report.get(key) or []
    assert isinstance(names, (list, set, tuple))
    return list(map(str, names))
