"""Embeds a Parquet file with Ray Data, and continues after it was killed: `python -m tests.support.embed_files`.

Arguments: the file, the folders of the output, of the checkpoints and of the model, and the number of rows of
a block, which are written together.
"""

from __future__ import annotations

import sys

import ray
from bert_serving.ray import Embed
from ray.data.checkpoint import CheckpointConfig


def main(source: str, output: str, checkpoints: str, model_dir: str, num_rows: str) -> None:
    """Write the rows of the file with their vectors, apart from those that an earlier run has written."""
    ray.init(num_cpus=4, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False)
    context = ray.data.DataContext.get_current()
    context.checkpoint_config = CheckpointConfig(
        id_column="id", checkpoint_path=checkpoints, delete_checkpoint_on_success=False
    )
    texts = ray.data.read_parquet(source).repartition(target_num_rows_per_block=int(num_rows))
    vectors = texts.map_batches(
        Embed,
        batch_format="pyarrow",
        batch_size=None,
        concurrency=1,
        fn_constructor_kwargs={"model_dir": model_dir, "dtype": "float32", "compile": "off"},
    )
    vectors.write_parquet(output)


if __name__ == "__main__":
    main(*sys.argv[1:])
