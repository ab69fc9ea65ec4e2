"""Model folders of every supported format give the right vectors. Errors name the weights that do not fit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from bert_serving.server.model.errors import ModelError
from bert_serving.server.worker.encoder import Encoder
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from transformers import AutoModel, BertForSequenceClassification, PreTrainedModel

from tests.support.sentences import sentences
from tests.support.tiny_models import make_model, make_tokenizer

TEXTS = sentences(60)
MODES = ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("plain"), "bert")


def encode(folder: Path, texts: list[str] = TEXTS) -> np.ndarray:
    return Encoder(folder, device="cpu", dtype="float32").encode(texts)


@pytest.mark.parametrize("modes", [*([mode] for mode in MODES), ["cls", "mean", "max"]], ids="+".join)
@pytest.mark.parametrize("normalize", [True, False])
def test_sentence_transformers_folders_give_the_same_vectors(
    plain: Path, tmp_path: Path, modes: list[str], normalize: bool
) -> None:
    body = Transformer(str(plain), max_seq_length=48)
    modules = [body, Pooling(64, pooling_mode=tuple(modes)), *([Normalize()] if normalize else [])]
    model = SentenceTransformer(modules=modules, device="cpu")
    model.save(str(tmp_path))
    mine = Encoder(tmp_path, device="cpu", dtype="float32")
    assert mine.max_seq_len == 48
    assert np.abs(mine.encode(TEXTS) - model.encode(TEXTS)).max() <= 1e-5


def test_a_default_prompt_is_prepended(plain: Path, tmp_path: Path) -> None:
    modules = [Transformer(str(plain)), Pooling(64)]
    prompts = {"query": "the query: ", "passage": "fox "}
    model = SentenceTransformer(modules=modules, device="cpu", prompts=prompts, default_prompt_name="query")
    model.save(str(tmp_path))
    assert np.abs(encode(tmp_path) - model.encode(TEXTS)).max() <= 1e-5
    assert np.abs(encode(tmp_path) - model.encode(TEXTS, prompt="")).max() > 1e-3


def test_pooling_of_older_folders_is_read_from_booleans(plain: Path, tmp_path: Path) -> None:
    model = SentenceTransformer(modules=[Transformer(str(plain)), Pooling(64)], device="cpu")
    model.save(str(tmp_path))
    old = {"word_embedding_dimension": 64, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}
    (tmp_path / "1_Pooling/config.json").write_text(json.dumps(old))
    expected = SentenceTransformer(str(tmp_path), device="cpu").encode(TEXTS)
    assert expected.shape == (60, 128)
    assert np.abs(encode(tmp_path) - expected).max() <= 1e-5


def test_pytorch_bin_and_sharded_weights_give_the_same_vectors(plain: Path, tmp_path: Path) -> None:
    expected = encode(plain)
    model = AutoModel.from_pretrained(plain)
    for name, weights in (("bin", "pytorch_model.bin"), ("sharded", "model.safetensors.index.json")):
        folder = tmp_path / name
        if name == "bin":
            folder.mkdir()
            model.config.save_pretrained(folder)
            torch.save(model.state_dict(), folder / weights)
        else:
            model.save_pretrained(folder, max_shard_size="50KB")
        make_tokenizer(0).save_pretrained(folder)
        assert (folder / weights).is_file()
        assert np.abs(encode(folder) - expected).max() == 0


def test_a_pickle_with_other_objects_than_weights_is_refused(plain: Path, tmp_path: Path) -> None:
    AutoModel.from_pretrained(plain).config.save_pretrained(tmp_path)
    make_tokenizer(0).save_pretrained(tmp_path)
    torch.save({"evil": Path("x")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot load the model"):
        encode(tmp_path)


def test_vocab_txt_is_enough_for_a_tokenizer(demo_model: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors", "vocab.txt"):
        (tmp_path / name).symlink_to(demo_model / name)
    mine = Encoder(tmp_path, device="cpu", dtype="float32", pooling_layer=[-1])
    assert mine.encode_tokens(["Hello embeddings"])[0].tokens == [
        "[CLS]",
        "hello",
        "em",
        "##bed",
        "##ding",
        "##s",
        "[SEP]",
    ]
    full = Encoder(demo_model, device="cpu", dtype="float32", pooling_layer=[-1])
    assert np.abs(mine.encode(TEXTS) - full.encode(TEXTS)).max() <= 1e-6


@pytest.mark.parametrize("change", [{"num_hidden_layers": 4}, {"hidden_size": 32}, {"vocab_size": 300}])
def test_weights_that_do_not_fit_the_config_are_named(plain: Path, tmp_path: Path, change: dict[str, int]) -> None:
    for file in plain.iterdir():
        (tmp_path / file.name).symlink_to(file)
    config = json.loads((plain / "config.json").read_text()) | change
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"(missing|do not fit).*(encoder\.layer|embeddings)"):
        Encoder(tmp_path, device="cpu", pooling_layer=[-1])


# -- a tuned model's weights ---------------------------------------------------------------------------


@pytest.fixture
def tuned(plain: Path) -> PreTrainedModel:
    """Return a classifier made from the plain model. Its weights are changed, as by training."""
    model = BertForSequenceClassification.from_pretrained(plain)
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.02)
    return model


@pytest.fixture
def expected(tuned: PreTrainedModel, tmp_path: Path) -> np.ndarray:
    """Return the vectors of the tuned encoder, loaded from a complete folder."""
    tuned.bert.save_pretrained(tmp_path / "whole")
    make_tokenizer(0).save_pretrained(tmp_path / "whole")
    return encode(tmp_path / "whole")


def encode_tuned(folder: Path, tuned: Path) -> np.ndarray:
    return Encoder(folder, tuned_model_dir=tuned, device="cpu", dtype="float32").encode(TEXTS)


@pytest.mark.parametrize("form", ["safetensors", "sharded", "bin", "sharded bin"])
@pytest.mark.parametrize("head", ["with", "without"])
def test_tuned_weights_are_read_with_and_without_a_head(
    plain: Path, tmp_path: Path, tuned: PreTrainedModel, expected: np.ndarray, form: str, head: str
) -> None:
    model = tuned if head == "with" else tuned.bert
    folder = tmp_path / "tuned"
    model.save_pretrained(folder, max_shard_size="50KB" if "sharded" in form else "1GB")
    if "bin" in form:
        to_pickles(folder)
    assert bool(list(folder.glob("*.index.json"))) == ("sharded" in form)
    (folder / "config.json").unlink()
    assert np.abs(encode_tuned(plain, folder) - expected).max() == 0
    assert np.abs(encode(plain) - expected).max() > 1e-3


def to_pickles(folder: Path) -> None:
    """Rewrite a folder's weights as pickles, the older format."""
    for file in list(folder.glob("*.safetensors")):
        torch.save(
            load_file(file), folder / file.name.replace("model", "pytorch_model").replace("safetensors", "bin")
        )
        file.unlink()
    for index in list(folder.glob("*.index.json")):
        content = index.read_text().replace("model-", "pytorch_model-").replace(".safetensors", ".bin")
        (folder / "pytorch_model.bin.index.json").write_text(content)
        index.unlink()


def test_tuned_weights_load_into_a_sentence_transformers_folder(
    plain: Path, tmp_path: Path, tuned: PreTrainedModel
) -> None:
    tuned.save_pretrained(tmp_path / "tuned")
    SentenceTransformer(modules=[Transformer(str(plain)), Pooling(64), Normalize()], device="cpu").save(
        str(tmp_path / "sentences")
    )
    tuned.bert.save_pretrained(tmp_path / "body")
    make_tokenizer(0).save_pretrained(tmp_path / "body")
    body = Transformer(str(tmp_path / "body"))
    expected = SentenceTransformer(modules=[body, Pooling(64), Normalize()], device="cpu").encode(TEXTS)
    assert np.abs(encode_tuned(tmp_path / "sentences", tmp_path / "tuned") - expected).max() <= 1e-5


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (
            {"bert.encoder.layer.1.output.dense.weight": None},
            r"missing in .*encoder\.layer\.1\.output\.dense\.weight",
        ),
        ({"bert.encoder.layer.1.output.dense.bias": 3}, r"do not fit .*encoder\.layer\.1\.output\.dense\.bias"),
    ],
)
def test_tuned_weights_that_do_not_fit_are_named(
    plain: Path, tmp_path: Path, tuned: PreTrainedModel, damage: dict[str, int | None], said: str
) -> None:
    weights = {name: value.clone() for name, value in tuned.state_dict().items()}
    for name, size in damage.items():
        if size is None:
            del weights[name]
        else:
            weights[name] = torch.zeros(size)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=said) as caught:
        encode_tuned(plain, tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_overwriting_the_weights_changes_nothing_in_a_model_that_runs(tmp_path: Path) -> None:
    """A loader may map the file into memory. Then the vectors would change, or SIGBUS would end the process."""
    encoder = Encoder(make_model(tmp_path, "bert"), device="cpu", dtype="float32")
    before = encoder.encode(TEXTS)
    weights = tmp_path / "model.safetensors"
    with weights.open("r+b") as file:
        file.write(bytes(weights.stat().st_size))
    assert np.array_equal(encoder.encode(TEXTS), before)
