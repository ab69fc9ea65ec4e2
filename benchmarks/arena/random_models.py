"""Makes a model with random weights: python -m benchmarks.arena.random_models base|long FOLDER."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from bert_serving.server.model.demo import find_demo_model
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from transformers import AutoTokenizer, ModernBertConfig, ModernBertModel

from benchmarks.encoder import save_bert_base

_LONG_TOKENS = 8192


def save_long(folder: Path) -> Path:
    """Write a sentence-transformers folder of a small ModernBERT for long texts, with random weights."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(find_demo_model(), model_max_length=_LONG_TOKENS)
    config = ModernBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=384,
        intermediate_size=576,
        num_hidden_layers=8,
        num_attention_heads=6,
        max_position_embeddings=_LONG_TOKENS,
        pad_token_id=tokenizer.pad_token_id,
        cls_token_id=tokenizer.cls_token_id,
        sep_token_id=tokenizer.sep_token_id,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
    )
    ModernBertModel(config).save_pretrained(folder / "body")
    tokenizer.save_pretrained(folder / "body")
    body = Transformer(str(folder / "body"), max_seq_length=_LONG_TOKENS)
    SentenceTransformer(modules=[body, Pooling(384), Normalize()], device="cpu").save(str(folder / "model"))
    return folder / "model"


def _allow_tokens(model: Path, num_tokens: int) -> None:
    """Set the longest sequence of a model folder."""
    path = model / "sentence_bert_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "max_seq_length": num_tokens}))


if __name__ == "__main__":
    name, folder = sys.argv[1], Path(sys.argv[2])
    if name == "base":
        _allow_tokens(save_bert_base(folder), 512)
    else:
        save_long(folder)
