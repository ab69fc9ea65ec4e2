"""Embed: a class for Ray Data's map_batches that adds a column with the vector of each text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

import numpy as np
import pyarrow as pa
import ray
from bert_serving.client import BertClient
from bert_serving.protocol import Rows

if TYPE_CHECKING:
    from bert_serving.protocol import EncodeOptionsDict


class _CanEncode(Protocol):
    def encode(self, texts: list[str], /, **options: Any) -> Rows: ...


class Embed:
    """Adds a column with the vector of each text to a table. Each actor of Ray Data has one instance.

    text_column: the column with the texts, which are strings. A text that is null gets null as its vector.
    output_column: the column of the vectors, a fixed-size list of float32 or float16; a column of this name is
        replaced. output_dtype: "float32" or "float16".
    options: of each call of `encode`, such as {"normalize": True}.
    server: keyword arguments of BertClient, such as {"ip": "10.0.0.7"}: a running server computes the vectors, and
        the actor loads no model.
    model: the arguments of Encoder, if there is no `server`. An actor without a GPU of Ray computes on the CPU.

    Raises ModelError if the model cannot be used. A call raises ValueError or TypeError for texts that cannot be
    encoded, and for options that give no single vector for each text (the poolings NONE and SPLADE).

    >>> texts.map_batches(Embed, batch_format="pyarrow", concurrency=2, fn_constructor_kwargs={"dtype": "float32"})
    """

    def __init__(
        self,
        *,
        text_column: str = "text",
        output_column: str = "embedding",
        output_dtype: Literal["float32", "float16"] = "float32",
        options: EncodeOptionsDict | None = None,
        server: Mapping[str, Any] | None = None,
        **model: Any,
    ) -> None:
        if output_dtype not in ("float32", "float16"):
            raise ValueError(f"output_dtype must be float32 or float16, got {output_dtype!r}")
        if server is not None and model:
            raise TypeError(f"{', '.join(model)}: with `server`, the server has the model and its options")
        self._text_column = text_column
        self._output_column = output_column
        self._dtype = np.dtype(output_dtype)
        self._options = options or {}
        self._encoder = _encoder(**model) if server is None else cast("_CanEncode", BertClient(**server))

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Return the table with the column of vectors."""
        if self._text_column not in batch.column_names:
            raise ValueError(f"there is no column {self._text_column!r}: the columns are {batch.column_names}")
        texts = batch[self._text_column].to_pylist()
        vectors = self._vectors(texts)
        if self._output_column in batch.column_names:
            return batch.set_column(batch.column_names.index(self._output_column), self._output_column, vectors)
        return batch.append_column(self._output_column, vectors)

    def _vectors(self, texts: Sequence[str | None]) -> pa.Array:
        given = [text for text in texts if text is not None]
        if not given:
            return pa.nulls(len(texts), pa.list_(pa.from_numpy_dtype(self._dtype), self._dimension()))
        rows = self._encoder.encode(given, **self._options)
        if rows.shape[:-1] != (len(given),):
            raise ValueError("Embed writes one vector for each text: use another pooling than NONE or SPLADE")
        rows = rows.astype(self._dtype, copy=False)
        if len(given) == len(texts):
            return fixed_size_lists(rows)
        has_text = np.array([text is not None for text in texts])
        spread = np.zeros((len(texts), rows.shape[1]), rows.dtype)
        spread[has_text] = rows
        return fixed_size_lists(spread, has_text)

    def _dimension(self) -> int:
        """Return the length of a vector, for a batch without any text."""
        return int(self._encoder.encode(["a"], **self._options).shape[-1])


def fixed_size_lists(rows: Rows, is_valid: np.ndarray[Any, np.dtype[np.bool_]] | None = None) -> pa.Array:
    """Return an Arrow array with a list for each row, on the memory of the rows.

    rows: (B, D) float32 or float16. is_valid: (B,), False: the list is null.
    """
    rows = np.ascontiguousarray(rows)
    values = pa.array(rows.reshape(-1))
    bits = None if is_valid is None else pa.py_buffer(np.packbits(is_valid, bitorder="little"))
    kind = pa.list_(values.type, rows.shape[1])
    return pa.Array.from_buffers(kind, len(rows), [bits], children=[values])


def _encoder(**model: Any) -> _CanEncode:
    from ..server.worker.encoder import Encoder  # it loads torch, which a driver with this file does not need

    if "device" not in model and ray.is_initialized():
        model["device"] = "auto" if ray.get_runtime_context().get_accelerator_ids().get("GPU") else "cpu"
    return cast("_CanEncode", Encoder(**model))
