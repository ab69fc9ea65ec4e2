"""Spark computes the vectors of a folder of Parquet files, on all machines of a cluster. Needs pyspark, no server.

    PYSPARK_PYTHON=PATH/TO/python spark-submit examples/spark_job.py REVIEWS/ VECTORS/ [--text_column text] [--udf]

Each file becomes a folder with the same name, in which the rows have the column `vector`. Spark writes `_SUCCESS`
when such a folder is complete: a job that was killed goes on with the files that have none. It does not notice
another model or option: take a new target then. Each Python process of Spark loads the model once. --udf: as a
function of a column, which also works in SQL; then no text may be null.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from bert_serving.server.files import Embed
from pyspark.ml.functions import predict_batch_udf
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import ArrayType, FloatType, StructField, StructType


def with_vectors(frame: DataFrame, embed: Embed) -> DataFrame:
    """Add the vectors with mapInArrow: no value is converted on its way."""

    def embed_all(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in map(embed, batches):
            vectors = batch["vector"].cast(pa.list_(pa.float32()))  # Spark has no lists of fixed size
            yield batch.drop_columns("vector").append_column("vector", vectors)

    schema = StructType([*frame.schema.fields, StructField("vector", ArrayType(FloatType()))])
    return frame.mapInArrow(embed_all, schema)


def with_vectors_by_udf(frame: DataFrame, embed: Embed, text_column: str) -> DataFrame:
    """Add the vectors with a function of a column."""

    def predict(texts: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        column = embed(pa.table({text_column: texts.tolist()}))["vector"].combine_chunks()
        rows: np.ndarray[Any, Any] = column.values.to_numpy().reshape(len(column), -1)
        return rows

    def make_predict() -> Callable[[Any], Any]:
        return predict

    vectors = predict_batch_udf(make_predict, return_type=ArrayType(FloatType()), batch_size=1000)
    return frame.withColumn("vector", vectors(text_column))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--text_column", default="text")
    parser.add_argument("--model_dir", help="default: the demo model")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--compile", default="auto", help="see bert-serving-encode -h")
    parser.add_argument("--udf", action="store_true")
    args = parser.parse_args()
    embed = Embed(args.text_column, model_dir=args.model_dir, dtype=args.dtype, compile=args.compile)
    spark = SparkSession.builder.config("spark.sql.execution.arrow.maxRecordsPerBatch", 1000).getOrCreate()
    for source in sorted(args.source.glob("*.parquet")):
        target = args.target / source.name
        if (target / "_SUCCESS").exists():
            continue
        frame = spark.read.parquet(str(source))
        found = with_vectors_by_udf(frame, embed, args.text_column) if args.udf else with_vectors(frame, embed)
        found.write.mode("overwrite").parquet(str(target))
        print(f"written: {target.name}")
    spark.stop()


if __name__ == "__main__":
    main()
