"""Loads the model of a spec. `load` does, in order, everything that must be done once before texts are encoded."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from ..model.errors import ModelError
from ..model.folder import ModelFolder
from ..model.pooling import PoolingRules
from ..model.sentence_transformers import SentenceTransformersConfig
from ..model.spec import ModelSpec
from .checkpoint import Checkpoint, drop_position_embeddings
from .classifier import Classifier, classifier_of, pooler_of
from .dense import load_after_pooling
from .device import CPU_MICRO_BATCH_TOKENS, fitting_tokens, pick_device, pick_dtype
from .execution import choose_execution, reference_execution
from .fingerprint import fingerprint, weights_hash
from .model_module import import_model_module
from .parity import PROBES, ParityCheck, served_plans
from .pooling_plan import AfterPooling, Head, ModelShape, PoolingPlanner, needs_classifier, reads_top_layer
from .sequences import TokenizedText, TokenSequence
from .splade import SpladeHead
from .tokenizer import Tokenizer
from .transformer import Heads, InputFormat, Transformer

log = logging.getLogger(__name__)

# Probe texts: short and long, of equal and of different length, one longer than the window of local attention, and
# a pair.
_PROBES = ["a", "Hello world!", "one two three", "four five six", "The quick brown fox jumps. " * 4, "word " * 600]
_PROBES += ["the first ||| and the second"]

# Options that decide where a model comes from and how it runs, but not what it computes.
_NOT_IN_FINGERPRINT = {"model_dir", "tuned_model_dir", "revision", "device", "dtype", "compile", "compile_cache"}


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """A model, ready to run.

    transformer: runs in `dtype`. tokenizer: makes the token ids. planner: makes the pooling plans of requests.
    sentence_transformers: the configuration for sentence-transformers in the model folder, if any. max_seq_len: in
    tokens. micro_batch_tokens: the largest number of tokens in a forward pass. hidden_size: the width of a hidden
    state. parity: the smallest cosine between a row of a probe text and its row from the padded float32 model.
    num_ids: the number of token ids that have an embedding, if the tokenizer has more ids; else None. labels: the
    labels of the classification head, if any. fingerprint: two models with the same fingerprint compute the same
    vectors, apart from rounding. check: compares another transformer of this model with the reference.
    load_in_float32: loads the transformer again, in float32. load_model: loads the model again, in float32, as
    Transformers makes it.
    """

    transformer: Transformer
    tokenizer: Tokenizer
    planner: PoolingPlanner
    sentence_transformers: SentenceTransformersConfig | None
    dtype: torch.dtype
    max_seq_len: int
    micro_batch_tokens: int
    hidden_size: int
    parity: float
    num_ids: int | None
    labels: tuple[str, ...]
    fingerprint: str
    check: ParityCheck
    load_in_float32: Callable[[], Transformer]
    load_model: Callable[[], PreTrainedModel]


def load(spec: ModelSpec) -> LoadedModel:
    """Return the model of a spec. Raises ModelError, with a message of one line, if this fails."""
    folder = ModelFolder.of(spec)
    if spec.model_module is not None:
        import_model_module(spec.model_module)
    device = pick_device(spec.device)
    dtype = pick_dtype(spec.dtype, device)
    if spec.dtype == "int8" and spec.compile == "off":
        raise ModelError("dtype int8 needs a compiled forward pass: use -compile auto or wait")
    max_seq_len = folder.max_seq_len(spec.max_seq_len)
    config = folder.sentence_transformers
    tokenizer = _load_tokenizer(spec, folder, max_seq_len)
    after = load_after_pooling(config, device)
    loader = _TransformerLoader(
        spec,
        Checkpoint(folder),
        PoolingRules.of(spec, config),
        after,
        InputFormat(device, folder.first_position, tokenizer.pad_id, hide_specials=spec.mask_cls_sep),
        _probes(tokenizer),
        _parity_probes(tokenizer, config),
    )
    loaded = loader.load(dtype)
    transformer, planner = loaded.transformer, loaded.planner
    longest = TokenSequence([tokenizer.pad_id] * max_seq_len, (0, max_seq_len))
    return LoadedModel(
        transformer=transformer,
        tokenizer=tokenizer,
        planner=planner,
        sentence_transformers=config,
        dtype=dtype,
        max_seq_len=max_seq_len,
        micro_batch_tokens=_micro_batch_tokens(spec, transformer, planner.default.reads, longest),
        hidden_size=loaded.hidden_size,
        parity=loaded.parity,
        num_ids=_num_ids_if_fewer(transformer, tokenizer),
        labels=loaded.labels,
        fingerprint=_fingerprint(loaded.weights_hash, spec, max_seq_len, config, tokenizer, after),
        check=loaded.check,
        load_in_float32=lambda: loader.load_same_in_float32(loaded.weights_hash),
        load_model=loader.load_model,
    )


class _LoadedTransformer(NamedTuple):
    """A transformer, and what was found out about it. The fields are described in LoadedModel.

    weights_hash: the hash of the weights before they were converted to a dtype.
    """

    transformer: Transformer
    planner: PoolingPlanner
    hidden_size: int
    parity: float
    check: ParityCheck
    labels: tuple[str, ...]
    weights_hash: str


@dataclass(frozen=True, slots=True)
class _TransformerLoader:
    """Loads the transformer of a spec. Each call of `load` loads it again.

    rules: their default pooling decides which layers and heads are loaded. after: the steps after the pooling.
    probes: the tokenized texts that `choose_execution` encodes. parity_probes: those that `ParityCheck` encodes.
    """

    spec: ModelSpec
    checkpoint: Checkpoint
    rules: PoolingRules
    after: AfterPooling
    inputs: InputFormat
    probes: Sequence[TokenSequence]
    parity_probes: Sequence[TokenizedText]

    def load(self, dtype: torch.dtype) -> _LoadedTransformer:
        """Return the transformer in the dtype, in the execution that was chosen for it.

        Raises ModelError if its rows are too far from the reference.
        """
        model, heads, hash_of_weights = self._load_with_heads()
        reference = Transformer(model, self.inputs, reference_execution(model), heads)
        probes = self._known_to(reference)
        hidden_size = _hidden_size(reference, probes[0].sequences[0])
        planner = self._planner(heads, reference.num_layers, hidden_size)
        plans = served_plans(planner, heads.labels)
        check = ParityCheck(reference, probes, plans, hide_specials=self.inputs.hide_specials)
        execution = choose_execution(model, self.inputs, self.probes, dtype)
        transformer = Transformer(model, self.inputs, execution, heads)
        parity = check.smallest_cosine(transformer, dtype)
        return _LoadedTransformer(transformer, planner, hidden_size, parity, check, heads.labels, hash_of_weights)

    def load_same_in_float32(self, hash_of_weights: str) -> Transformer:
        """Load the transformer again, in float32, and return it. Raises ModelError if the weights have changed."""
        loaded = self.load(torch.float32)
        if loaded.weights_hash != hash_of_weights:
            raise ModelError(f"the weights in {self.checkpoint.folder.weights_dir} have changed")
        return loaded.transformer

    def _known_to(self, transformer: Transformer) -> list[TokenizedText]:
        """Return those parity probes whose tokens all have an embedding. Raises ModelError if there is none."""
        num_ids = transformer.num_ids
        known = [text for text in self.parity_probes if num_ids is None or max(text.ids) < num_ids]
        if not known:
            raise ModelError(
                f"the tokenizer gives tokens that the model has no embedding for: it has {num_ids} embeddings"
            )
        return known

    def _planner(self, heads: Heads, num_loaded: int, hidden_size: int) -> PoolingPlanner:
        shape = ModelShape(
            num_layers=self.checkpoint.num_layers,
            num_loaded=num_loaded,
            hidden_size=hidden_size,
            head_widths=heads.widths(hidden_size),
        )
        return PoolingPlanner(self.rules, shape, after=self.after, normalize=self.spec.normalize)

    def load_model(self) -> PreTrainedModel:
        """Return the encoder in float32, as Transformers makes it."""
        return self._load_with_heads()[0]

    def _load_with_heads(self) -> tuple[PreTrainedModel, Heads, str]:
        """Return the encoder in float32, the heads that were loaded with it, and the hash of all their weights."""
        model, heads, hash_of_weights = self._load_unchanged()
        if self.spec.no_position_embeddings:
            drop_position_embeddings(model)
        return model, heads, hash_of_weights

    def _load_unchanged(self) -> tuple[PreTrainedModel, Heads, str]:
        highest = self._highest_layer()
        is_sparse = "SPLADE" in self.rules.default.strategies
        with_head = None if is_sparse else self._load_classifier()
        if with_head is not None:
            model, classifier = with_head
            heads = Heads(_by_strategy(model.base_model, classifier), classifier.labels)
            return model.base_model, heads, weights_hash(model)
        if is_sparse:
            masked = self.checkpoint.load_masked(device=self.inputs.device)
            heads = Heads(_by_strategy(masked.base_model), sparse=self._splade_head(masked))
            return masked.base_model, heads, weights_hash(masked)
        num_layers = self.checkpoint.layers_to_load(highest=highest)
        encoder = self.checkpoint.load(device=self.inputs.device, num_layers=num_layers)
        return encoder, Heads(_by_strategy(encoder)), weights_hash(encoder)

    def _highest_layer(self) -> int:
        """Return the highest layer that must be loaded. Raises ModelError for a layer that does not exist."""
        num_layers = self.checkpoint.num_layers
        pooling = self.rules.default
        highest = pooling.highest_layer(num_layers)
        needs_top = self.spec.all_layers or reads_top_layer(pooling.strategies)
        return num_layers - 1 if needs_top else highest

    def _load_classifier(self) -> tuple[PreTrainedModel, Classifier] | None:
        """Return the model for sequence classification and its head, or None if the checkpoint has no usable head.

        Raises ModelError instead of returning None if the pooling needs this head.
        """
        is_needed = needs_classifier(self.rules.default.strategies)
        if not is_needed and not self.checkpoint.is_classifier:
            return None
        try:
            model = self.checkpoint.load_classifier(device=self.inputs.device, num_labels=self.spec.num_labels)
            return model, classifier_of(model)
        except ModelError as exc:
            if is_needed:
                raise
            log.warning("the classification head is left out: %s", exc)
            return None

    def _splade_head(self, masked: PreTrainedModel) -> SpladeHead:
        config = self.checkpoint.folder.sentence_transformers
        return SpladeHead(masked, squashes_twice=config is not None and config.splade_activation == "log1p_relu")


def _by_strategy(encoder: PreTrainedModel, classifier: Classifier | None = None) -> dict[str, Head]:
    """Return the heads that read first tokens, by pooling strategy."""
    heads: dict[str, Head] = {}
    if (pooler := pooler_of(encoder)) is not None:
        heads["CLS_POOLED"] = pooler
    if classifier is not None:
        heads |= {"CLASSIFICATION": classifier.probabilities, "LOGITS": classifier.logits}
        if len(classifier.labels) == 1:
            heads["REGRESSION"] = classifier.score
    return heads


def _load_tokenizer(spec: ModelSpec, folder: ModelFolder, max_seq_len: int) -> Tokenizer:
    config = folder.sentence_transformers
    return Tokenizer(
        folder.transformer_dir,
        max_seq_len=max_seq_len,
        do_lower_case=config is not None and config.do_lower_case,
        cased=spec.cased_tokenization,
        no_special_token=spec.no_special_token,
        trust_remote_code=spec.trust_remote_code,
        model_type=folder.unnamed_model_type,
    )


def _fingerprint(
    hash_of_weights: str,
    spec: ModelSpec,
    max_seq_len: int,
    config: SentenceTransformersConfig | None,
    tokenizer: Tokenizer,
    after: AfterPooling,
) -> str:
    """Return the fingerprint of a model. Paths, device and dtype are left out."""
    settings = spec.model_dump(exclude=_NOT_IN_FINGERPRINT) | {"max_seq_len": max_seq_len}
    folder = None
    if config is not None:
        folder = {**asdict(config), "transformer_dir": None, "modules_after_pooling": None}
    dense = weights_hash(after.modules) if isinstance(after.modules, nn.Module) else None
    return fingerprint([hash_of_weights, settings, folder, repr(after), dense, tokenizer.to_json()])


def _num_ids_if_fewer(transformer: Transformer, tokenizer: Tokenizer) -> int | None:
    """Return the number of token ids with an embedding, if the tokenizer has more ids; else None."""
    num_ids = transformer.num_ids
    return num_ids if num_ids is not None and num_ids < tokenizer.num_ids else None


def _probes(tokenizer: Tokenizer) -> list[TokenSequence]:
    return [text.sequences[0] for text in tokenizer(_PROBES) if isinstance(text, TokenizedText)]


def _parity_probes(tokenizer: Tokenizer, config: SentenceTransformersConfig | None) -> list[TokenizedText]:
    """Return the tokenized probes, with the prompt that precedes every text by default."""
    prompt = "" if config is None else config.default_prompt
    pool_prompt = config is None or config.include_prompt
    tokenized = tokenizer(PROBES, prompt=prompt, pool_prompt=pool_prompt)
    return [text for text in tokenized if isinstance(text, TokenizedText)]


def _hidden_size(transformer: Transformer, sequence: TokenSequence) -> int:
    top = transformer.num_layers - 1
    return transformer.hidden([sequence], [top])[top].shape[1]


def _micro_batch_tokens(
    spec: ModelSpec, transformer: Transformer, layers: frozenset[int], padding: TokenSequence
) -> int:
    """Return the largest number of tokens in a forward pass: as many as the GPU's memory or the CPU's caches hold.

    layers: the layers that the default pooling reads. padding: a sequence of max_seq_len padding tokens.
    """
    if transformer.device.type != "cuda":
        return min(spec.max_batch_tokens, CPU_MICRO_BATCH_TOKENS)

    def forward(num_tokens: int) -> None:
        length = min(len(padding.ids), num_tokens)
        sequence = TokenSequence(padding.ids[:length], (0, length))
        transformer.hidden([sequence] * (num_tokens // length), layers)

    return fitting_tokens(forward, spec.max_batch_tokens, transformer.device)
