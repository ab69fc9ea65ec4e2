"""fastembed, in process, with this model as a custom model from its folder."""

import json
from pathlib import Path

import numpy as np
from fastembed import TextEmbedding
from fastembed.common.model_description import ModelSource, PoolingType
from pipe import answer


def load(folder, arguments, sample):
    """arguments: none; fastembed chooses batches and threads."""
    dimension = json.loads((Path(folder) / "config.json").read_text())["hidden_size"]
    TextEmbedding.add_custom_model(
        "arena/model",
        pooling=PoolingType.MEAN,
        normalization=True,
        sources=ModelSource(hf="arena/model"),  # required, but not asked when the folder is given
        dim=dimension,
        model_file="onnx/model.onnx",
    )
    model = TextEmbedding("arena/model", specific_model_path=folder)
    return lambda texts: np.stack(list(model.embed(texts))), {}


answer(load)
