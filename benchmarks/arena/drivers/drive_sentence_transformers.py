"""sentence-transformers, in process, with any of its backends."""

import torch
from pipe import answer
from sentence_transformers import SentenceTransformer


def load(folder, arguments, sample):
    """arguments: dtype; or backend and file_name."""
    kwargs = {}
    if "dtype" in arguments:
        kwargs["model_kwargs"] = {"dtype": getattr(torch, arguments["dtype"])}
    if "backend" in arguments:
        kwargs = {"backend": arguments["backend"], "model_kwargs": {"file_name": arguments["file_name"]}}
    model = SentenceTransformer(folder, device="cpu", **kwargs)
    return lambda texts: model.encode(texts, show_progress_bar=False), {}


answer(load)
