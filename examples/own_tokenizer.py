"""Sends texts that your own tokenizer has split, and prints the tokens that the model read. Needs a server.

    bert-serving-start & python examples/own_tokenizer.py [-port 5555] [-port_out 5556]

The server does not change the tokens: it does not lower-case them, and a token that is not in the vocabulary
becomes [UNK].
"""

from __future__ import annotations

from bert_serving.client import BertClient
from common import ports


def main() -> None:
    texts = ["Hello world", "Tokenize this, please"]
    mine = [text.lower().replace(",", " ,").split() for text in texts]
    with BertClient(**ports(__doc__)) as client:
        vectors, tokens = client.encode(mine, is_tokenized=True, show_tokens=True)
        print(vectors.shape)
        for sent, seen in zip(mine, tokens, strict=True):
            print(f"sent {sent}\n seen {seen}")


if __name__ == "__main__":
    main()
