"""Writes vectors to a file batch by batch, and reads one vector without loading the whole file. Needs a server.

    bert-serving-start & python examples/vectors_on_disk.py [-port 5555] [-port_out 5556]

It prints whether the vector is the right one. The file has NumPy's .npy format: a header and the raw numbers,
which many other programs can read.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from bert_serving.client import BertClient
from common import ports, python_sentences
from numpy.lib.format import open_memmap


def main() -> None:
    sentences = python_sentences()[:500]
    with BertClient(**ports(__doc__)) as client, tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vectors.npy"
        dimension = client.encode(sentences[:1]).shape[1]
        file = open_memmap(path, mode="w+", dtype=np.float32, shape=(len(sentences), dimension))
        for start in range(0, len(sentences), 50):
            file[start : start + 50] = client.encode(sentences[start : start + 50])
        file.flush()
        again = np.load(path, mmap_mode="r")
        same = np.allclose(again[123], client.encode([sentences[123]])[0], atol=0.01)
        print(f"{len(file)} vectors written, {again.shape} read, vector 123 belongs to sentence 123: {same}")


if __name__ == "__main__":
    main()
