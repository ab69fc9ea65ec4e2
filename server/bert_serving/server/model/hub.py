"""Models from the Hugging Face hub: downloaded, or taken from the hub's cache on this machine."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from .code_references import code_references
from .errors import ModelError
from .sentence_transformers import transformer_path, weight_paths

_WANTED = ("*.json", "*.txt", "*.model", "*.safetensors")
_UNWANTED = ["onnx/*", "openvino/*"]


def looks_like_hub_name(name: str) -> bool:
    """Return whether a name may be a model's name on the hub: `name` or `owner/name`, and not a path."""
    parts = name.split("/")
    return len(parts) <= 2 and all(part and not part.startswith((".", "~")) for part in parts)


def download(name: str, revision: str | None, *, with_code: bool) -> Path:
    """Return the local folder with the files of a model on the hub. Raises ModelError.

    revision: commit, tag or branch; None: the main branch. with_code: download the model's Python code too.
    Pickled weights are downloaded only for modules that have no safetensors.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = [*_WANTED, *(["*.py"] if with_code else [])]
    fetch = partial(snapshot_download, name, revision=revision, ignore_patterns=_UNWANTED)
    try:
        folder = Path(fetch(allow_patterns=wanted))
        if pickled := [path for path in weight_paths(folder) if not list((folder / path).glob("*.safetensors"))]:
            wanted += [(Path(path) / "pytorch_model*.bin").as_posix() for path in pickled]
            folder = Path(fetch(allow_patterns=wanted))
        if with_code:
            references = code_references(folder / transformer_path(folder))
            for repo in {reference.partition("--")[0] for reference in references if "--" in reference}:
                snapshot_download(repo, allow_patterns=["*.py"])
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as exc:
        reason = str(exc).strip().splitlines()[0]
        wish = repr(name) if revision is None else f"{name!r} at revision {revision!r}"
        raise ModelError(
            f"model_dir: there is no such folder, and {wish} could not be downloaded from the hub: {reason}"
        ) from exc
    return folder
