"""Encodes texts as vectors with one model on one device. There are no sockets and no jobs here.

    prepare   turns options into a pooling plan, and texts into token ids
    forward   runs micro-batches, pools their hidden states, and returns rows in the order of the texts

The error of a text takes the place of its result in the list, so the other texts are not affected.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from bert_serving.protocol import (
    EncodeOptions,
    EncodeOptionsDict,
    Rows,
    Text,
    TokenVectors,
    check_spans,
    options_from_json,
    shortened,
)

from ..model.errors import ModelError
from ..model.spec import ModelSpec
from .arrays import dense, padded
from .checked_texts import checked_texts
from .compiled.forward import MAX_LANES, NotCompiled
from .compiled.target import Target
from .cuda_graphs import NotRecorded
from .loading import load
from .micro_batches import Budget, MicroBatch, PreparedText, computed, micro_batches
from .pooling_plan import FROM_FIRST
from .sequences import RequestError, TokenizedText
from .transformer import Transformer

if TYPE_CHECKING:
    from typing_extensions import Unpack

log = logging.getLogger(__name__)

_MAX_SPAN_TOKENS = 1 << 18  # limit for all spans of a text together; a token in two spans counts twice
_MAX_TOKEN_BYTES = 512 << 20


class EncodingError(Exception):
    """The model computed no finite vector for a text."""


class Encoder:
    """Computes the vectors of texts with one model.

    Each argument, except `device`, is the server's setting of the same name:

    model_dir: a folder, a name on the Hugging Face hub, or None for the demo model.
    revision: commit, tag or branch of a model on the hub; None: its main branch.
    tuned_model_dir: a folder of a fine-tuned checkpoint, whose weights replace those in model_dir.
    config_name: file name of the config; None: config.json, or if it is missing, Google's
        bert_config.json.
    ckpt_name: name of a TensorFlow checkpoint in the folder of the weights, without `.index`; None:
        bert_model.ckpt, if the folder has no other weights.
    model_module: a Python module, or its .py file, that registers an architecture with Transformers.
    trust_remote_code: run the Python code that comes with the model.
    dtype: number format of the forward pass, "auto", "float32", "float16", "bfloat16" or "int8"; vectors are
        always float32. "int8": products of 8-bit integers where they keep the vectors within a cosine of 0.999, in
        a compiled pass on a CPU with AVX-512 VNNI; other passes and products are in bfloat16, or in float32 if the
        CPU has no bfloat16.
    compile: "auto": use the forward pass that was compiled for this processor, if compile_cache has it; "wait":
        compile it now if it is not there, which takes up to a minute and needs g++; "off": never use it. See
        `compile`. On a GPU, "auto" and "wait" mean CUDA graphs, which are recorded now.
    compile_cache: folder for compiled forward passes; None: the value of BERT_SERVING_COMPILE_CACHE, or
        bert-serving/compiled in the user's cache folder.
    max_seq_len: longest sequence in tokens, special tokens included; "NONE": the model's number of positions;
        None: the limit that the model is configured with.
    max_batch_tokens: largest number of tokens in one forward pass; it limits the memory that a pass needs.
    pooling_strategy: one or several names, see `encode`; "auto": the pooling configured in the model folder, or
        REDUCE_MEAN if there is none or pooling_layer is given.
    pooling_layer: layers that are pooled, -1 is the last; None: -2, or -1 if the pooling configured in the model
        folder is used.
    all_layers: also load the layers above the highest pooled layer, so that `encode` may choose them.
    normalize: divide vectors by their L2 norm; None: as configured in the model folder, and False if
        nothing is configured.
    num_labels: number of labels that the classification head must have; None: any number.
    mask_cls_sep: hide special tokens from the attention of other tokens and from the pooling.
    no_special_token: add no special tokens to texts that are lists of tokens.
    no_position_embeddings: leave out the position embeddings.
    cased_tokenization: do not lower-case texts, even if the model's tokenizer is configured to do so.
    device: "auto", "cpu" or "cuda:N"; "auto": the first GPU, or the CPU if there is no GPU.

    Raises ModelError, with a message of one line, if the model cannot be used in this way.

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
        dtype: str = "auto",
        compile: str = "auto",  # noqa: A002
        compile_cache: str | Path | None = None,
        max_seq_len: int | str | None = None,
        max_batch_tokens: int = 16384,
        pooling_strategy: str | Sequence[str] = "auto",
        pooling_layer: int | Sequence[int] | None = None,
        all_layers: bool = False,
        normalize: bool | None = None,
        num_labels: int | None = None,
        mask_cls_sep: bool = False,
        no_special_token: bool = False,
        no_position_embeddings: bool = False,
        cased_tokenization: bool = False,
        device: str = "auto",
    ) -> None:
        # A test checks that the parameters are the fields of ModelSpec.
        spec = ModelSpec.checked(**{name: value for name, value in locals().items() if name != "self"})
        self._loaded = load(spec)
        self._spec = spec
        self._budget = Budget(self._loaded.micro_batch_tokens)
        self._int8_products = 0
        if spec.compile != "off" and self.device.type == "cuda":
            self._try_graphs()
        elif spec.compile != "off":
            self._try_compiled(build=spec.compile == "wait")
        self._exact: Transformer | None = None
        self._loading = threading.Lock()
        self._hides_specials = spec.mask_cls_sep
        self.encode(["a"])  # parts of the model that do not fit together cause an error here, not in a request

    @classmethod
    def from_spec(cls, spec: ModelSpec) -> Encoder:
        """Return an encoder of the spec's model. Raises ModelError."""
        return cls(**spec.model_dump())

    # -- vectors ---------------------------------------------------------------------------------------

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

        A text is a string; a pair of strings, {"text": ..., "text_pair": ...}; a list of tokens, which are looked
        up in the vocabulary as they are; or a list of token ids. An option that is not given has the value that
        the encoder was created with. If a strategy or a layer is given, the pooling configured in the model folder
        is not used, and neither are its dense layers and its normalization.

        pooling_strategy: REDUCE_MEAN, REDUCE_MAX, REDUCE_MEAN_MAX, CLS_TOKEN (FIRST_TOKEN), SEP_TOKEN
            (LAST_TOKEN), CLS_POOLED, MEAN_SQRT_LEN or WEIGHTED_MEAN; "auto": the pooling configured in the model
            folder. The vectors of several strategies are computed in one forward pass and concatenated. NONE: a
            vector for each token, (B, T, D), zero after the end of a text; see `encode_tokens`. A model with a
            classification head also has CLASSIFICATION (probabilities of labels), LOGITS (the head's raw output)
            and, if there is only one label, REGRESSION. SPLADE: a weight for each term of the vocabulary, if the
            encoder was created with this strategy.
        pooling_layer: layers to pool, concatenated in this order; -1 is the last layer.
        normalize: divide each vector by its L2 norm.
        dimensions: keep only this many leading components, for a model that was trained for it (Matryoshka).
        truncate: the side on which a text longer than `max_seq_len` is cut, with a warning; "error": raise
            ValueError instead.
        long_text: "chunk": read a long text completely, in overlapping windows, and average their vectors. The
            weight of a window is the number of tokens that it adds. Pairs of sentences are still cut.
        prompt: text that precedes each text and each window. prompt_name: the name of one of the model's prompts.
        pairs: read "a ||| b" as a pair of sentences. Set this to False if texts may contain " ||| " with another
            meaning.

        Raises ValueError or TypeError for bad options and texts, and EncodingError if the model computes no finite
        vector for a text.
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
        prepared = _all_prepared(self.prepare(checked_texts(texts), options))
        rows = self._forward_or_raise(prepared)
        if cut := [i for i, each in enumerate(prepared) if each.text.truncated]:
            first = f"the first is texts[{cut[0]}]"
            warnings.warn(f"{len(cut)} texts are longer than max_seq_len and were cut; {first}", stacklevel=2)
        if prepared[0].plan.is_sparse:
            return dense(rows, prepared[0].plan.width)
        return padded(rows) if rows[0].ndim > 1 else np.stack(rows)

    def encode_tokens(self, texts: Sequence[Text], **options: Unpack[EncodeOptionsDict]) -> list[TokenVectors]:
        """Return the tokens of each text with their vectors and offsets. options: as in `encode`."""
        asked = options_from_json({**options, "pooling_strategy": "NONE", "show_offsets": True})
        prepared = _all_prepared(self.prepare(checked_texts(texts), asked))
        rows = self._forward_or_raise(prepared)
        return [
            TokenVectors(vectors, self.tokens(each.text), each.text.offsets)
            for vectors, each in zip(rows, prepared, strict=True)
        ]

    def encode_spans(
        self,
        texts: Sequence[str],
        spans: Sequence[Sequence[tuple[int, int]]],
        **options: Unpack[EncodeOptionsDict],
    ) -> list[Rows]:
        """Return one array for each text: a vector for each of its spans, (number of spans, D).

        spans: for each text its spans, as [start, end) in characters. options: as in `encode`; with
        long_text="chunk" a text may be longer than max_seq_len.

        The method is late chunking (Günther et al. 2024): one forward pass over the whole text, then the tokens of
        each span are pooled.
        """
        check_spans(spans, len(texts))
        prepared = self.prepare(checked_texts(texts), options_from_json(options), spans=spans)
        return self._forward_or_raise(_all_prepared(prepared))

    # -- the two steps of encoding ---------------------------------------------------------------------

    def prepare(
        self,
        texts: Sequence[Text],
        options: EncodeOptions = EncodeOptions(),  # noqa: B008
        *,
        spans: Sequence[Sequence[Sequence[int]]] | None = None,
    ) -> list[PreparedText | RequestError]:
        """Return each text ready for `forward`, or the error of a text that cannot be encoded.

        Raises RequestError for options that this model cannot compute.
        """
        plan = self._loaded.planner(options)
        if spans is not None and (plan.is_token_level or plan.is_sparse or FROM_FIRST & set(plan.poolings)):
            raise RequestError(f"a span's tokens are pooled: pooling_strategy must not be {plan.poolings[0]}")
        config = self._loaded.sentence_transformers
        pool_prompt = config is None or config.include_prompt
        prompt = self._prompt(options)
        found: list[PreparedText | RequestError] = []
        for text in self._loaded.tokenizer(texts, options, prompt=prompt, pool_prompt=pool_prompt, spans=spans):
            each = text if isinstance(text, RequestError) else PreparedText(text, plan)
            problem = None if isinstance(each, RequestError) else self._beyond_limits(each)
            found.append(each if problem is None else RequestError(problem))
        return found

    def forward(self, prepared: Sequence[PreparedText]) -> list[Rows | EncodingError]:
        """Return the rows of each text, float32. A text whose rows are not finite is computed again in float32."""
        return computed(self.forward_steps(prepared))

    def forward_steps(
        self, prepared: Sequence[PreparedText], *, lanes: int = 1
    ) -> Generator[list[MicroBatch], None, list[Rows | EncodingError]]:
        """Do the same as `forward`, but let the caller compute the micro-batches.

        Yields lists of micro-batches; the caller computes all of a list, in any order, before it goes on. Between
        two of them, other texts may be computed. lanes: how many threads compute those that are `is_lane_sized` at
        the same time; others run one after the other, in one thread.
        """
        rows = yield from self._steps_on(self._loaded.transformer, prepared, lanes)
        bad = [i for i, each in enumerate(rows) if not np.isfinite(each).all()]
        found: list[Rows | EncodingError] = list(rows)
        if bad and self.dtype_name != "float32":
            name = self.dtype_name
            log.warning("%d texts have no finite vector in %s, computing again in float32", len(bad), name)
            again = yield from self._steps_on(self._in_float32(), [prepared[i] for i in bad], 1)
            for i, each in zip(bad, again, strict=True):
                found[i] = rows[i] = each
        for i in bad:
            if not np.isfinite(rows[i]).all():
                found[i] = EncodingError("the model gives no finite vector for this text")
        return found

    def compile(self) -> bool:
        """Compile the forward pass for this processor, or load it from the cache; return whether it is used.

        Compiling takes up to a minute, and with dtype="int8" longer, in a process of its own. This may be called
        in any thread; passes that run meanwhile are not disturbed, and later ones use the compiled pass. Its
        vectors are compared with those of the reference first. If it cannot be used, the reason is logged, and
        passes run as before.
        """
        if not self._loaded.transformer.is_compiled:
            self._try_compiled(build=True)
        return self._loaded.transformer.is_compiled

    # -- facts -----------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """The device of the forward passes."""
        return self._loaded.transformer.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the forward passes."""
        return self._loaded.dtype

    @property
    def dtype_name(self) -> str:
        """The dtype of the forward passes; "int8" if a compiled pass has products of 8-bit integers."""
        if self._int8_products:
            return "int8"
        return str(self.dtype).removeprefix("torch.")

    @property
    def max_seq_len(self) -> int:
        """The longest sequence, in tokens, special tokens included."""
        return self._loaded.max_seq_len

    @property
    def max_batch_tokens(self) -> int:
        """The largest number of tokens in one forward pass, as the encoder was created with it."""
        return self._spec.max_batch_tokens

    @property
    def compiles_later(self) -> bool:
        """Whether it was created with compile="auto", and `compile` could make its forward passes faster."""
        return self._spec.compile == "auto" and self.forward_kind == "packed" and self.device.type == "cpu"

    @property
    def parity(self) -> float:
        """The smallest cosine, over a few probe texts, between a vector of this encoder and of the reference.

        The reference is the model as Transformers runs it: padded, in float32. The vectors are those of a call
        without options; if the model has a classification head, also those of the head.
        """
        return self._loaded.parity

    @property
    def fingerprint(self) -> str:
        """A short value that two encoders share if they compute the same vectors, apart from rounding."""
        return self._loaded.fingerprint

    @property
    def forward_kind(self) -> str:
        """How forward passes run: "compiled", "packed" (without padding), "padded", or "cuda-graphs".

        "cuda-graphs": packed, and rows that are not too long by CUDA graphs.
        """
        transformer = self._loaded.transformer
        if transformer.is_compiled:
            return "compiled"
        if transformer.has_graphs:
            return "cuda-graphs"
        return "packed" if transformer.padded_because is None else "padded"

    @property
    def num_lanes(self) -> int:
        """How many threads should compute small passes at the same time, `forward_steps` tells which; 1: none."""
        transformer = self._loaded.transformer
        if not transformer.is_compiled or transformer.sparse_head is not None:
            return 1
        num_threads = torch.get_num_threads()
        return num_threads if num_threads <= MAX_LANES else 1

    @property
    def padded_because(self) -> str | None:
        """Why the forward pass is padded, or None if it is packed."""
        return self._loaded.transformer.padded_because

    @property
    def num_padding(self) -> int:
        """The number of padding tokens computed so far."""
        return self._loaded.transformer.num_padding + (self._exact.num_padding if self._exact else 0)

    @property
    def hidden_size(self) -> int:
        """The length of the hidden state of a token in one layer."""
        return self._loaded.hidden_size

    @property
    def dimension(self) -> int:
        """The number of components of a vector, for a request without options."""
        return self._loaded.planner.default.width

    @property
    def poolings(self) -> tuple[str, ...]:
        """The strategies that are concatenated, for a request without options."""
        return self._loaded.planner.default.poolings

    @property
    def kind(self) -> str:
        """What the model is made for: "embedding", "splade", "classifier" or "reranker" (has one label)."""
        if self._loaded.transformer.sparse_head is not None:
            return "splade"
        if not self.labels:
            return "embedding"
        return "reranker" if len(self.labels) == 1 else "classifier"

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the labels, if the model has a classification head."""
        return self._loaded.labels

    @property
    def prompts(self) -> dict[str, str]:
        """The prompts that come with the model, by name."""
        config = self._loaded.sentence_transformers
        return {} if config is None else dict(config.prompts)

    @property
    def splits_specials(self) -> bool:
        """Whether the name of a special token in a text, such as [SEP], is read as ordinary words."""
        return self._loaded.tokenizer.splits_specials

    def tokens(self, text: TokenizedText) -> list[str]:
        """Return the tokens of a text as the model sees them, special tokens included."""
        return self._loaded.tokenizer.tokens(text.ids)

    def save_tokenizer(self, path: Path) -> None:
        """Write the tokenizer to a file that the tokenizers library can read. Raises OSError."""
        self._loaded.tokenizer.save(path)

    # -- inside ----------------------------------------------------------------------------------------

    def _forward_or_raise(self, prepared: Sequence[PreparedText]) -> list[Rows]:
        """Return the rows of each text. Raises EncodingError for the first text with an error."""
        found = []
        for i, rows in enumerate(self.forward(prepared)):
            if isinstance(rows, EncodingError):
                raise EncodingError(f"texts[{i}]: {rows}")
            found.append(rows)
        return found

    def _steps_on(
        self, transformer: Transformer, prepared: Sequence[PreparedText], lanes: int
    ) -> Generator[list[MicroBatch], None, list[Rows]]:
        return micro_batches(transformer, prepared, self._budget, hide_specials=self._hides_specials, lanes=lanes)

    def _try_compiled(self, *, build: bool) -> None:
        """Use the compiled forward pass from now on; log the reason if this is not possible.

        build: compile it if the cache does not have it.
        """
        loaded = self._loaded
        try:
            target = Target.of(self._spec, loaded)
            compiled = target.find()
            if compiled is None and build:
                log.info("compiling the forward pass for this processor")
                compiled = target.build()
            if compiled is None:
                return
            transformer = loaded.transformer.with_compiled(compiled)
            parity = loaded.check.smallest_cosine(transformer, loaded.dtype)
        except (NotCompiled, ModelError) as exc:
            # A worker that has only looked into the cache goes on to compile, and gives the reason then.
            log.log(logging.INFO if build else logging.DEBUG, "the forward pass is not compiled: %s", exc)
            return
        self._loaded = replace(loaded, transformer=transformer, parity=parity)
        self._budget = Budget(min(loaded.micro_batch_tokens, compiled.micro_batch_tokens))
        self._int8_products = compiled.facts.int8_products
        log.info("the forward pass is compiled parity=%.6f int8_products=%d", parity, self._int8_products)

    def _try_graphs(self) -> None:
        """Compute forward passes by CUDA graphs from now on; log the reason if this is not possible."""
        loaded = self._loaded
        try:
            transformer = loaded.transformer.with_graphs(
                loaded.check.layers, longest=loaded.max_seq_len, max_tokens=loaded.micro_batch_tokens
            )
            parity = loaded.check.smallest_cosine(transformer, loaded.dtype)
        except (NotRecorded, ModelError) as exc:
            log.info("there are no CUDA graphs: %s", exc)
            return
        self._loaded = replace(loaded, transformer=transformer, parity=parity)
        log.info("forward passes are CUDA graphs parity=%.6f", parity)

    def _in_float32(self) -> Transformer:
        """Return the transformer in float32, loaded when it is first needed."""
        with self._loading:
            if self._exact is None:
                self._exact = self._loaded.load_in_float32()
            return self._exact

    def _prompt(self, options: EncodeOptions) -> str:
        """Return the text that precedes each text. Raises RequestError for an unknown prompt name."""
        if options.prompt is not None:
            return options.prompt
        config = self._loaded.sentence_transformers
        if options.prompt_name is None:
            return "" if config is None else config.default_prompt
        prompts = self.prompts
        if options.prompt_name not in prompts:
            known = f"it has {', '.join(prompts)}" if prompts else "it has none"
            raise RequestError(
                f"prompt_name must be one of the model's prompts; {known}, got {shortened(options.prompt_name)}"
            )
        return prompts[options.prompt_name]

    def _beyond_limits(self, prepared: PreparedText) -> str | None:
        """Return why the model cannot compute a text, or would need too much memory for it; else None."""
        text, num_ids = prepared.text, self._loaded.num_ids
        if num_ids is not None and max(max(s.ids) for s in text.sequences) >= num_ids:
            return f"the tokenizer has tokens that the model has no embedding for: it has {num_ids} embeddings"
        if text.spans is not None and sum(stop - start for start, stop in text.spans) > _MAX_SPAN_TOKENS:
            return f"the spans of a text may have at most {_MAX_SPAN_TOKENS} tokens in total"
        if not prepared.keeps_token_vectors:
            return None
        num_bytes = text.num_tokens * len(prepared.plan.layers) * self._loaded.hidden_size * 4
        if num_bytes <= _MAX_TOKEN_BYTES:
            return None
        limit = f"at most {_MAX_TOKEN_BYTES >> 20} MiB"
        return f"the token vectors of a text may have {limit}, got {num_bytes >> 20} MiB"


def _all_prepared(prepared: Sequence[PreparedText | RequestError]) -> list[PreparedText]:
    """Return the texts. Raises RequestError for the first text with an error, or if there is no text."""
    found = []
    for i, each in enumerate(prepared):
        if isinstance(each, RequestError):
            raise RequestError(f"texts[{i}]: {each}")
        found.append(each)
    if not found:
        raise RequestError("texts must not be empty")
    return found
