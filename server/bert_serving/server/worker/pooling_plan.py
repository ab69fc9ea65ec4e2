"""Plans what to compute from hidden states for the options of a request."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from bert_serving.protocol import EncodeOptions
from torch import Tensor
from torch.nn.functional import normalize

from ..model.errors import ModelError
from ..model.pooling import PoolingRules, layer_index
from .pooling import STRATEGIES, Segments
from .sequences import RequestError

_TOKENS = ("NONE",)
_TERMS = ("SPLADE",)
_NEEDS_CLASSIFIER = {"CLASSIFICATION", "REGRESSION", "LOGITS"}
#: Strategies with their own weights. They read the last layer's first token and ignore pooling_layer.
FROM_FIRST = {"CLS_POOLED", *_NEEDS_CLASSIFIER}
#: Strategies that read the last layer and ignore pooling_layer.
_FROM_TOP = FROM_FIRST | {*_TERMS}
#: Computes rows, (B, D) float32, from the vectors of first tokens in the last layer, (B, H).
Head: TypeAlias = "Callable[[Tensor], Tensor]"

_REQUIRES = {
    "CLASSIFICATION": "a model for sequence classification",
    "LOGITS": "a model for sequence classification",
    "REGRESSION": "a model for sequence classification with one label",
    "SPLADE": "a server that was started with -pooling_strategy SPLADE, or a sparse model",
    "CLS_POOLED": "pooler weights, which this checkpoint lacks",
}
_MAX_PLANS = 1024
_MAX_WIDTH = 1 << 15  # as many as all 24 layers of a large model have together


@dataclass(frozen=True, slots=True, eq=False)
class PoolingPlan:
    """How hidden states become vectors.

    layers: indices from 0; their hidden states are concatenated in this order. reads: indices of all layers whose
    hidden states are needed. poolings: strategies whose vectors are concatenated; NONE is always alone and gives a
    row for each token; SPLADE is always alone and gives a row for each term. modules: the Dense and Normalize
    modules after the pooling, if any. dimensions: number of leading components to keep; None: all. normalize:
    after that, divide by the L2 norm. width: number of components of a vector.
    """

    layers: tuple[int, ...]
    reads: frozenset[int]
    poolings: tuple[str, ...]
    modules: Callable[[Tensor], Tensor] | None
    dimensions: int | None
    normalize: bool
    width: int

    @property
    def is_token_level(self) -> bool:
        """Whether the strategy is NONE: a text gets one vector for each of its tokens."""
        return self.poolings == _TOKENS

    @property
    def is_sparse(self) -> bool:
        """Whether the strategy is SPLADE: a text gets a weight for each term."""
        return self.poolings == _TERMS

    def token_vectors(self, hidden: dict[int, Tensor]) -> Tensor:
        """Return the token vectors, (T, H * layers) float32."""
        states = [hidden[layer] for layer in self.layers]
        return (states[0] if len(states) == 1 else torch.cat(states, dim=-1)).float()

    def pool(self, hidden: dict[int, Tensor], of: Segments, heads: Mapping[str, Head]) -> Tensor:
        """Return the pooled rows, (B, D) float32.

        hidden: hidden states (T, H) by layer. heads: the heads of those strategies that are in FROM_FIRST.
        """
        if not FROM_FIRST & set(self.poolings):
            return self.pool_tokens(self.token_vectors(hidden), of)
        # Heads read the first token of the last layer, even if the pooling leaves out the prompt and this token.
        first = hidden[max(self.reads)][of.origin]
        tokens = None if set(self.poolings) <= FROM_FIRST else self.token_vectors(hidden)
        rows = [
            heads[name](first) if tokens is None or name in FROM_FIRST else STRATEGIES[name](tokens, of)
            for name in self.poolings
        ]
        return torch.cat(rows, dim=1)

    def pool_tokens(self, tokens: Tensor, of: Segments) -> Tensor:
        """Return the pooled rows of token vectors, (B, D) float32. Works for the strategies in STRATEGIES."""
        return torch.cat([STRATEGIES[name](tokens, of) for name in self.poolings], dim=1)

    def finish(self, rows: Tensor) -> Tensor:
        """Return the rows after `modules`, `dimensions` and `normalize`, (B, width)."""
        if self.modules is not None and not self.is_token_level:
            rows = self.modules(rows)
        if self.dimensions is not None:
            rows = rows[:, : self.dimensions]
        return normalize(rows, dim=1) if self.normalize else rows


@dataclass(frozen=True, slots=True)
class AfterPooling:
    """What a model folder is configured to compute after its pooling: modules, then normalization.

    width: number of components of a row after the modules; None: the modules do not change it.
    """

    modules: Callable[[Tensor], Tensor] | None = None
    width: int | None = None
    normalize: bool = False


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of a loaded model.

    num_layers: number of layers of the whole model. num_loaded: how many of them are loaded, counted from the
    bottom. hidden_size: the width of a hidden state. head_widths: the widths of the heads' rows, by strategy.
    """

    num_layers: int
    num_loaded: int
    hidden_size: int
    head_widths: Mapping[str, int]


class PoolingPlanner:
    """Makes the pooling plans of one model, and caches them.

    rules: decide which strategies and layers a request gets. after: the steps that follow the pooling configured
    in the model folder; any other pooling skips these steps. normalize: the server's setting; None: as configured
    in the model folder.
    Raises ModelError if the model cannot compute its default pooling.
    """

    def __init__(
        self, rules: PoolingRules, shape: ModelShape, *, after: AfterPooling, normalize: bool | None
    ) -> None:
        self._rules = rules
        self._shape = shape
        self._after = after
        self._normalize = normalize
        self._plans: dict[EncodeOptions, PoolingPlan] = {}
        try:
            self.default = self(EncodeOptions())
        except RequestError as exc:
            raise ModelError(str(exc)) from exc

    def __call__(self, options: EncodeOptions) -> PoolingPlan:
        """Return the plan for a request. Raises RequestError for options that this model cannot compute."""
        key = EncodeOptions(options.pooling_strategy, options.pooling_layer, options.normalize, options.dimensions)
        plan = self._plans.get(key)
        if plan is None:
            if len(self._plans) >= _MAX_PLANS:
                self._plans.clear()
            plan = self._plans[key] = self._make(key)
        return plan

    def _make(self, options: EncodeOptions) -> PoolingPlan:
        pooling = self._rules.choose(options.pooling_strategy, options.pooling_layer)
        after = self._after if pooling.is_folders else AfterPooling()
        poolings, layers = pooling.strategies, [self._index(layer) for layer in pooling.layers]
        if repeated := [layer for layer in layers if layers.count(layer) > 1]:
            raise RequestError(f"pooling_layer must not name layer {repeated[0]} more than once")
        reads = set() if set(poolings) <= _FROM_TOP else set(layers)
        if _FROM_TOP & set(poolings):
            reads.add(self._shape.num_layers - 1)
        self._check_loaded(reads, poolings)
        width = after.width or self._width(poolings, len(layers))
        if width > _MAX_WIDTH and poolings != _TERMS:
            raise RequestError(
                f"a vector may have at most {_MAX_WIDTH} components, but these layers and strategies give {width}"
            )
        if options.dimensions is not None and options.dimensions > width:
            raise RequestError(f"dimensions must be in 1..{width} for this model, got {options.dimensions}")
        return PoolingPlan(
            layers=tuple(layers),
            reads=frozenset(reads),
            poolings=poolings,
            modules=after.modules,
            dimensions=options.dimensions,
            normalize=_first_known(options.normalize, self._normalize, after.normalize),
            width=options.dimensions or width,
        )

    def _index(self, layer: int) -> int:
        try:
            return layer_index(layer, self._shape.num_layers)
        except ValueError as exc:
            raise RequestError(str(exc)) from exc

    def _check_loaded(self, layers: set[int], poolings: Sequence[str]) -> None:
        """Raise RequestError if a head or a layer that is needed is not loaded."""
        num_layers, num_loaded = self._shape.num_layers, self._shape.num_loaded
        if missing := [name for name in poolings if name in _FROM_TOP and name not in self._shape.head_widths]:
            raise RequestError(f"{missing[0]} needs {_REQUIRES[missing[0]]}")
        if max(layers) >= num_loaded:
            raise RequestError(
                f"layer {max(layers) - num_layers} is not loaded, since the server loads none above "
                f"{num_loaded - 1 - num_layers}: start it with -all_layers"
            )

    def _width(self, poolings: Sequence[str], num_layers: int) -> int:
        """Return the number of components that these poolings give for this number of layers."""
        of_layers = self._shape.hidden_size * num_layers
        widths = {"REDUCE_MEAN_MAX": 2 * of_layers, **self._shape.head_widths}
        return sum(widths.get(name, of_layers) for name in poolings)


def needs_classifier(strategies: Sequence[str]) -> bool:
    """Return whether one of the strategies needs a classification head."""
    return bool(_NEEDS_CLASSIFIER & set(strategies))


def reads_top_layer(strategies: Sequence[str]) -> bool:
    """Return whether one of the strategies reads the last layer and ignores pooling_layer."""
    return bool(_FROM_TOP & set(strategies))


def _first_known(*values: bool | None) -> bool:
    return next((value for value in values if value is not None), False)
