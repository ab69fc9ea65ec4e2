"""Trains a linear classifier on sentence vectors and prints its predictions. Needs a server and scikit-learn.

    bert-serving-start & python examples/text_classifier.py [-port 5555] [-port_out 5556]

The labelled texts are in this file. There are only a few, so the training takes about a second.
"""

from __future__ import annotations

from bert_serving.client import ConcurrentBertClient
from common import ports
from sklearn.linear_model import LogisticRegression

TRAINING = {
    "sport": [
        "The striker scored twice before half-time.",
        "She won the marathon in just over two hours.",
        "The goalkeeper saved a penalty in the last minute.",
        "Our team lost the final after extra time.",
        "He trains every morning for the swimming championship.",
        "The cyclist broke away on the last climb.",
    ],
    "kitchen": [
        "Fry the onions until they are golden.",
        "Add a pinch of salt and stir the soup.",
        "The bread has to rise for an hour.",
        "This curry tastes better with fresh ginger.",
        "Bake the cake at a moderate heat.",
        "Chop the garlic and melt the butter.",
    ],
    "computers": [
        "The compiler reports a missing semicolon.",
        "Our database ran out of disk space last night.",
        "She wrote a script that renames the files.",
        "The network card needs a new driver.",
        "A thread waits for the lock for ever.",
        "He upgraded the server to a faster processor.",
    ],
}
UNSEEN = {
    "The referee showed him a red card.": "sport",
    "They beat the champions three to one.": "sport",
    "Whisk the eggs with sugar and flour.": "kitchen",
    "The sauce needs some pepper and lemon.": "kitchen",
    "The program crashes when the file is empty.": "computers",
    "Install the update and restart your laptop.": "computers",
}


def main() -> None:
    texts = [text for of_label in TRAINING.values() for text in of_label]
    labels = [label for label, of_label in TRAINING.items() for _ in of_label]
    with ConcurrentBertClient(**ports(__doc__)) as client:
        classifier = LogisticRegression(max_iter=1000).fit(client.encode(texts), labels)
        predicted = classifier.predict(client.encode(list(UNSEEN)))
    for text, label in zip(UNSEEN, predicted, strict=True):
        print(f"{label:>9}  {text}")
    right = sum(a == b for a, b in zip(predicted, UNSEEN.values(), strict=True))
    print(f"{right} of {len(UNSEEN)} right")


if __name__ == "__main__":
    main()
