"""Embed for Ray Data: the class of bert_serving.server.files, made for actors of Ray."""

from __future__ import annotations

import ray

from ..server import files


class Embed(files.Embed):
    """Adds a column with the vectors of another column's texts: a class for Ray Data's map_batches.

    Each actor of Ray Data has one instance. It loads the model when it is made, so that a wrong option ends the
    job at once. An actor to which Ray has given no GPU computes on the CPU. The arguments and all else are those
    of bert_serving.server.files.Embed.

    >>> texts.map_batches(Embed, batch_format="pyarrow", concurrency=2, fn_constructor_kwargs={"dtype": "float32"})
    """

    def __init__(self, text_column: str = "text", output_column: str = files.VECTOR, **options: object) -> None:
        if "device" not in options and options.get("server") is None and ray.is_initialized():
            has_gpu = bool(ray.get_runtime_context().get_accelerator_ids().get("GPU"))
            options["device"] = "auto" if has_gpu else "cpu"
        super().__init__(text_column, output_column, **options)
        self.load()
