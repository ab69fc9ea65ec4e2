"""A model's files on this machine: which files exist, and what the configuration files contain.

This module does not import torch: the server process uses it before any worker exists.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from .code_references import code_references
from .demo import find_demo_model
from .errors import ModelError
from .hub import download, looks_like_hub_name
from .json_files import JsonObject, read_json, read_json_if_present, whole_number
from .sentence_transformers import SentenceTransformersConfig, read_sentence_transformers, transformer_path
from .spec import ModelOptions

_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_GOOGLE_CHECKPOINT = "bert_model.ckpt"
_CONFIGS = ("config.json", "bert_config.json")
_TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "sentencepiece.bpe.model", "spiece.model")
_DEFAULT_POSITIONS = 512

# In these models, position ids start after the padding id, so the first position embeddings are never used.
_POSITIONS_AFTER_PADDING = (
    "roberta",
    "xlm-roberta",
    "xlm-roberta-xl",
    "camembert",
    "mpnet",
    "roberta-prelayernorm",
    "data2vec-text",
    "xmod",
    "ibert",
    "longformer",
)


@dataclass(frozen=True)
class ModelFolder:
    """A model's folder and what its files contain. Every property and method may raise ModelError.

    path: the folder. tuned_dir: a folder whose weights replace the model's; None: the model's own weights.
    config_name, ckpt_name, trust_remote_code: the options with these names.
    """

    path: Path
    tuned_dir: Path | None = None
    config_name: str | None = None
    ckpt_name: str | None = None
    trust_remote_code: bool = False

    @classmethod
    def of(cls, options: ModelOptions) -> ModelFolder:
        """Return the folder that the options name, after a check that it is complete.

        A model with a hub name is downloaded, or taken from the hub's cache. The network is not used for a folder
        on disk.
        Raises ModelError if something is missing, or if the model needs code that must not run.
        """
        tuned_dir = _tuned_dir(options)
        folder = cls(
            _model_dir(options), tuned_dir, options.config_name, options.ckpt_name, options.trust_remote_code
        )
        folder.check()
        if options.model_module is None and not options.trust_remote_code:
            folder.refuse_code()
        return folder

    def check(self) -> None:
        """Raise ModelError if config, weights or tokenizer are missing."""
        if not self.path.is_dir():
            raise ModelError(f"model_dir must be a folder, got a file: {self.path}")
        if not self.config_path.is_file():
            if (self.transformer_dir / "albert_config.json").is_file():
                raise ModelError(f"Google's ALBERT checkpoints are not supported, only BERT's: {self.path}")
            names = " or ".join(_CONFIGS) if self.config_name is None else self.config_name
            raise ModelError(f"model_dir has no {names}: {self.path}")
        if self.tuned_dir is None:
            _check_weights(self.transformer_dir, "model_dir", self.ckpt_name)
        if not any((self.transformer_dir / name).is_file() for name in _TOKENIZERS):
            raise ModelError(f"model_dir has no tokenizer (tokenizer.json or vocab.txt): {self.path}")

    def refuse_code(self) -> None:
        """Raise ModelError if Python code in the folder defines the model.

        Without this code, the vectors would be wrong.
        """
        references = code_references(self.transformer_dir)
        if code := next((reference for reference in references if "--" not in reference), None):
            raise ModelError(
                f"the model has its own Python code ({code}), which runs only with -trust_remote_code: {self.path}"
            )

    # -- files -----------------------------------------------------------------------------------------

    @cached_property
    def transformer_dir(self) -> Path:
        """The folder with config and tokenizer: `path`, or the folder of the Transformer module in `path`."""
        return self.path / transformer_path(self.path)

    @property
    def weights_dir(self) -> Path:
        """The folder of the transformer's weights."""
        return self.tuned_dir or self.transformer_dir

    @property
    def config_path(self) -> Path:
        """The path of the config: config_name if given, else config.json, else Google's bert_config.json."""
        names = _CONFIGS if self.config_name is None else (self.config_name,)
        paths = [self.transformer_dir / name for name in names]
        return next((path for path in paths if path.is_file()), paths[0])

    @property
    def unnamed_model_type(self) -> str | None:
        """The model type to load, or None if Transformers finds the config, with its model type, by itself.

        Google's configs do not contain the model type; then it is "bert".
        """
        path = self.config_path
        is_found = path == self.transformer_dir / _CONFIGS[0]
        return None if is_found else str(read_json(path).get("model_type", "bert"))

    @property
    def checkpoint_prefix(self) -> Path | None:
        """The path, without `.index`, of the TensorFlow checkpoint to read; None: read Transformers' weights."""
        return _checkpoint_prefix(self.weights_dir, self.ckpt_name)

    @property
    def tuned_config(self) -> JsonObject:
        """The config in the folder of the tuned weights; empty if there is none."""
        return {} if self.tuned_dir is None else read_json_if_present(self.tuned_dir / _CONFIGS[0])

    @cached_property
    def sentence_transformers(self) -> SentenceTransformersConfig | None:
        """The folder's sentence-transformers configuration; None if it has none."""
        return read_sentence_transformers(self.path)

    # -- lengths ---------------------------------------------------------------------------------------

    @property
    def position_limit(self) -> int:
        """The longest sequence, in tokens, for which the model has position embeddings."""
        path = self.config_path
        limit = whole_number(read_json(path), "max_position_embeddings", path)
        return (limit or _DEFAULT_POSITIONS) - self.first_position

    @property
    def first_position(self) -> int:
        """The position id of the first token: 0, or pad_token_id + 1 for the types in _POSITIONS_AFTER_PADDING."""
        path = self.config_path
        config = read_json(path)
        if config.get("model_type") not in _POSITIONS_AFTER_PADDING:
            return 0
        padding = whole_number(config, "pad_token_id", path)
        return (1 if padding is None else padding) + 1  # 1 is the default pad_token_id of all these models

    @property
    def default_max_seq_len(self) -> int:
        """The longest sequence that the model is configured for, in tokens, special tokens included."""
        limits = [self.position_limit]
        if self.sentence_transformers is not None and self.sentence_transformers.max_seq_len:
            limits.append(self.sentence_transformers.max_seq_len)
        path = self.transformer_dir / "tokenizer_config.json"
        # Transformers writes 1e30 for a tokenizer without a limit.
        limits.append(whole_number(read_json_if_present(path), "model_max_length", path) or limits[0])
        return min(limits)

    def max_seq_len(self, asked: int | str | None) -> int:
        """Return the longest sequence in force, in tokens. Raises ModelError if it is out of range for the model.

        asked: the option max_seq_len. None: the model's default. "NONE": the model's number of positions.
        """
        if asked is None:
            return self.default_max_seq_len
        limit = self.position_limit
        if isinstance(asked, str):
            return limit
        if not 3 <= asked <= limit:
            raise ModelError(f"max_seq_len must be in 3..{limit} for this model, got {asked}")
        return asked


def _model_dir(options: ModelOptions) -> Path:
    """Return the local folder of the model; if no model is named, the folder of the demo model."""
    name = options.model_dir
    if name is None:
        if options.revision is not None:
            raise ModelError("revision needs a hub name as model_dir; model_dir is not given")
        return find_demo_model()
    try:
        name.encode()
    except UnicodeEncodeError as exc:
        raise ModelError(f"model_dir must be valid text, got {name!r}") from exc
    folder = Path(name).expanduser()
    if folder.exists():
        if options.revision is not None:
            raise ModelError("revision needs a hub name as model_dir; model_dir is a folder")
        return folder
    if not looks_like_hub_name(name):
        raise ModelError(f"model_dir: no such folder: {name}")
    return download(name, options.revision, with_code=options.trust_remote_code)


def _tuned_dir(options: ModelOptions) -> Path | None:
    """Return the folder with the fine-tuned weights, or None if no folder is named."""
    if options.tuned_model_dir is None:
        return None
    folder = Path(options.tuned_model_dir).expanduser()
    if not folder.is_dir():
        found = "must be a folder, got a file" if folder.exists() else "no such folder"
        raise ModelError(f"tuned_model_dir: {found}: {options.tuned_model_dir}")
    weights_dir = folder / transformer_path(folder)
    _check_weights(weights_dir, "tuned_model_dir", options.ckpt_name)
    return weights_dir


def _check_weights(folder: Path, option: str, ckpt_name: str | None) -> None:
    """Raise ModelError if the folder has no weights. option: the name of the option that names the folder."""
    prefix = _checkpoint_prefix(folder, ckpt_name)
    if prefix is None or Path(f"{prefix}.index").is_file():
        return
    what = f"{ckpt_name}.index"
    if ckpt_name is None:
        what = f"weights (model.safetensors, pytorch_model.bin or {_GOOGLE_CHECKPOINT}.index)"
    others = sorted(path.stem for path in folder.glob("*.index"))
    hint = f"; -ckpt_name may be {' or '.join(others)}" if others else ""
    raise ModelError(f"{option} has no {what}: {folder}{hint}")


def _checkpoint_prefix(weights_dir: Path, ckpt_name: str | None) -> Path | None:
    if ckpt_name is None and any((weights_dir / name).is_file() for name in _WEIGHTS):
        return None
    return weights_dir / (ckpt_name or _GOOGLE_CHECKPOINT)
