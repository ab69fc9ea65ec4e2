"""Shows how well each layer of the model separates two subjects, by serving one layer after the other.

    python examples/layers.py

For each layer it starts a server, encodes sentences about two subjects, and prints the distance
between the subjects' means on the first principal component, divided by the subjects' spread.
"""

from __future__ import annotations

import numpy as np
from bert_serving.client import BertClient
from bert_serving.server import BertServer
from bert_serving.server.helper import get_args_parser
from common import free_ports
from text_classifier import TRAINING

LAYERS = range(-1, -7, -1)  # all layers of the demo model; a BERT-base has 12


def separation(vectors: np.ndarray, is_first: np.ndarray) -> float:
    """Return the distance between two classes' means, divided by the spread, on the axis of largest variance."""
    centred = vectors - vectors.mean(0)
    axis = np.linalg.svd(centred, full_matrices=False)[2][0]
    along = centred @ axis
    a, b = along[is_first], along[~is_first]
    return float(abs(a.mean() - b.mean()) / (a.std() + b.std()))


def main() -> None:
    texts = [*TRAINING["kitchen"], *TRAINING["computers"]]
    is_first = np.arange(len(texts)) < len(TRAINING["kitchen"])
    args = get_args_parser().parse_args(["-cpu"])
    args.port, args.port_out = free_ports()
    for layer in LAYERS:
        args.pooling_layer = [layer]
        with BertServer(args), BertClient(port=args.port, port_out=args.port_out) as client:
            print(f"layer {layer}: {separation(client.encode(texts), is_first):.2f}")


if __name__ == "__main__":
    main()
