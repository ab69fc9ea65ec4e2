"""Texts in, vectors out: one model on one device, with no knowledge of sockets or jobs.

    prepare   options to a recipe, texts to token ids
    forward   plan micro-batches -> hidden states of each -> pool -> vectors in the caller's order

An error of one text is a value in its place, so that it costs nobody else's text anything.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bert_serving.protocol import (
    EncodeOptions,
    Rows,
    Text,
    TokenVectors,
    check_spans,
    has_lone_surrogate,
    options_from_json,
    pooling_name,
)
from transformers import PreTrainedModel

from ..model.errors import ModelError
from ..model.folder import (
    SentenceTransformersConfig,
    check_max_seq_len,
    first_position,
    read_sentence_transformers,
    refuse_code,
    resolve_model_dir,
    resolve_tuned_model_dir,
    unnamed_model_type,
)
from .checkpoint import Checkpoint, drop_position_embeddings
from .classifier import classifier_of
from .dense import Dense, load_head
from .device import CPU_MICRO_BATCH_TOKENS, fitting_tokens, pick_device, pick_dtype
from .micro_batches import Budget, PreparedText, run_micro_batches
from .model_module import import_model_module
from .pooling_plan import FROM_FIRST, Pipeline, PoolingPlanner
from .sequences import RequestError, TokenizedText, TokenSequence
from .splade import SpladeHead
from .tokenizer import Tokenizer
from .transformer import Transformer

log = logging.getLogger(__name__)

_MAX_SPAN_TOKENS = 1 << 18  # of one text, spans that overlap counted twice
_MAX_TOKEN_BYTES = 512 << 20

# Short and long, of equal and of different length, longer than the window of local attention, and a pair.
_PROBES = ["a", "Hello world!", "one two three", "four five six", "The quick brown fox jumps. " * 4, "word " * 600]
_PROBES += ["the first ||| and the second"]


class EncodingError(Exception):
    """The model fails on a text."""


class Encoder:
    """Sentence vectors of one model.

    The arguments are the server's settings of these names:

    model_dir: a folder, a hub name, or None for the demo model.
    revision: commit, tag or branch of a hub name.
    tuned_model_dir: a folder whose weights are taken instead of the model's own.
    config_name: the config's file; None: config.json, or else Google's bert_config.json.
    ckpt_name: a TensorFlow checkpoint in the folder of the weights, without `.index`; None: bert_model.ckpt, if
        there are no other weights.
    model_module: a module, or its .py file, that registers an architecture with Transformers.
    trust_remote_code: run the code that comes with the model.
    device: "auto", "cpu" or "cuda:N".
    dtype: "auto", "float32", "float16" or "bfloat16", of the forward pass; vectors are always float32.
    max_seq_len: longest sequence in tokens, special ones included; None: the model's own; "NONE": as many as
        it has positions for.
    max_batch_tokens: most tokens in one forward pass; it bounds the memory.
    pooling_strategy: one or several names, see `encode`; "auto": the model's own, or REDUCE_MEAN.
    pooling_layer: layers that are pooled, -1 the last; None: -2, unless the model pools for itself.
    num_labels: labels that the classification head must have; None: as many as it has.
    normalize: divide vectors by their L2 norm; None: as the model does.
    all_layers: load layers above the highest that is pooled, so that `encode` may choose them.
    mask_cls_sep: special tokens are seen neither by other tokens nor by the pooling.
    no_special_token: texts that come as tokens get no special tokens around them.
    no_position_embeddings: leave out the position embeddings.
    cased_tokenization: do not lower-case, whatever the model's tokenizer says.

    Raises ModelError, in one line, for anything that keeps the model from being used as asked.

    >>> Encoder().encode(["First do it", "then do it right"]).shape
    (2, 384)
    """

    def __init__(
        self,
        model_dir: str | Path | None = None,
        *,
        revision: str | None = None,
        tuned_model_dir: str | Path | None = None,
        config_name: str | None = None,
        ckpt_name: str | None = None,
        model_module: str | Path | None = None,
        trust_remote_code: bool = False,
        device: str = "auto",
        dtype: str = "auto",
        max_seq_len: int | str | None = None,
        max_batch_tokens: int = 16384,
        pooling_strategy: str | Sequence[str] = "auto",
        pooling_layer: Sequence[int] | None = None,
        num_labels: int | None = None,
        normalize: bool | None = None,
        all_layers: bool = False,
        mask_cls_sep: bool = False,
        no_special_token: bool = False,
        no_position_embeddings: bool = False,
        cased_tokenization: bool = False,
    ) -> None:
        tuned_dir = resolve_tuned_model_dir(
            None if tuned_model_dir is None else str(tuned_model_dir), ckpt_name=ckpt_name
        )
        folder = resolve_model_dir(
            None if model_dir is None else str(model_dir),
            revision=revision,
            trust_remote_code=trust_remote_code,
            needs_weights=tuned_dir is None,
            config_name=config_name,
            ckpt_name=ckpt_name,
        )
        if model_module is not None:
            import_model_module(str(model_module))
        elif not trust_remote_code:
            refuse_code(folder)
        self.device = pick_device(device)
        self.dtype = pick_dtype(dtype, self.device)
        self.max_seq_len = check_max_seq_len(folder, max_seq_len, config_name)
        self._own = read_sentence_transformers(folder)
        transformer_dir = self._own.transformer_dir if self._own else folder
        self._checkpoint = Checkpoint(transformer_dir, tuned_dir, trust_remote_code, config_name, ckpt_name)
        self._first_position = first_position(transformer_dir, config_name)
        self._hides_specials = mask_cls_sep
        self._drops_positions = no_position_embeddings
        self._tokenizer = Tokenizer(
            transformer_dir,
            max_seq_len=self.max_seq_len,
            do_lower_case=self._own.do_lower_case if self._own else False,
            cased=cased_tokenization,
            no_special_token=no_special_token,
            trust_remote_code=trust_remote_code,
            model_type=unnamed_model_type(transformer_dir, config_name),
        )
        self._recipes = PoolingPlanner(
            own=_pipeline(self._own, self.device) if self._own else None,
            defaults=_defaults(pooling_strategy, pooling_layer, normalize),
            num_layers=self._checkpoint.num_layers,
        )
        highest = self._checkpoint.num_layers - 1 if all_layers else self._recipes.highest
        self._num_layers = self._checkpoint.layers_to_load(highest=highest)
        self._num_labels = num_labels
        #: Names of the labels, where the model has a head for sequence classification.
        self.labels: tuple[str, ...] = ()
        self._transformer = self._load()
        self._exact: Transformer | None = None
        num_ids = self._transformer.num_ids
        #: How many token ids have an embedding, where the tokenizer has more.
        self._max_ids = num_ids if num_ids is not None and num_ids < self._tokenizer.num_ids else None
        #: Smallest cosine of a probe's vector with that of the padded float32 model.
        self.parity = self._transformer.choose_execution(self._probes(), self.dtype)
        hidden_size = self._transformer.hidden_size
        num_labels_found = len(self.labels)
        widths = {"CLS_POOLED": hidden_size, "REGRESSION": 1}
        widths |= {"CLASSIFICATION": num_labels_found, "LOGITS": num_labels_found}
        head_widths = {name: widths[name] for name in self._transformer.heads}
        if self._transformer.terms is not None:
            head_widths["SPLADE"] = self._transformer.terms.num_terms
        self._recipes.loaded(self._num_layers, hidden_size=hidden_size, head_widths=head_widths)
        self._budget = Budget(self._tokens_at_once(max_batch_tokens))
        self.encode(["a"])  # what does not fit together should be seen here, not by the first request

    # -- for everybody ---------------------------------------------------------------------------------

    def encode(
        self,
        texts: Sequence[Text],
        *,
        pooling_strategy: str | Sequence[str] | None = None,
        pooling_layer: int | Sequence[int] | None = None,
        normalize: bool | None = None,
        dimensions: int | None = None,
        truncate: str = "right",
        long_text: str = "truncate",
        prompt: str | None = None,
        prompt_name: str | None = None,
        pairs: bool = True,
    ) -> Rows:
        """Return the vectors of the texts, (B, D) float32, in the order of the texts.

        A text is a string; a pair of them, {"text": ..., "text_pair": ...}; a list of tokens that are looked up in
        the vocabulary as they are; or a list of ids. What is left out is as the encoder was made; but whoever
        names a strategy or a layer takes leave of the model's own pooling, dense layers and normalizing.

        pooling_strategy: REDUCE_MEAN, REDUCE_MAX, REDUCE_MEAN_MAX, CLS_TOKEN (FIRST_TOKEN), SEP_TOKEN
            (LAST_TOKEN), CLS_POOLED, MEAN_SQRT_LEN or WEIGHTED_MEAN; CLASSIFICATION (probabilities of labels)
            or REGRESSION, of an encoder that was made with them; "auto": the model's own; several stand
            side by side, from one forward pass. NONE: a vector for each token, (B, T, D), zero behind the
            end of a text; see `encode_tokens`. LOGITS: the raw output of a classification head. SPLADE: the
            weight of each term of the vocabulary, of an encoder that was made with it.
        pooling_layer: layers, -1 the last, concatenated in this order.
        normalize: divide each vector by its L2 norm.
        dimensions: keep so many leading components, of a model that was trained for that (Matryoshka).
        truncate: the side on which a text is cut that is longer than `max_seq_len`, with a warning; "error" to
            refuse it.
        long_text: "chunk" reads all of a long text, in overlapping windows whose vectors are averaged by
            length; a pair of sentences is cut all the same.
        prompt: goes in front of each text. prompt_name: one of the prompts that the model comes with.
        pairs: "a ||| b" is a pair of sentences.

        Raises ValueError or TypeError for options and texts that do not fit, and EncodingError where the
        model gives no finite vector.
        """
        options = options_from_json(
            {
                "pooling_strategy": pooling_strategy,
                "pooling_layer": pooling_layer,
                "normalize": normalize,
                "dimensions": dimensions,
                "truncate": truncate,
                "long_text": long_text,
                "prompt": prompt,
                "prompt_name": prompt_name,
                "pairs": pairs,
            }
        )
        prepared = self.prepare(_checked(texts), options)
        answers = self._answers(prepared)
        if cut := [i for i, task in enumerate(prepared) if isinstance(task, PreparedText) and task.text.truncated]:
            first = f"first texts[{cut[0]}]"
            warnings.warn(f"{len(cut)} texts are longer than max_seq_len and were cut, {first}", stacklevel=2)
        if isinstance(prepared[0], PreparedText) and prepared[0].plan.is_sparse:
            return _dense(answers, prepared[0].plan.width)
        return _rectangle(answers) if answers[0].ndim > 1 else np.stack(answers)

    def encode_tokens(self, texts: Sequence[Text], **options: Any) -> list[TokenVectors]:
        """Return the vectors, tokens and offsets of each text's tokens. options: as in `encode`."""
        asked = options_from_json(options | {"pooling_strategy": "NONE", "show_offsets": True})
        prepared = self.prepare(_checked(texts), asked)
        answers = self._answers(prepared)
        return [
            TokenVectors(rows, self.tokens(task.text), task.text.offsets)
            for rows, task in zip(answers, prepared, strict=True)
            if isinstance(task, PreparedText)
        ]

    def encode_spans(
        self, texts: Sequence[str], spans: Sequence[Sequence[tuple[int, int]]], **options: Any
    ) -> list[Rows]:
        """Return for each text a vector for each of its spans, (number of spans, D).

        spans: [start, end) in characters. Late chunking (Günther et al. 2024): the whole text goes through
        the model once, then the tokens of each span are pooled. options: as in `encode`; with
        long_text="chunk" a text may be longer than the model's sequences.
        """
        check_spans(spans, len(texts))
        return self._answers(self.prepare(_checked(texts), options_from_json(options), spans=spans))

    # -- in two halves, for pipelines ------------------------------------------------------------------

    def prepare(
        self,
        texts: Sequence[Text],
        options: EncodeOptions = EncodeOptions(),  # noqa: B008
        *,
        spans: Sequence[Sequence[Sequence[int]]] | None = None,
    ) -> list[PreparedText | RequestError]:
        """Return a task for each text, or why there is none. Raises RequestError for options that do not fit."""
        recipe = self._recipes(options)
        if spans is not None and (recipe.is_token_level or recipe.is_sparse or FROM_FIRST & set(recipe.poolings)):
            raise RequestError(f"a span's tokens are pooled: pooling_strategy must not be {recipe.poolings[0]}")
        pool_prompt = self._own is None or self._own.include_prompt
        found = self._tokenizer(texts, options, prompt=self._prompt(options), pool_prompt=pool_prompt, spans=spans)
        tasks: list[PreparedText | RequestError] = []
        for text in found:
            task = text if isinstance(text, RequestError) else PreparedText(text, recipe)
            complaint = None if isinstance(task, RequestError) else self._too_much(task)
            tasks.append(task if complaint is None else RequestError(complaint))
        return tasks

    def forward(self, tasks: Sequence[PreparedText]) -> list[Rows | EncodingError]:
        """Return the answer to each task, float32. One that is not finite is computed again in float32."""
        answers = self._compute(self._transformer, tasks)
        bad = [i for i, rows in enumerate(answers) if not np.isfinite(rows).all()]
        found: list[Rows | EncodingError] = list(answers)
        if not bad:
            return found
        if self.dtype is not torch.float32:
            log.warning("%d texts have no finite vector in %s, computing again in float32", len(bad), self.dtype)
            for i, rows in zip(bad, self._compute(self._in_float32(), [tasks[i] for i in bad]), strict=True):
                found[i] = answers[i] = rows
        for i in bad:
            if not np.isfinite(answers[i]).all():
                found[i] = EncodingError("the model gives no finite vector for this text")
        return found

    def tokens(self, text: TokenizedText) -> list[str]:
        """Return the tokens that the model sees of a text, special ones included."""
        return self._tokenizer.tokens(text.ids)

    @property
    def padded_because(self) -> str | None:
        """Why the forward pass is padded, or None if it is packed."""
        return self._transformer.padded_because

    @property
    def dimension(self) -> int:
        """Components of a vector, where a request asks for nothing else."""
        return self._recipes(EncodeOptions()).width

    @property
    def kind(self) -> str:
        """What the model is made for: "embedding", "splade", "classifier", or "reranker", which has one label."""
        if self._transformer.terms is not None:
            return "splade"
        if not self.labels:
            return "embedding"
        return "reranker" if len(self.labels) == 1 else "classifier"

    @property
    def poolings(self) -> tuple[str, ...]:
        """The strategies in force, side by side, where a request asks for nothing else."""
        return self._recipes(EncodeOptions()).poolings

    @property
    def prompts(self) -> dict[str, str]:
        """The prompts that the model comes with, by name."""
        return dict(self._own.prompts) if self._own else {}

    @property
    def num_padding(self) -> int:
        """Tokens that were computed for nothing so far."""
        return self._transformer.num_padding + (self._exact.num_padding if self._exact else 0)

    @property
    def splits_specials(self) -> bool:
        """Whether what looks like a special token in a text is words."""
        return self._tokenizer.splits_specials

    def save_tokenizer(self, path: Path) -> None:
        """Write the tokenizer to a file that the tokenizers library reads."""
        self._tokenizer.save(path)

    # -- inside ----------------------------------------------------------------------------------------

    def _answers(self, prepared: Sequence[PreparedText | RequestError]) -> list[Rows]:
        """Return all answers, or raise the first error, which names its text."""
        tasks = []
        for i, task in enumerate(prepared):
            if isinstance(task, RequestError):
                raise RequestError(f"texts[{i}]: {task}")
            tasks.append(task)
        if not tasks:
            raise RequestError("texts must not be empty")
        answers = []
        for i, answer in enumerate(self.forward(tasks)):
            if isinstance(answer, EncodingError):
                raise EncodingError(f"texts[{i}]: {answer}")
            answers.append(answer)
        return answers

    def _prompt(self, options: EncodeOptions) -> str:
        """Return what goes in front of each text."""
        if options.prompt is not None:
            return options.prompt
        prompts = self._own.prompts if self._own else {}
        if options.prompt_name is None:
            return self._own.default_prompt if self._own else ""
        if options.prompt_name not in prompts:
            known = f"it has {', '.join(prompts)}" if prompts else "it has none"
            raise RequestError(
                f"prompt_name must be one of the model's prompts; {known}, got {options.prompt_name!r}"
            )
        return prompts[options.prompt_name]

    def _too_much(self, task: PreparedText) -> str | None:
        """Return why a task cannot be computed, or would take memory out of all proportion."""
        text = task.text
        if self._max_ids is not None and max(max(s.ids) for s in text.sequences) >= self._max_ids:
            return f"the tokenizer has tokens that the model has no embedding for, it has {self._max_ids}"
        if text.spans is not None and sum(stop - start for start, stop in text.spans) > _MAX_SPAN_TOKENS:
            return f"the spans of a text may hold {_MAX_SPAN_TOKENS} tokens together"
        num_bytes = text.num_tokens * len(task.plan.layers) * self._transformer.hidden_size * 4
        if task.keeps_tokens and num_bytes > _MAX_TOKEN_BYTES:
            return f"the vectors of a text's tokens may have {_MAX_TOKEN_BYTES >> 20} MiB, got {num_bytes >> 20}"
        return None

    def _compute(self, transformer: Transformer, tasks: Sequence[PreparedText]) -> list[Rows]:
        return run_micro_batches(transformer, tasks, self._budget, hide_specials=self._hides_specials)

    def _in_float32(self) -> Transformer:
        """Return the model in float32, loaded when it is first needed."""
        if self._exact is None:
            self._exact = self._load()
            self._exact.choose_execution(self._probes(), torch.float32)
        return self._exact

    def _load(self) -> Transformer:
        classifier, masked = self._load_classifier(), None
        if classifier is not None:
            model = classifier.base_model
            self._num_layers = self._checkpoint.num_layers
        elif self._recipes.is_sparse:
            masked = self._checkpoint.load_masked(device=self.device)
            model = masked.base_model
        else:
            model = self._checkpoint.load(device=self.device, num_layers=self._num_layers)
        if self._drops_positions:
            drop_position_embeddings(model)
        transformer = Transformer(
            model,
            device=self.device,
            first_position=self._first_position,
            pad_id=self._tokenizer.pad_id,
            hide_specials=self._hides_specials,
        )
        if transformer.has_pooler:
            transformer.heads["CLS_POOLED"] = transformer.pooled
        if classifier is not None:
            head = classifier_of(classifier, transformer.pooled)
            self.labels = head.labels
            transformer.heads |= {"CLASSIFICATION": head.probabilities, "LOGITS": head.logits}
            if len(head.labels) == 1:
                transformer.heads["REGRESSION"] = head.score
        if masked is not None:
            squashes_twice = self._own is not None and self._own.splade_activation == "log1p_relu"
            transformer.terms = SpladeHead(masked, squashes_twice=squashes_twice)
        return transformer

    def _load_classifier(self) -> PreTrainedModel | None:
        """Return the whole model for sequence classification, if it is one, or must be one."""
        if self._recipes.is_sparse or not (self._recipes.needs_classifier or self._checkpoint.is_classifier):
            return None
        try:
            model = self._checkpoint.load_classifier(device=self.device, num_labels=self._num_labels)
            classifier_of(model, lambda first: first)
        except ModelError as exc:
            if self._recipes.needs_classifier:
                raise
            log.warning("the classification head is left out: %s", exc)
            return None
        return model

    def _tokens_at_once(self, max_batch_tokens: int) -> int:
        """Return how many tokens a forward pass takes at most."""
        if max_batch_tokens < 1:
            raise ModelError(f"max_batch_tokens must be at least 1, got {max_batch_tokens}")
        if self.device.type == "cuda":
            return fitting_tokens(self._try, max_batch_tokens, self.device)
        return min(max_batch_tokens, CPU_MICRO_BATCH_TOKENS)

    def _try(self, num_tokens: int) -> None:
        """Run a forward pass of so many tokens, in sequences of full length."""
        length = min(self.max_seq_len, num_tokens)
        sequence = TokenSequence([self._tokenizer.pad_id] * length, (0, length))
        self._transformer.hidden([sequence] * (num_tokens // length), self._recipes(EncodeOptions()).reads)

    def _probes(self) -> list[TokenSequence]:
        found = self._tokenizer(_PROBES)
        return [text.sequences[0] for text in found if isinstance(text, TokenizedText)]


def _checked(texts: Sequence[Text]) -> list[Text]:
    """Return the texts. Raises TypeError or ValueError for what is none; an empty string is one here."""
    if isinstance(texts, str) or not isinstance(texts, Iterable):
        raise TypeError(f"texts must be a list of strings, got {type(texts).__name__}")
    texts = list(texts)
    for i, text in enumerate(texts):
        parts = text if isinstance(text, list) else text.values() if isinstance(text, dict) else [text]
        if not ({*map(type, parts)} <= {int} and isinstance(text, list)) and not all(
            isinstance(part, str) for part in parts
        ):
            raise TypeError(f"texts[{i}] must be a string, a pair, or a list of tokens or ids, got {text!r:.80}")
        if any(has_lone_surrogate(part) for part in parts if isinstance(part, str)):
            raise ValueError(f"texts[{i}] contains a lone surrogate, which is no Unicode text")
    return texts


def _defaults(
    pooling_strategy: str | Sequence[str], pooling_layer: Sequence[int] | None, normalize: bool | None
) -> EncodeOptions:
    given = {"pooling_strategy": pooling_strategy, "pooling_layer": pooling_layer, "normalize": normalize}
    try:
        return options_from_json(given)
    except (TypeError, ValueError) as exc:
        raise ModelError(str(exc)) from exc


def _pipeline(own: SentenceTransformersConfig, device: torch.device) -> Pipeline:
    """Return what a sentence-transformers folder does behind its transformer."""
    # A last Normalize is left to the recipe: a request may want it otherwise, or cut the vector before.
    normalizes = bool(own.head) and own.head[-1][0] == "Normalize"
    head = load_head(own.head[:-1] if normalizes else own.head, device)
    return Pipeline(
        tuple(map(pooling_name, own.pooling_modes)),
        normalizes,
        head=head if len(head) else None,
        head_width=next((layer.linear.out_features for layer in reversed(head) if isinstance(layer, Dense)), None),
    )


def _dense(answers: Sequence[Rows], num_terms: int) -> Rows:
    """Return (index, weight) of terms as (B, V), zero for terms that a text has not."""
    rows = np.zeros((len(answers), num_terms), dtype=np.float32)
    for row, answer in zip(rows, answers, strict=True):
        row[answer[:, 0].astype(np.int64)] = answer[:, 1]
    return rows


def _rectangle(answers: Sequence[Rows]) -> Rows:
    """Return rows of any number of tokens as (B, T, D), zero behind the end of a text."""
    rows = np.zeros((len(answers), max(map(len, answers)), answers[0].shape[1]), dtype=np.float32)
    for i, answer in enumerate(answers):
        rows[i, : len(answer)] = answer
    return rows
