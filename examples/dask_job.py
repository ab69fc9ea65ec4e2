"""Dask computes the vectors of a folder of Parquet files, on all workers of a cluster. Needs dask, and no server.

    python examples/dask_job.py REVIEWS/ VECTORS/ [--text_column text] [--cluster tcp://scheduler:8786]

Each file becomes a folder with the same name, in which the rows have the column `vector`, a list of fixed size. A
folder gets its name when it is complete: a job that was killed goes on with the files that have none. It does not
notice another model or option: take a new target then. Without --cluster, the threads of this process work: one
computes while others read and write.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import dask.dataframe as dd
import pandas as pd
import pyarrow as pa
from bert_serving.server.files import Embed


def with_vectors(frame: pd.DataFrame, embed: Embed) -> pd.DataFrame:
    """Return a partition with the column `vector`."""
    vectors = embed(pa.Table.from_pandas(frame, preserve_index=False))["vector"]
    return frame.assign(vector=pd.array(vectors, dtype=pd.ArrowDtype(vectors.type)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--text_column", default="text")
    parser.add_argument("--model_dir", help="default: the demo model")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--compile", default="auto", help="see bert-serving-encode -h")
    parser.add_argument("--cluster", help="address of the scheduler of a Dask cluster")
    args = parser.parse_args()
    if args.cluster:
        from dask.distributed import Client

        Client(args.cluster)
    args.target.mkdir(exist_ok=True)
    embed = Embed(args.text_column, model_dir=args.model_dir, dtype=args.dtype, compile=args.compile)
    for source in sorted(args.source.glob("*.parquet")):
        target, partial = args.target / source.name, args.target / f".{source.name}.partial"
        if target.exists():
            continue
        shutil.rmtree(partial, ignore_errors=True)
        frame = dd.read_parquet(source, split_row_groups=True)
        meta = frame._meta.assign(vector=pd.Series([], dtype=pd.ArrowDtype(embed.field.type)))
        frame = frame.map_partitions(with_vectors, embed, meta=meta)
        frame.to_parquet(partial, schema={"vector": embed.field.type})
        partial.rename(target)
        print(f"written: {target.name}", flush=True)


if __name__ == "__main__":
    main()
