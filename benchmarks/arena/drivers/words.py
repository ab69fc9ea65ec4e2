"""Texts to token ids, and hidden states to vectors: what each runtime without a library around it needs."""

import json
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer


def make_tokenizer(folder):
    """Return the tokenizer of a model folder, with the longest sequence that is configured."""
    folder = Path(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(json.loads((folder / "sentence_bert_config.json").read_text())["max_seq_length"])
    tokenizer.enable_padding()
    return tokenizer


def rows_of(tokenizer, texts, names):
    """Return the inputs of these names as arrays of int64, (B, T)."""
    return inputs_of(tokenizer.encode_batch(texts), names)


def inputs_of(encodings, names):
    """Return the inputs of these names as arrays of int64, (B, T). encodings: as long as each other."""
    made = {
        "input_ids": lambda each: each.ids,
        "attention_mask": lambda each: each.attention_mask,
        "token_type_ids": lambda each: each.type_ids,
    }
    return {name: np.array([made[name](each) for each in encodings], np.int64) for name in names}


def pooled(hidden, mask):
    """Return the means over real tokens, divided by their lengths: (B, T, H) and (B, T) to (B, H)."""
    weights = mask.astype(np.float32)
    sums = np.matmul(weights[:, None, :], hidden)[:, 0]
    means = sums / weights.sum(1, keepdims=True)
    return means / np.linalg.norm(means, axis=1, keepdims=True)


def batches_by_length(tokenizer, texts, size):
    """Yield (indices, encodings) of at most `size` texts of similar length, the longest first. Pads each batch."""
    tokenizer.no_padding()
    encodings = tokenizer.encode_batch(texts)
    by_length = sorted(range(len(texts)), key=lambda i: -len(encodings[i].ids))
    for start in range(0, len(texts), size):
        indices = by_length[start : start + size]
        longest = len(encodings[indices[0]].ids)
        for i in indices:
            encodings[i].pad(longest)
        yield indices, [encodings[i] for i in indices]
