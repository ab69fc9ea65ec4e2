"""The configuration that sentence-transformers writes into a model folder: modules.json and related files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .errors import ModelError
from .json_files import JsonObject, read_json, read_json_if_present, read_json_list, whole_number

_TRANSFORMERS = ("Transformer", "MLMTransformer")

# The boolean keys in older folders. sentence-transformers concatenates the vectors of the poolings in this order.
_OLD_POOLING_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclass(frozen=True, slots=True)
class SentenceTransformersConfig:
    """The sentence-transformers configuration of a folder.

    pooling_modes: names as in sentence-transformers' Pooling, concatenated in this order.
    modules_after_pooling: ("Dense" or "Normalize", its folder) for each module after the pooling, in this order.
    max_seq_len: the longest sequence in tokens; None: not configured.
    include_prompt: whether the pooling includes the tokens of a prompt.
    splade_activation: "relu" or "log1p_relu", for a sparse model.
    """

    transformer_dir: Path
    pooling_modes: tuple[str, ...]
    modules_after_pooling: tuple[tuple[str, Path], ...]
    max_seq_len: int | None
    do_lower_case: bool
    prompts: dict[str, str]
    default_prompt_name: str | None
    include_prompt: bool
    splade_activation: str = "relu"

    @property
    def default_prompt(self) -> str:
        """The prompt that precedes every text by default; empty: no prompt."""
        return self.prompts.get(self.default_prompt_name or "", "")


def read_sentence_transformers(folder: Path) -> SentenceTransformersConfig | None:
    """Return the folder's sentence-transformers configuration, or None if it has no modules.json.

    Raises ModelError for a module that is not supported: without it, the vectors would be wrong.
    """
    modules = read_modules(folder)
    if modules is None:
        return None
    kinds = [kind for kind, _ in modules]
    is_sparse = len(kinds) == 2 and kinds[0] in _TRANSFORMERS and kinds[1] == "SpladePooling"
    if not is_sparse and (kinds[:2] != ["Transformer", "Pooling"] or not {*kinds[2:]} <= {"Dense", "Normalize"}):
        raise ModelError(
            "modules.json must list Transformer, Pooling, and then only Dense and Normalize, or SpladePooling, "
            f"got {', '.join(kinds)}: {folder}"
        )
    head = tuple((kind, _checked_module(folder / path)) for kind, path in modules[2:])
    pooling = read_json(folder / modules[1][1] / "config.json")
    prompts, default_prompt_name = _prompts(folder)
    transformer_dir = folder / modules[0][1]
    options_file = transformer_dir / "sentence_bert_config.json"
    options = read_json_if_present(options_file)
    modes = _splade_mode(pooling, folder) if is_sparse else _pooling_modes(pooling, folder)
    return SentenceTransformersConfig(
        transformer_dir=transformer_dir,
        pooling_modes=modes,
        modules_after_pooling=head,
        max_seq_len=whole_number(options, "max_seq_length", options_file),
        do_lower_case=bool(options.get("do_lower_case", False)),
        prompts=prompts,
        default_prompt_name=default_prompt_name,
        include_prompt=bool(pooling.get("include_prompt", True)),
        splade_activation=str(pooling.get("activation_function", "relu")),
    )


def read_modules(folder: Path) -> list[tuple[str, str]] | None:
    """Return (kind, path) of each entry of modules.json; None: there is no such file. Raises ModelError.

    The kind is the name of a class of sentence-transformers. For a class from the model's own code, the kind
    includes the name of the Python module.
    """
    path = folder / "modules.json"
    if not path.is_file():
        return None
    found = []
    for entry in read_json_list(path):
        if not isinstance(entry, dict) or not entry.keys() >= {"type", "path"}:
            raise ModelError(f"every entry of {path} must have a type and a path")
        found.append((_kind(str(entry["type"])), str(entry["path"])))
    return found


def transformer_path(folder: Path) -> str:
    """Return the path of the Transformer module in the folder, or "" if the module is in the folder itself."""
    return next((path for kind, path in read_modules(folder) or [] if kind in _TRANSFORMERS), "")


def weight_paths(folder: Path) -> list[str]:
    """Return the paths, within the folder, of all modules that have weights."""
    return [transformer_path(folder), *(path for kind, path in read_modules(folder) or [] if kind == "Dense")]


def _kind(dotted: str) -> str:
    return dotted.rpartition(".")[2] if dotted.startswith("sentence_transformers.") else dotted


def _pooling_modes(config: JsonObject, folder: Path) -> tuple[str, ...]:
    """Return the names of the poolings. Raises ModelError if a pooling is not supported."""
    mode = config.get("pooling_mode")
    if mode is None:
        return tuple(name for key, name in _OLD_POOLING_KEYS.items() if config.get(key)) or ("mean",)
    modes = tuple(map(str, mode)) if isinstance(mode, list) else (str(mode),)
    if unknown := [name for name in modes if name not in _OLD_POOLING_KEYS.values()]:
        raise ModelError(f"pooling mode {unknown[0]!r} is not supported: {folder}")
    return modes


def _splade_mode(config: JsonObject, folder: Path) -> tuple[str, ...]:
    """Return the name of a sparse pooling. Raises ModelError if the pooling is not supported."""
    if (how := config.get("pooling_strategy", "max")) != "max":
        raise ModelError(f"SpladePooling must have pooling_strategy 'max', got {how!r}: {folder}")
    return ("splade",)


def _checked_module(module_dir: Path) -> Path:
    """Return the folder of a module after the pooling. Raises ModelError unless it works on pooled vectors."""
    path = module_dir / "config.json"
    config = read_json_if_present(path)
    for key in ("module_input_name", "module_output_name"):
        if config.get(key) not in (None, "sentence_embedding"):
            raise ModelError(f"{key} must be 'sentence_embedding' in {path}, got {config[key]!r}")
    return module_dir


def _prompts(folder: Path) -> tuple[dict[str, str], str | None]:
    """Return the prompts by name, and the name of the default prompt."""
    path = folder / "config_sentence_transformers.json"
    config = read_json_if_present(path)
    prompts = config.get("prompts") or {}
    if not isinstance(prompts, dict):
        raise ModelError(f"prompts must be a JSON dict in {path}, got {type(prompts).__name__}")
    default = config.get("default_prompt_name")
    return {str(name): str(prompt or "") for name, prompt in prompts.items()}, None if default is None else str(
        default
    )
