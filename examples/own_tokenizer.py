"""Your own tokenizer in front: send lists of tokens, and see which tokens the model had.

    bert-serving-start & python examples/own_tokenizer.py [-port 5555] [-port_out 5556]

Tokens are looked up as they are: what is not in the vocabulary becomes [UNK], and capitals are not lowered.
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
