"""ONNX Runtime, in process: texts sorted by length, in batches of the size that is fastest here."""

from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
from pipe import answer, best
from words import batches_by_length, inputs_of, make_tokenizer, pooled

SIZES = (1, 8, 16, 32, 64)


def load(folder, arguments, sample):
    """arguments: file of the model; size of a batch, if it was chosen before."""
    session = onnxruntime.InferenceSession(Path(folder) / arguments["file"], providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    tokenizer = make_tokenizer(folder)

    def encode(size, texts):
        rows = [None] * len(texts)
        for indices, encodings in batches_by_length(tokenizer, texts, size):
            inputs = inputs_of(encodings, names)
            vectors = pooled(session.run(None, inputs)[0], inputs["attention_mask"])
            for i, vector in zip(indices, vectors, strict=True):
                rows[i] = vector
        return np.stack(rows)

    size = arguments.get("size") or best({size: partial(encode, size) for size in SIZES}, sample)
    return partial(encode, size), {"chosen": {"size": size}}


answer(load)
