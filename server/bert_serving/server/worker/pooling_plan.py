"""What a request wants done with the hidden states."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from bert_serving.protocol import EncodeOptions
from torch import Tensor
from torch.nn.functional import normalize

from ..model.errors import ModelError
from .pooling import STRATEGIES, Segments
from .sequences import RequestError

_AUTO = ("auto",)
_TOKENS = ("NONE",)
_TERMS = ("SPLADE",)
_NEEDS_CLASSIFIER = {"CLASSIFICATION", "REGRESSION", "LOGITS"}
#: Strategies that read the last layer's first token, whatever pooling_layer says, through weights of their own.
FROM_FIRST = {"CLS_POOLED", *_NEEDS_CLASSIFIER}
#: These and SPLADE read the last layer.
_FROM_TOP = FROM_FIRST | {*_TERMS}
#: Makes a row of a first token: (B, H) -> (B, D) float32.
Head: TypeAlias = "Callable[[Tensor], Tensor]"

_LACKS = {
    "CLASSIFICATION": "a model for sequence classification",
    "LOGITS": "a model for sequence classification",
    "REGRESSION": "a model for sequence classification with one label",
    "SPLADE": "a server that was started with -pooling_strategy SPLADE, or a sparse model",
}
_MAX_KNOWN = 1024
_MAX_WIDTH = 1 << 16
_PLAIN_LAYERS = (-2,)  # bert-as-service's default


@dataclass(frozen=True, slots=True, eq=False)
class PoolingPlan:
    """From hidden states to vectors.

    layers: counted from 0, concatenated in this order. reads: all layers that are needed. poolings: side by
    side; NONE alone: a row for each token; SPLADE alone: one for each term. head: the model's own layers behind
    its pooling. dimensions: how many leading components are kept, before `normalize` divides by the L2 norm.
    width: components of a vector.
    """

    layers: tuple[int, ...]
    reads: frozenset[int]
    poolings: tuple[str, ...]
    head: Callable[[Tensor], Tensor] | None
    dimensions: int | None
    normalize: bool
    width: int

    @property
    def is_token_level(self) -> bool:
        return self.poolings == _TOKENS

    @property
    def is_sparse(self) -> bool:
        return self.poolings == _TERMS

    def tokens(self, hidden: dict[int, Tensor]) -> Tensor:
        """Return the token vectors, (T, H * layers) float32."""
        states = [hidden[layer] for layer in self.layers]
        return (states[0] if len(states) == 1 else torch.cat(states, dim=-1)).float()

    def pool(self, hidden: dict[int, Tensor], of: Segments, heads: Mapping[str, Head]) -> Tensor:
        """Return the pooled rows of hidden states by layer, (B, D) float32. heads: for those in FROM_FIRST."""
        if not FROM_FIRST & set(self.poolings):
            return self.pool_tokens(self.tokens(hidden), of)
        # Of the model's last layer, and of its first token even where a prompt stays out of the pooling.
        first = hidden[max(self.reads)][of.origin]
        tokens = None if set(self.poolings) <= FROM_FIRST else self.tokens(hidden)
        rows = [
            heads[name](first) if tokens is None or name in FROM_FIRST else STRATEGIES[name](tokens, of)
            for name in self.poolings
        ]
        return torch.cat(rows, dim=1)

    def pool_tokens(self, tokens: Tensor, of: Segments) -> Tensor:
        """Return the pooled rows of token vectors, (B, D) float32; for the names in STRATEGIES."""
        return torch.cat([STRATEGIES[name](tokens, of) for name in self.poolings], dim=1)

    def finish(self, rows: Tensor) -> Tensor:
        """Return the rows as they are answered, (B, width)."""
        if self.head is not None and not self.is_token_level:
            rows = self.head(rows)
        if self.dimensions is not None:
            rows = rows[:, : self.dimensions]
        return normalize(rows, dim=1) if self.normalize else rows


@dataclass(frozen=True, slots=True)
class Pipeline:
    """What follows the transformer: poolings over its layers, and layers behind them, of such a width."""

    poolings: tuple[str, ...] = ("REDUCE_MEAN",)  # bert-as-service's default
    normalize: bool = False
    head: Callable[[Tensor], Tensor] | None = None
    head_width: int | None = None


class PoolingPlanner:
    """The recipes of one model, as it was started and as requests vary it.

    defaults: the server's strategy, layers and normalizing; None: the model's own way, or bert-as-service's.
    num_layers: of the whole model. Raises ModelError where the server's own recipe cannot be had.
    """

    def __init__(self, *, own: Pipeline | None, defaults: EncodeOptions, num_layers: int) -> None:
        self._own = own
        layers = self._layers = defaults.pooling_layer
        self._strategy = None if defaults.pooling_strategy == _AUTO else defaults.pooling_strategy
        self._normalize = defaults.normalize
        self._num_layers = num_layers
        self._num_loaded = num_layers
        self._hidden_size = 0
        self._head_widths: dict[str, int] = {}
        self._known: dict[EncodeOptions, PoolingPlan] = {}
        starts_as_own = own is not None and self._strategy is None and layers is None
        self._default_layers = layers or ((-1,) if starts_as_own else _PLAIN_LAYERS)
        reads_top = bool(_FROM_TOP & set(self._strategy or ()))
        try:
            #: The highest layer that the server's own recipe reads.
            self.highest = num_layers - 1 if reads_top else max(map(self._index, self._default_layers))
        except RequestError as exc:
            raise ModelError(str(exc)) from exc

    @property
    def needs_classifier(self) -> bool:
        """Whether the server's own recipe wants a classification head."""
        return bool(_NEEDS_CLASSIFIER & set(self._strategy or ()))

    @property
    def is_sparse(self) -> bool:
        """Whether the server's own recipe is SPLADE."""
        own = self._own.poolings if self._own is not None and self._default_layers == (-1,) else None
        return (self._strategy or own) == _TERMS

    def loaded(self, num_layers: int, *, hidden_size: int, head_widths: Mapping[str, int]) -> None:
        """Note what was loaded: so many layers of such a width; head_widths: of the heads, by strategy."""
        self._num_loaded = num_layers
        self._hidden_size = hidden_size
        self._head_widths = dict(head_widths)
        try:
            self(EncodeOptions())
        except RequestError as exc:
            raise ModelError(str(exc)) from exc

    def __call__(self, options: EncodeOptions) -> PoolingPlan:
        """Return the recipe for a request. Raises RequestError for what this model cannot do."""
        key = EncodeOptions(options.pooling_strategy, options.pooling_layer, options.normalize, options.dimensions)
        recipe = self._known.get(key)
        if recipe is None:
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            recipe = self._known[key] = self._make(key)
        return recipe

    def _make(self, options: EncodeOptions) -> PoolingPlan:
        strategy = self._strategy if options.pooling_strategy is None else options.pooling_strategy
        if strategy in (None, _AUTO) and (options.pooling_layer or self._layers) is None and self._own is not None:
            pipeline, layers = self._own, [self._num_layers - 1]
        else:
            pipeline = Pipeline() if strategy in (None, _AUTO) else Pipeline(strategy)
            layers = [self._index(layer) for layer in options.pooling_layer or self._default_layers]
        poolings = pipeline.poolings
        reads = set() if set(poolings) <= _FROM_TOP else set(layers)
        if _FROM_TOP & set(poolings):
            reads.add(self._num_layers - 1)
        self._check_loaded(reads, poolings)
        width = pipeline.head_width or self._width(poolings, len(layers))
        if width > _MAX_WIDTH and poolings != _TERMS:
            raise RequestError(
                f"a vector may have {_MAX_WIDTH} components, these layers and strategies give {width}"
            )
        if options.dimensions is not None and options.dimensions > width:
            raise RequestError(f"dimensions must be in 1..{width} for this model, got {options.dimensions}")
        return PoolingPlan(
            layers=tuple(layers),
            reads=frozenset(reads),
            poolings=poolings,
            head=pipeline.head,
            dimensions=options.dimensions,
            normalize=_first_known(options.normalize, self._normalize, pipeline.normalize),
            width=options.dimensions or width,
        )

    def _index(self, layer: int) -> int:
        """Return the layer counted from 0, the lowest; negative numbers count from the top."""
        n = self._num_layers
        if not -n <= layer < n:
            raise RequestError(f"pooling_layer must be in {-n}..{n - 1} for this model, got {layer}")
        return layer % n

    def _check_loaded(self, layers: set[int], poolings: Sequence[str]) -> None:
        if lacking := [name for name in poolings if name in _FROM_TOP and name not in self._head_widths]:
            why = _LACKS.get(lacking[0], "a pooler, whose weights this model has not")
            raise RequestError(f"{lacking[0]} needs {why}")
        if max(layers) >= self._num_loaded:
            wanted = max(layers) - self._num_layers
            raise RequestError(
                f"layer {wanted} is not loaded, since the server needs none above "
                f"{self._num_loaded - 1 - self._num_layers}: start it with -all_layers"
            )

    def _width(self, poolings: Sequence[str], num_layers: int) -> int:
        of_layers = self._hidden_size * num_layers
        widths = {"REDUCE_MEAN_MAX": 2 * of_layers} | self._head_widths
        return sum(widths.get(name, of_layers) for name in poolings)


def _first_known(*values: bool | None) -> bool:
    return next((value for value in values if value is not None), False)
