"""Reads windows of rows, lets an engine compute their vectors, stores them; goes on where a run has stopped."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from .engines import Computed, Engine, engine_of
from .options import FileJob
from .outputs import VECTOR, check_output, vector_column, write_output
from .parts import Parts
from .progress import Progress
from .sources import Source, texts_of


@dataclass(frozen=True, slots=True)
class Outcome:
    """How many rows there were, and how many of them have no vector."""

    num_rows: int
    num_bad: int


def encode_files(job: FileJob) -> Outcome:
    """Write the vectors of a job's texts. Raises FileError; what is finished then is kept for the next run."""
    output = Path(job.output)
    source = Source(job.inputs, job.input_format, job.text_column, job.columns)
    check_output(output, num_columns=len(source.columns))
    engine = engine_of(job)
    try:
        parts = Parts(output, _identity(job, source, engine))
        _encode(job, source, engine, parts)
    finally:
        engine.close()
    write_output(output, parts)
    return Outcome(parts.num_rows, parts.num_bad)


def _identity(job: FileJob, source: Source, engine: Engine) -> dict[str, object]:
    """Return what must not change between a run and the run that goes on."""
    settings = job.model_dump(
        exclude={"inputs", "output", "server", "device", "window", "compile", "compile_cache"}
    )
    # A pipe cannot be read again; the time of its process makes each of them another input.
    files = [[str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns] for path in source.paths]
    return {"input": files, "text_column": source.text_column, "model": engine.fingerprint, **settings}


def _encode(job: FileJob, source: Source, engine: Engine, parts: Parts) -> None:
    with ThreadPoolExecutor(1) as writer, Progress(source.num_rows, parts.num_rows) as progress:
        stored = None
        for window in _windows(source, job.window, skip=parts.num_rows):
            texts, bad = texts_of(window[source.text_column])
            computed = _computed(engine, texts, bad, dedup=job.dedup)
            bad |= computed.errors
            rows = computed.rows.astype(job.precision, copy=False)
            columns = [window[name] for name in source.columns]
            table = pa.table([*columns, vector_column(rows, list(bad))], names=[*source.columns, VECTOR])
            if stored is not None:
                stored.result()  # raises what writing has raised
            stored = writer.submit(parts.add, table, bad)
            progress.add(len(table), computed.num_tokens)
        if stored is not None:
            stored.result()


def _computed(engine: Engine, texts: list[str], bad: dict[int, str], *, dedup: bool) -> Computed:
    """Return the vectors of the texts. Texts of bad rows are not computed."""
    if not dedup and not bad:
        return engine.encode(texts)
    good = [i for i in range(len(texts)) if i not in bad]
    places = {text: i for i, text in enumerate(dict.fromkeys(texts[i] for i in good))}
    unique = list(places) if dedup else [texts[i] for i in good]
    found = engine.encode(unique)
    of_good = [places[texts[i]] for i in good] if dedup else range(len(good))
    rows = np.full((len(texts), found.rows.shape[1]), np.nan, np.float32)
    rows[good] = found.rows[list(of_good)]
    errors = {i: found.errors[j] for i, j in zip(good, of_good, strict=True) if j in found.errors}
    return Computed(rows, errors, found.num_tokens)


def _windows(source: Source, size: int, *, skip: int) -> Iterator[pa.Table]:
    """Yield tables of `size` rows, the last one with fewer, without the first `skip` rows."""
    waiting: list[pa.RecordBatch] = []
    num_waiting = 0
    for batch in source.batches():
        if skip >= len(batch):
            skip -= len(batch)
            continue
        waiting.append(batch.slice(skip))
        num_waiting += len(waiting[-1])
        skip = 0
        if num_waiting >= size:
            table = pa.Table.from_batches(waiting)
            for start in range(0, num_waiting - num_waiting % size, size):
                yield table.slice(start, size)
            rest = table.slice(num_waiting - num_waiting % size)
            waiting, num_waiting = rest.to_batches(), len(rest)
    if num_waiting:
        yield pa.Table.from_batches(waiting)
