"""Makes a model with random weights: python -m benchmarks.arena.random_models base|long FOLDER.

All files but the weights and the config are those of the demo model, because a folder that the newest
sentence-transformers writes cannot be read by the older ones that some peers need.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch
from bert_serving.server.model.demo import find_demo_model
from transformers import BertConfig, BertModel, ModernBertConfig, ModernBertModel, PreTrainedModel

_FILES = ("modules.json", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt")
_INPUTS = ["input_ids", "attention_mask"]
_NUM_WORDS, _PAD, _CLS, _SEP = 30522, 0, 101, 102  # of the demo model's tokenizer


def save_bert_base(folder: Path, *, max_tokens: int = 256) -> Path:
    """Write a sentence-transformers folder of BERT-base's shape, with random weights; return the folder."""
    torch.manual_seed(0)
    return _save(BertModel(BertConfig()), folder, max_tokens)


def save_long(folder: Path, *, max_tokens: int = 8192) -> Path:
    """Write a sentence-transformers folder of a small ModernBERT, with random weights; return the folder."""
    torch.manual_seed(0)
    config = ModernBertConfig(
        vocab_size=_NUM_WORDS,
        hidden_size=384,
        intermediate_size=576,
        num_hidden_layers=8,
        num_attention_heads=6,
        max_position_embeddings=max_tokens,
        pad_token_id=_PAD,
        cls_token_id=_CLS,
        bos_token_id=_CLS,
        sep_token_id=_SEP,
        eos_token_id=_SEP,
    )
    return _save(ModernBertModel(config), folder, max_tokens)


def _save(model: PreTrainedModel, folder: Path, max_tokens: int) -> Path:
    model.save_pretrained(folder)
    for name in _FILES:
        shutil.copy(find_demo_model() / name, folder / name)
    tokenizer = {**_read(folder / "tokenizer_config.json"), "model_max_length": max_tokens}
    if isinstance(model, ModernBertModel):  # takes no token_type_ids
        tokenizer |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": _INPUTS}
    _write(folder / "tokenizer_config.json", tokenizer)
    _write(folder / "sentence_bert_config.json", {"max_seq_length": max_tokens, "do_lower_case": False})
    pooling = _read(find_demo_model() / "1_Pooling" / "config.json")
    _write(folder / "1_Pooling" / "config.json", {**pooling, "word_embedding_dimension": model.config.hidden_size})
    return folder


def _read(path: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads(path.read_text("utf-8"))
    return found


def _write(path: Path, content: dict[str, object]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content), "utf-8")


if __name__ == "__main__":
    if sys.argv[1] == "base":
        save_bert_base(Path(sys.argv[2]), max_tokens=512)
    else:
        save_long(Path(sys.argv[2]))
