"""A model of your own: pre-trained on your texts, fine-tuned with your labels, and served.

    python examples/applications/train_your_own.py --output trained    # seven minutes on two cores

Starts its servers itself. Needs the extras `examples` and `train`. docs/applications/own_model.md has the result.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
import transformers as hf
from bert_serving.server import Encoder
from bert_serving.server.model.demo import find_demo_model
from classify_reviews import of_vectors, of_words
from corpora import movie_reviews
from report import Vectors, draw_bars, parser_of, show, started
from torch.nn.functional import cross_entropy, normalize

DEMO = find_demo_model()
TOKENIZER = hf.AutoTokenizer.from_pretrained(DEMO)
BF16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()  # on other processors it is slow
BLOCK = 128  # tokens that the model reads at once


def losses_of(model: Any, inputs: Any) -> torch.Tensor:
    """Return the loss of each masked token. Only for these, one of seven, the vocabulary's logits are computed."""
    is_masked = inputs["labels"] != -100  # the collator's label of all other tokens
    hidden = model.bert(inputs["input_ids"], inputs["attention_mask"]).last_hidden_state
    return cross_entropy(model.cls(hidden[is_masked]), inputs["labels"][is_masked], reduction="none")


class MaskedTrainer(hf.Trainer):
    """Trains a masked language model without the logits that the loss does not need."""

    def compute_loss(self, model: Any, inputs: Any, *_: object, **__: object) -> torch.Tensor:  # noqa: D102
        with self.accelerator.autocast():
            return losses_of(model, inputs).mean()


def arguments_of(folder: Path, epochs: float, rate: float) -> hf.TrainingArguments:
    """Return how to train. The values are usual ones; no result was used to choose them."""
    how = {"num_train_epochs": epochs, "learning_rate": rate, "warmup_steps": 0.1, "bf16": BF16, "use_cpu": True}
    order = {"per_device_train_batch_size": 32, "train_sampling_strategy": "group_by_length"}
    quiet = {"save_strategy": "no", "logging_strategy": "no", "report_to": "none", "disable_tqdm": True}
    return hf.TrainingArguments(output_dir=str(folder), **how, **order, **quiet)


def pre_train(texts: list[str], held_out: list[str], folder: Path) -> None:
    """Continue masked-language-model pre-training of the demo model with a new head, and save the result.

    The baseline guesses each masked token by its frequency in the training texts.
    """
    cut = partial(TOKENIZER, truncation=True, max_length=BLOCK, return_overflowing_tokens=True)
    blocks, test = ([{"input_ids": ids} for ids in cut(part)["input_ids"]] for part in (texts, held_out))
    collator = hf.DataCollatorForLanguageModeling(TOKENIZER)
    hf.set_seed(0)
    batches = [collator(test[start : start + 32]) for start in range(0, len(test), 32)]
    hidden = torch.cat([batch["labels"][batch["labels"] != -100] for batch in batches])
    ids = np.concatenate([block["input_ids"][1:-1] for block in blocks])
    counts = 1 + np.bincount(ids, minlength=len(TOKENIZER))  # no token is impossible
    hf.set_seed(0)  # the held-out texts do not change the new head
    model = hf.AutoModelForMaskedLM.from_pretrained(DEMO)
    trainer = MaskedTrainer(model, arguments_of(folder, 1, 5e-4), collator, blocks, processing_class=TOKENIZER)
    trainer.train()
    trainer.save_model()
    with torch.inference_mode():
        loss = torch.cat([losses_of(model.eval(), batch) for batch in batches]).mean().item()
    found = {"by frequency": float(np.log(counts.sum() / counts[hidden]).mean()), "pre-trained": loss}
    print(f"{len(blocks):,} blocks of text, and {len(hidden):,} masked tokens in {len(test):,} others")
    show({name: {"perplexity": float(np.exp(value))} for name, value in found.items()})


def fine_tune(start: Path, train: list[Any], test: list[Any], epochs: float, folder: Path) -> Vectors:
    """Fine-tune a classifier, save it in the folder, and return the labels that it predicts for the test texts."""
    hf.set_seed(0)
    names = {"id2label": {0: "negative", 1: "positive"}, "label2id": {"negative": 0, "positive": 1}}
    model = hf.AutoModelForSequenceClassification.from_pretrained(start, **names)
    how = arguments_of(folder, epochs, 1e-4)
    trainer = hf.Trainer(model, how, train_dataset=train, processing_class=TOKENIZER)
    trainer.train()
    trainer.save_model()
    saved = hf.AutoModelForSequenceClassification.from_pretrained(folder)
    # In float32, and in the order of the texts: "group_by_length" would also sort the predictions.
    exact = hf.TrainingArguments(str(folder), use_cpu=True, report_to="none", disable_tqdm=True)
    return hf.Trainer(saved, exact, processing_class=TOKENIZER).predict(test).predictions.argmax(1)


def serve(texts: list[str], model: Any, labels: Vectors | None, *flags: object) -> dict[str, float]:
    """Serve a model, and compare its vectors with those of Transformers, and its labels with the trainer's."""
    with started(*flags, "-cpu", "-dtype", "float32", "-compile", "off", "-pooling_layer", -1) as (client, url):
        vectors = client.encode(texts, pooling_strategy="REDUCE_MEAN", normalize=True)
        if labels is not None:
            body = {"inputs": [[text] for text in texts]}
            scores = httpx.post(f"{url}/predict", json=body, timeout=600).json()  # the best label first
    inputs = TOKENIZER(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        hidden = model.base_model(**inputs).last_hidden_state * inputs["attention_mask"].unsqueeze(-1)  # (B, T, H)
    found = {"largest error x 1e6": 1e6 * float(np.abs(vectors - normalize(hidden.sum(1)).numpy()).max())}
    if labels is not None:
        positive = ("positive", "LABEL_1")  # a state dict does not name its labels
        found["equal labels"] = float(np.mean([best["label"] in positive for best, _ in scores] == labels))
    return found


def main() -> None:
    parser = parser_of(__doc__, "own_model.svg", uses_server=False)
    parser.add_argument("--texts", type=int, default=800, help="reviews without labels, for pre-training")
    parser.add_argument("--labelled", type=int, default=8530, help="sentences, the first sixth of them for tests")
    parser.add_argument("--epochs", type=float, default=2, help="of fine-tuning; pre-training has one")
    parser.add_argument("--output", type=Path, default=Path("trained"))
    args = parser.parse_args()
    own, tuned, state = (args.output / name for name in ("pre-trained", "classifier", "state-dict"))
    reviews, _ = movie_reviews("imdb")
    pre_train(reviews[60 : 60 + args.texts], reviews[:60], own)
    texts, targets = movie_reviews("rotten_tomatoes")
    texts, labels = texts[: args.labelled], np.array(targets[: args.labelled])
    ids = TOKENIZER(texts, truncation=True, max_length=BLOCK)["input_ids"]
    rows = [{"input_ids": each, "labels": int(label)} for each, label in zip(ids, labels, strict=True)]
    n = len(texts) // 6
    vectors = list(Encoder(device="cpu", compile="off").encode(texts, normalize=True))
    found = {
        "vectors, linear model": of_vectors().fit(vectors[n:], labels[n:]).predict(vectors[:n]),
        "words, linear model": of_words().fit(texts[n:], labels[n:]).predict(texts[:n]),
        "fine-tuned": fine_tune(DEMO, rows[n:], rows[:n], args.epochs, args.output / "fine-tuned"),
        "pre-trained and fine-tuned": fine_tune(own, rows[n:], rows[:n], args.epochs, tuned),
    }
    print(f"{len(texts) - n:,} labelled sentences, and {n:,} others for tests")
    show(results := {name: {"accuracy": float(np.mean(each == labels[:n]))} for name, each in found.items()})
    draw_bars(results, "accuracy", args.picture)
    one, two = (found[name] == labels[:n] for name in ("fine-tuned", "pre-trained and fine-tuned"))
    print(f"{np.sum(two > one)} sentences are right only with pre-training, {np.sum(one > two)} only without")
    state.mkdir(exist_ok=True)
    model = hf.AutoModelForSequenceClassification.from_pretrained(tuned)
    torch.save(model.state_dict(), state / "pytorch_model.bin")
    sent = texts[:n][:200]
    check = partial(serve, sent, model, found["pre-trained and fine-tuned"][:200])
    head = ("-num_labels", 2, "-pooling_strategy", "CLASSIFICATION")  # what a state dict does not say
    show({"pre-trained": serve(sent, hf.AutoModelForMaskedLM.from_pretrained(own), None, "-model_dir", own)})
    base = partial(check, "-model_dir", DEMO, "-tuned_model_dir")
    show({"folder": check("-model_dir", tuned), "-tuned_model_dir": base(tuned), "state dict": base(state, *head)})


if __name__ == "__main__":
    main()
