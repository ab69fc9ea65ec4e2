"""Gets a vector for each token and compares the vectors of one word in three sentences. Needs a server.

bert-serving-start & python examples/token_vectors.py [-port 5555] [-port_out 5556]
"""

from __future__ import annotations

import numpy as np
from bert_serving.client import BertClient
from common import ports

SENTENCES = [
    "He sat on the bank of the river.",
    "They fished from the bank all day.",
    "She paid the money into the bank.",
]


def main() -> None:
    with BertClient(**ports(__doc__)) as client:
        banks = []
        for sentence, found in zip(SENTENCES, client.encode_tokens(SENTENCES), strict=True):
            at = found.tokens.index("bank")
            start, stop = (found.offsets or [])[at]
            print(f"token {at} of {len(found.tokens)} is {sentence[start:stop]!r}, characters {start} to {stop}")
            vector = found.vectors[at]
            banks.append(vector / np.linalg.norm(vector))
        rivers, money = banks[0] @ banks[1], banks[0] @ banks[2]
        print(f"cosine of two banks of a river: {rivers:.2f}; of a river bank and a money bank: {money:.2f}")

        # As in bert-as-service: one array, with zeros after the end of shorter sentences.
        print("as one padded array:", client.encode(SENTENCES, pooling_strategy="NONE").shape)


if __name__ == "__main__":
    main()
