"""Search by meaning: prints the two questions of a list that are closest to what a user asked. Needs a server.

bert-serving-start & python examples/faq_search.py [-port 5555] [-port_out 5556]
"""

from __future__ import annotations

import numpy as np
from bert_serving.client import BertClient
from common import ports

QUESTIONS = [
    "How do I start the server?",
    "Can I use my own fine-tuned model?",
    "How do I run the service in a container?",
    "Is it possible to get a vector for each token?",
    "How many clients can ask at the same time?",
    "Why are long sentences cut?",
    "Do I need a graphics card?",
    "Can I call it from other languages than Python?",
]
ASKED = {
    "does it work without a GPU": "Do I need a graphics card?",
    "docker image": "How do I run the service in a container?",
    "I want word embeddings instead of sentence embeddings": "Is it possible to get a vector for each token?",
    "my paragraph seems to be truncated": "Why are long sentences cut?",
}


def main() -> None:
    with BertClient(**ports(__doc__)) as client:
        questions = client.encode(QUESTIONS, normalize=True)
        for asked in ASKED:
            scores = questions @ client.encode([asked], normalize=True)[0]  # cosines: all vectors have length 1
            best = np.argsort(-scores)[:2]
            print(f"{asked!r}")
            for i in best:
                print(f"    {scores[i]:.2f}  {QUESTIONS[i]}")


if __name__ == "__main__":
    main()
