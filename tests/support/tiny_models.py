"""Makes tiny random checkpoints of every family, with a tokenizer."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

WORDS = [
    "the",
    "a",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "lazy",
    "dog",
    "hello",
    "world",
    "one",
    "two",
    "three",
]
WORDS += ["four", "five", "six", "word", "and", "of", "in", "to"]
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,:;!?-()'\""

_SIZES = {
    "vocab_size": 256,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 512,
}
# Options of each family, which add to _SIZES or override its values. The keys are Transformers' model types.
FAMILIES: dict[str, dict[str, object]] = {
    "bert": {},
    "roberta": {"max_position_embeddings": 514},
    "xlm-roberta": {"max_position_embeddings": 514},
    "camembert": {"max_position_embeddings": 514},
    "distilbert": {"dim": 64, "n_layers": 3, "n_heads": 4, "hidden_dim": 128},
    "electra": {"embedding_size": 32},
    "albert": {"embedding_size": 32},
    "mpnet": {"max_position_embeddings": 514},
    "modernbert": {"local_attention": 16, "global_attn_every_n_layers": 2},
    "nomic_bert": {},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 32},
}


def make_model(
    folder: Path, model_type: str, *, poison: str | None = None, seed: int = 0, **options: object
) -> Path:
    """Write a random checkpoint and its tokenizer to the folder; return the folder.

    poison: a word whose embedding is NaN. seed: models with different seeds have different weights.
    """
    pad_id = 1 if "max_position_embeddings" in FAMILIES[model_type] else 0  # RoBERTa and its relatives pad with 1
    tokenizer = make_tokenizer(pad_id)
    sizes = _SIZES | FAMILIES[model_type] | options
    ids = {f"{name}_token_id": tokenizer.convert_tokens_to_ids(getattr(tokenizer, f"{name}_token")) for name in
           ("pad", "cls", "sep", "bos", "eos")}  # fmt: skip
    torch.manual_seed(seed)
    config = AutoConfig.for_model(model_type, **sizes, **ids)
    model = AutoModel.from_config(config)
    _randomize(model)
    if poison is not None:
        model.get_input_embeddings().weight.data[tokenizer.convert_tokens_to_ids(poison)] = float("nan")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_classifier(folder: Path, family: str, **options: object) -> Path:
    """Write a random classifier with its tokenizer to the folder; return the folder."""
    make_model(folder, family)
    config = AutoConfig.from_pretrained(folder, **options)
    return _save(AutoModelForSequenceClassification.from_config(config), folder)


def make_masked(folder: Path, family: str) -> Path:
    """Write a random model with a head for masked language modelling to the folder; return the folder."""
    make_model(folder, family)
    return _save(AutoModelForMaskedLM.from_config(AutoConfig.from_pretrained(folder)), folder)


def _save(model: PreTrainedModel, folder: Path) -> Path:
    torch.manual_seed(1)
    _randomize(model)
    model.save_pretrained(folder)
    return folder


def _randomize(model: PreTrainedModel) -> None:
    # The standard deviation is large, so that every part of the model changes the vectors noticeably.
    # The scales of norms are drawn around 1: with scales around 0, all texts would get equal vectors.
    for name, parameter in model.named_parameters():
        is_scale = "norm" in name.lower() and name.endswith("weight")
        parameter.data.normal_(1 if is_scale else 0, 0.1)


def make_tokenizer(pad_id: int) -> PreTrainedTokenizerFast:
    """Return a WordPiece tokenizer over a few words and all letters."""
    specials = ["<s>", "<pad>", "</s>", "<unk>"] if pad_id == 1 else ["<pad>", "<s>", "</s>", "<unk>"]
    pieces = [*LETTERS, *(f"##{c}" for c in LETTERS)]
    vocab = {token: i for i, token in enumerate([*specials, *pieces, *(w for w in WORDS if len(w) > 1)])}
    rust = Tokenizer(models.WordPiece(vocab, unk_token="<unk>"))
    rust.normalizer = normalizers.BertNormalizer()
    rust.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    rust.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> $B:1 </s>:1",
        special_tokens=[("<s>", vocab["<s>"]), ("</s>", vocab["</s>"])],
    )
    names = {"bos": "<s>", "cls": "<s>", "eos": "</s>", "sep": "</s>", "pad": "<pad>", "unk": "<unk>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=rust,
        model_max_length=512,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **{f"{name}_token": token for name, token in names.items()},
    )
