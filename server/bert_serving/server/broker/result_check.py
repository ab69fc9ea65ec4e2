"""Checks what a worker returned for a batch before anything of it is stored. Does no I/O.

A wrong result is a bug in a worker. It must cost only the batch, so it must be found before the rows of the first
part are copied into their job.
"""

from __future__ import annotations

from collections.abc import Sequence

from bert_serving.protocol.workers import PartResult, Rejected, Vectors

from .job import Slice
from .job_result import Layout, layout_of


def result_error(slices: Sequence[Slice], part_results: Sequence[PartResult], model: str) -> str | None:
    """Return what is wrong with the results of a batch, or None. model: fingerprint of the worker's model."""
    if len(part_results) != len(slices):
        return f"expected {len(slices)} parts, got {len(part_results)}"
    layouts: dict[int, Layout] = {}
    for slice_, part_result in zip(slices, part_results, strict=True):
        if isinstance(part_result, Rejected):
            if part_result.index is not None and not 0 <= part_result.index < len(slice_):
                return f"expected the index of one of {len(slice_)} texts, got {part_result.index}"
            continue
        if error := _size_error(part_result, len(slice_)):
            return error
        layout = layout_of(part_result)
        expected = layouts.setdefault(slice_.job.job_id, _stored_layout(slice_, model) or layout)
        if layout != expected:
            return f"expected vectors like the others of the request, {expected}, got {layout}"
    return None


def _stored_layout(slice_: Slice, model: str) -> Layout | None:
    """Return the layout that vectors of this model must have to be stored in the slice's job; None: any layout."""
    job = slice_.job
    return job.result.layout if slice_.is_needed and not job.mixes_models(model) else None


def _size_error(vectors: Vectors, num_texts: int) -> str | None:
    for values in (vectors.num_tokens, vectors.counts, vectors.tokens, vectors.offsets):
        if values is not None and len(values) != num_texts:
            return f"expected values for {num_texts} texts, got values for {len(values)}"
    num_rows = num_texts if vectors.counts is None else sum(vectors.counts)
    if vectors.rows.shape[:1] != (num_rows,):
        return f"expected {num_rows} rows, got an array of shape {vectors.rows.shape}"
    for index in vectors.truncated:
        if not 0 <= index < num_texts:
            return f"expected the indices of truncated texts below {num_texts}, got {index}"
    for error in vectors.errors:
        if not 0 <= error["index"] < num_texts:
            return f"expected the indices of texts with errors below {num_texts}, got {error['index']}"
    return None
