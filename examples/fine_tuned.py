"""Fine-tunes the demo model to classify three subjects, serves it, and prints the predicted subject of new texts.

    python examples/fine_tuned.py

It starts a server itself. The training changes all weights and adds a classification head. The script saves a
folder as other training programs do, and the server loads this folder. To get vectors instead of probabilities,
start the server with another -pooling_strategy, or pass the folder as -tuned_model_dir together with the original
-model_dir.
"""

from __future__ import annotations

import tempfile

import torch
from bert_serving.client import BertClient
from bert_serving.server import BertServer
from bert_serving.server.helper import get_args_parser
from bert_serving.server.model.demo import find_demo_model
from common import free_ports
from text_classifier import TRAINING, UNSEEN
from transformers import AutoModelForSequenceClassification, AutoTokenizer

STEPS = 10


def fine_tune(folder: str) -> None:
    """Train the demo model on the labelled texts, and save it with its tokenizer in the folder."""
    labels = list(TRAINING)
    names = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(find_demo_model())
    model = AutoModelForSequenceClassification.from_pretrained(find_demo_model(), num_labels=len(labels), **names)
    texts = [text for of_label in TRAINING.values() for text in of_label]
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    expected = torch.tensor([i for i, of_label in enumerate(TRAINING.values()) for _ in of_label])
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4)
    for _ in range(STEPS):
        loss = model(**inputs, labels=expected).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    print(f"loss after {STEPS} steps: {loss.item():.3f}")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        fine_tune(folder)
        args = get_args_parser().parse_args(["-model_dir", folder, "-pooling_strategy", "CLASSIFICATION", "-cpu"])
        args.port, args.port_out = free_ports()
        with BertServer(args), BertClient(port=args.port, port_out=args.port_out) as client:
            labels = client.server_config["labels"]
            probabilities = client.encode(list(UNSEEN))
    found = [labels[i] for i in probabilities.argmax(axis=1)]
    for text, label, row in zip(UNSEEN, found, probabilities, strict=True):
        print(f"{label:>9} {row.max():.0%}  {text}")
    right = sum(a == b for a, b in zip(found, UNSEEN.values(), strict=True))
    print(f"{right} of {len(UNSEEN)} right")


if __name__ == "__main__":
    main()
