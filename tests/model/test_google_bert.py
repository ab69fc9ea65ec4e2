"""Google's BERT checkpoints give the same vectors as the same weights in Transformers."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from bert_serving.protocol import Text
from bert_serving.server.model.errors import ModelError
from bert_serving.server.model.tensorflow.google_bert import google_name
from bert_serving.server.model.tensorflow.tensor_bundle import TensorBundle
from bert_serving.server.worker.encoder import Encoder
from bert_serving.server.worker.micro_batches import PreparedText
from safetensors.torch import save_file
from transformers import BertConfig, BertModel, BertTokenizer

from tests.support.tensor_bundles import GOOGLE_BERT, write_bundle

TEXTS = ["hello world", "The quick brown fox jumps over a lazy dog!", "it", "say one, two ||| and three of four ."]
FILES = ("bert_config.json", "vocab.txt", "bert_model.ckpt.index", "bert_model.ckpt.data-00000-of-00001")


def google_weights() -> dict[str, np.ndarray]:
    bundle = TensorBundle(GOOGLE_BERT / "bert_model.ckpt")
    return {name: bundle.read(name) for name in bundle.names}


@pytest.fixture
def google(tmp_path: Path) -> Path:
    """Return a copy of a folder in Google's format, which tests may change."""
    folder = tmp_path / "google"
    folder.mkdir()
    for name in FILES:
        shutil.copy(GOOGLE_BERT / name, folder)
    return folder


@pytest.fixture(scope="module")
def reference() -> BertModel:
    """Return a BertModel with the weights of GOOGLE_BERT, assigned as Transformers' converter assigns them."""
    config = BertConfig.from_json_file(str(GOOGLE_BERT / "bert_config.json"))
    config._attn_implementation = "eager"
    model = BertModel(config).eval()
    for name, value in google_weights().items():
        parts = name.split("/")
        if parts[0] != "bert" or parts[-1] in ("adam_m", "adam_v"):
            continue
        pointer = model
        for part in parts[1:]:
            words = re.fullmatch(r"(layer)_(\d+)", part)
            if words:
                pointer = getattr(pointer, words[1])[int(words[2])]
            else:
                pointer = getattr(pointer, {"kernel": "weight", "gamma": "weight", "beta": "bias"}.get(part, part))
        pointer = pointer.weight if parts[-1].endswith("_embeddings") else pointer
        with torch.no_grad():
            pointer.copy_(torch.tensor(value.T if parts[-1] == "kernel" else value))
    return model


def hidden_states(model: BertModel, text: str) -> tuple[list[np.ndarray], np.ndarray]:
    """Return the hidden states (T, H) of each layer for one text, and the output of the pooler."""
    tokenizer = BertTokenizer(str(GOOGLE_BERT / "vocab.txt"), do_lower_case=True)
    batch = tokenizer(*text.split(" ||| "), return_tensors="pt")
    with torch.no_grad():
        out = model(**batch, output_hidden_states=True)
    return [layer[0].numpy() for layer in out.hidden_states[1:]], out.pooler_output[0].numpy()


def encode(folder: Path, **options: object) -> np.ndarray:
    return Encoder(folder, device="cpu", dtype="float32", **options).encode(TEXTS)


# -- vectors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [[-2], [-1], [-1, -2]])
def test_vectors_equal_those_of_the_same_weights_in_transformers(reference: BertModel, layers: list[int]) -> None:
    states = [hidden_states(reference, text)[0] for text in TEXTS]
    expected = [np.concatenate([each[layer].mean(0) for layer in layers]) for each in states]
    assert np.abs(encode(GOOGLE_BERT, pooling_layer=layers) - expected).max() <= 1e-5
    if layers == [-2]:
        assert np.array_equal(encode(GOOGLE_BERT), encode(GOOGLE_BERT, pooling_layer=layers))


def test_the_pooler_is_read(reference: BertModel) -> None:
    expected = [hidden_states(reference, text)[1] for text in TEXTS]
    assert np.abs(encode(GOOGLE_BERT, pooling_strategy="CLS_POOLED") - expected).max() <= 1e-5


def test_every_weight_of_transformers_has_a_google_name(reference: BertModel) -> None:
    googles = {name for name in google_weights() if name.startswith("bert/") and "adam_" not in name}
    assert {google_name(name) for name in reference.state_dict()} == googles


def test_text_is_lower_cased_unless_the_flag_is_set() -> None:
    texts = ["Hello Café"]
    assert Encoder(GOOGLE_BERT, device="cpu").encode_tokens(texts)[0].tokens == ["[CLS]", "hello", "cafe", "[SEP]"]
    cased = Encoder(GOOGLE_BERT, device="cpu", cased_tokenization=True)
    assert cased.encode_tokens(texts)[0].tokens == ["[CLS]", "Hello", "[UNK]", "[SEP]"]


def test_default_length_is_the_number_of_positions_in_the_config() -> None:
    assert Encoder(GOOGLE_BERT, device="cpu").max_seq_len == 24
    with pytest.raises(ModelError, match=r"must be in 3\.\.24"):
        Encoder(GOOGLE_BERT, device="cpu", max_seq_len=25)


# -- names and places of files -------------------------------------------------------------------------


def test_tuned_weights_and_files_with_other_names_are_found(google: Path, tmp_path: Path) -> None:
    expected = encode(GOOGLE_BERT)
    tuned = tmp_path / "tuned"
    tuned.mkdir()
    for file in google.glob("bert_model.ckpt.*"):
        file.rename(tuned / file.name.replace("bert_model.ckpt", "model.ckpt-343"))
    (google / "bert_config.json").rename(google / "tiny.json")
    options = {"tuned_model_dir": tuned, "config_name": "tiny.json"}
    assert np.array_equal(encode(google, ckpt_name="model.ckpt-343", **options), expected)
    with pytest.raises(ModelError, match=r"tuned_model_dir has no weights .*-ckpt_name may be model\.ckpt-343$"):
        encode(google, **options)
    with pytest.raises(ModelError, match=r"model_dir has no config\.json or bert_config\.json"):
        encode(google, ckpt_name="model.ckpt-343", tuned_model_dir=tuned)


def test_transformers_weights_take_precedence_unless_ckpt_name_is_given(
    google: Path, reference: BertModel
) -> None:
    expected = encode(google)
    others = {name: weight.flip(0).contiguous() for name, weight in reference.state_dict().items()}
    save_file(others, google / "model.safetensors", metadata={"format": "pt"})
    assert np.abs(encode(google) - expected).max() > 0.1
    assert np.array_equal(encode(google, ckpt_name="bert_model.ckpt"), expected)


def test_google_weights_load_with_a_transformers_config(google: Path, reference: BertModel) -> None:
    expected = encode(google)
    (google / "bert_config.json").unlink()
    reference.config.save_pretrained(google)
    assert np.array_equal(encode(google), expected)
    config = json.loads((google / "config.json").read_text()) | {"model_type": "electra"}
    (google / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="must be of model type bert, the config has electra"):
        encode(google)


# -- missing or wrong weights --------------------------------------------------------------------------


def test_missing_weights_are_named(google: Path) -> None:
    weights = google_weights()
    del weights["bert/encoder/layer_0/attention/output/LayerNorm/gamma"]
    del weights["bert/encoder/layer_1/output/dense/kernel"]
    write_bundle(google / "bert_model.ckpt", weights)
    said = r"missing in .*bert_model\.ckpt: bert/encoder/layer_0/attention/output/LayerNorm/gamma$"
    with pytest.raises(ModelError, match=said):
        encode(google)  # layer -2 is the first of two layers, so the second, layer_1, is not needed
    with pytest.raises(ModelError, match="LayerNorm/gamma and 1 more"):
        encode(google, pooling_layer=[-1])


def test_weights_of_the_wrong_shape_are_named(google: Path) -> None:
    weights = google_weights() | {"bert/encoder/layer_0/intermediate/dense/kernel": np.ones((24, 16), np.float32)}
    write_bundle(google / "bert_model.ckpt", weights)
    with pytest.raises(ModelError, match=r"layer_0/intermediate/dense/kernel must be \(16, 24\), got \(24, 16\)"):
        encode(google)


def test_a_missing_pooler_is_an_error_only_for_cls_pooled(google: Path) -> None:
    expected = encode(google)
    weights = {name: value for name, value in google_weights().items() if "pooler" not in name}
    write_bundle(google / "bert_model.ckpt", weights)
    assert np.array_equal(encode(google), expected)
    with pytest.raises(ModelError, match="CLS_POOLED"):
        encode(google, pooling_strategy="CLS_POOLED")


def test_float16_weights_are_read(google: Path) -> None:
    expected = encode(google)
    weights = {name: v.astype(np.float16) if v.dtype == np.float32 else v for name, v in google_weights().items()}
    write_bundle(google / "bert_model.ckpt", weights)
    assert 0 < np.abs(encode(google) - expected).max() < 0.01


def test_error_for_a_damaged_checkpoint_is_one_line(google: Path) -> None:
    shard = google / FILES[-1]
    content = bytearray(shard.read_bytes())
    content[len(content) // 8] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ModelError, match="has a wrong checksum") as caught:
        encode(google)
    assert str(shard) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_albert_checkpoint_is_refused_with_its_name(google: Path) -> None:
    name = "bert/encoder/transformer/group_0/inner_group_0/attention_1/self/query/kernel"
    write_bundle(google / "bert_model.ckpt", {name: np.ones((16, 16), np.float32)})
    with pytest.raises(ModelError, match="ALBERT checkpoints are not supported"):
        encode(google)
    (google / "bert_config.json").rename(google / "albert_config.json")
    with pytest.raises(ModelError, match="ALBERT checkpoints are not supported"):
        encode(google)


@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "num_attention_heads"])
def test_config_keys_that_weights_cannot_check_are_required(google: Path, key: str) -> None:
    config = json.loads((google / "bert_config.json").read_text())
    del config[key]
    (google / "bert_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=rf"bert_config\.json must have {key}"):
        encode(google)


def test_the_activation_may_be_written_in_upper_case(google: Path) -> None:
    config = json.loads((google / "bert_config.json").read_text())
    expected = encode(google)
    (google / "bert_config.json").write_text(json.dumps(config | {"hidden_act": config["hidden_act"].upper()}))
    assert np.array_equal(encode(google), expected)


def test_a_vocabulary_without_padding_pads_with_the_first_token(google: Path) -> None:
    """As in bert-as-service. Each text has the same vectors alone and beside a longer one."""
    words = (google / "vocab.txt").read_text().splitlines()
    (google / "vocab.txt").write_text("\n".join("unused" if word == "[PAD]" else word for word in words))
    texts = ["hello world", "it"]
    encoder = Encoder(google, device="cpu", dtype="float32")
    together, alone = encoder.encode(texts), [encoder.encode([text])[0] for text in texts]
    assert np.abs(together - alone).max() <= 1e-5


def ids_of(encoder: Encoder, texts: list[Text]) -> list[list[int]]:
    return [each.text.ids for each in encoder.prepare(texts) if isinstance(each, PreparedText)]


def test_white_space_around_a_token_in_the_vocabulary_is_not_part_of_it(google: Path) -> None:
    """As in bert-as-service: TensorFlow's reader ignores carriage returns, and each line is stripped."""
    texts: list[Text] = ["hello world the fox is over it", ["dog", "##s", "lazy"]]
    expected = ids_of(Encoder(google, device="cpu"), texts)
    written = {
        b"hello": b" hello",
        b"world": b"\tworld \xe3\x80\x80",
        b"the": "\x85\xa0the\x85".encode(),
        b"fox": b"\x1c\x1dfox\x1e\x1f",
        b"is": "\u2028is\u2029".encode(),
        b"over": b"ov\rer\r\r",
        b"it": b"it\r",
        b"dog": b"\x0b\x0cdog",
        b"##s": b" ##s",
    }
    lines = (google / "vocab.txt").read_bytes().splitlines()
    (google / "vocab.txt").write_bytes(b"\n".join(written.get(line, line) for line in lines))
    mine = Encoder(google, device="cpu")
    assert ids_of(mine, texts) == expected
    assert mine.encode_tokens(["hello world it"])[0].tokens == ["[CLS]", "hello", "world", "it", "[SEP]"]


def test_a_byte_order_mark_and_a_zero_width_space_are_part_of_a_token(google: Path) -> None:
    """They are no white space for Python's str.strip."""
    content = "\ufeff" + (google / "vocab.txt").read_text().replace("\nhello\n", "\n\u200bhello\n")
    (google / "vocab.txt").write_text(content, encoding="utf-8")
    texts: list[Text] = ["hello", ["\u200bhello"], ["\ufeff[PAD]"]]
    assert ids_of(Encoder(google, device="cpu"), texts) == [[2, 1, 3], [2, 19, 3], [2, 0, 3]]


def test_equal_lines_of_a_vocabulary_have_the_id_of_the_last_one(
    google: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Lines may become equal by stripping. An empty line has an id too."""
    words = (google / "vocab.txt").read_text().splitlines()
    fox, lazy, day = words.index("fox"), words.index("lazy"), words.index("day")
    words[lazy], words[day] = " fox", "  "
    words.remove("[MASK]")
    (google / "vocab.txt").write_text("\n".join(words) + "\n\n")
    mine = Encoder(google, device="cpu")
    cls, sep = words.index("[CLS]"), words.index("[SEP]")
    assert ids_of(mine, ["fox"]) == [[cls, lazy - 1, sep]]
    assert ids_of(mine, [["fox", ""]]) == [[cls, lazy - 1, len(words), sep]]
    tokens = mine.encode_tokens(["good fox", [fox - 1]])
    assert [each.tokens[1:-1] for each in tokens] == [["good", "fox"], [f"fox (line {fox})"]]
    assert "holes" not in "".join(capfd.readouterr())


def test_a_vocabulary_that_is_not_utf_8_or_lacks_cls_is_an_error_of_one_line(google: Path) -> None:
    content = (google / "vocab.txt").read_bytes()
    (google / "vocab.txt").write_bytes(content.replace(b"\nhello\n", b"\nhell\xff\n"))
    with pytest.raises(ModelError, match=r"cannot load the tokenizer in .*utf-8"):
        encode(google)
    (google / "vocab.txt").write_bytes(content.replace(b"[CLS]", b"[START]"))
    with pytest.raises(ModelError, match="no embedding"):
        encode(google)


def test_a_vocabulary_of_transformers_is_read_as_transformers_does(google: Path, reference: BertModel) -> None:
    """A config.json makes the folder one of Transformers, and so does a tokenizer.json."""
    content = (google / "vocab.txt").read_text()
    (google / "vocab.txt").write_text(content.replace("\nhello\n", "\n hello\n"))
    BertTokenizer(str(google / "vocab.txt")).save_pretrained(google)
    assert ids_of(Encoder(google, device="cpu"), ["hello"]) == [[2, 1, 3]]
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (google / name).unlink()
    assert ids_of(Encoder(google, device="cpu"), ["hello"]) == [[2, 19, 3]]
    (google / "bert_config.json").unlink()
    reference.config.save_pretrained(google)
    assert ids_of(Encoder(google, device="cpu"), ["hello"]) == [[2, 1, 3]]


@pytest.mark.parametrize("wrong", [{"num_attention_heads": 3}, {"hidden_act": "none"}, {"hidden_size": "16"}])
def test_error_for_an_invalid_config_is_one_line(google: Path, wrong: dict[str, object]) -> None:
    config = json.loads((google / "bert_config.json").read_text()) | wrong
    (google / "bert_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError) as caught:
        encode(google)
    assert str(google) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_classifiers_head_gives_the_softmax_over_its_pooler(google: Path, reference: BertModel) -> None:
    weights = google_weights()
    weights["output_weights"] = np.linspace(-1, 1, 48, dtype=np.float32).reshape(3, 16)
    weights["output_bias"] = np.array([0.5, 0.0, -0.5], np.float32)
    write_bundle(google / "bert_model.ckpt", weights)
    encoder = Encoder(google, device="cpu", dtype="float32", pooling_strategy=["CLASSIFICATION", "CLS_POOLED"])
    rows = encoder.encode(TEXTS)
    logits = rows[:, 3:] @ weights["output_weights"].T + weights["output_bias"]
    expected = torch.softmax(torch.tensor(logits), dim=1).numpy()
    assert np.abs(rows[:, :3] - expected).max() <= 1e-5
    assert encoder.labels == ("LABEL_0", "LABEL_1", "LABEL_2")


def test_classification_without_a_head_is_an_error(google: Path) -> None:
    weights = {name: value for name, value in google_weights().items() if not name.startswith("output_")}
    write_bundle(google / "bert_model.ckpt", weights)
    with pytest.raises(ModelError, match=r"head are missing .*: output_weights"):
        Encoder(google, device="cpu", pooling_strategy="CLASSIFICATION")


def test_a_special_token_typed_in_a_string_is_not_special(google: Path) -> None:
    typed, real = Encoder(google, device="cpu").encode_tokens(["it [SEP]", ["it", "[SEP]"]])
    assert typed.tokens[2] != "[SEP]"
    assert real.tokens == ["[CLS]", "it", "[SEP]", "[SEP]"]
