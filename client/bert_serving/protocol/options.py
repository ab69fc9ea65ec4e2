"""The options of a request: how its texts become vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal, TypedDict, TypeGuard, TypeVar

from .shortened import shortened
from .texts import has_lone_surrogate

_T = TypeVar("_T")

#: Pooling strategies. `pooling_name` also accepts the names that sentence-transformers uses.
POOLING_STRATEGIES = (
    "NONE",
    "REDUCE_MEAN",
    "REDUCE_MAX",
    "REDUCE_MEAN_MAX",
    "CLS_TOKEN",
    "FIRST_TOKEN",
    "SEP_TOKEN",
    "LAST_TOKEN",
    "CLS_POOLED",
    "CLASSIFICATION",
    "REGRESSION",
    "MEAN_SQRT_LEN",
    "WEIGHTED_MEAN",
    "LOGITS",
    "SPLADE",
)
_ALSO_CALLED = {
    "MEAN": "REDUCE_MEAN",
    "MAX": "REDUCE_MAX",
    "CLS": "CLS_TOKEN",
    "LASTTOKEN": "LAST_TOKEN",
    "MEAN_SQRT_LEN_TOKENS": "MEAN_SQRT_LEN",
    "WEIGHTEDMEAN": "WEIGHTED_MEAN",
}
_ALONE = {"NONE", "SPLADE"}  # strategies whose number of rows differs from text to text
_CHOICES = {
    "truncate": ("right", "left", "error"),
    "long_text": ("truncate", "chunk"),
    "on_error": ("error", "null"),
}
_MAX_LIST = 32
_LIMIT = 1 << 31  # all numbers in options are smaller: 32 bits are enough, and every JSON library reads them
# Limits for the number of spans of one text and of one request; the reply has one vector for each span.
_MAX_SPANS = 1024
_MAX_SPANS_IN_REQUEST = 1 << 18
_MAX_PROMPT_CHARS = 4096


def pooling_name(name: str) -> str:
    """Return the name of a pooling strategy as POOLING_STRATEGIES spells it.

    name: bert-as-service's or sentence-transformers' name, in upper or lower case.
    Raises ValueError for any other name.
    """
    upper = name.upper()
    upper = _ALSO_CALLED.get(upper, upper)
    if upper not in POOLING_STRATEGIES:
        raise ValueError(
            f"pooling_strategy must be one of auto, {', '.join(POOLING_STRATEGIES)}, got {shortened(name)}"
        )
    return upper


class EncodeOptionsDict(TypedDict, total=False):
    """The options that a call of a client may set, as keyword arguments of `encode`.

    An option that is missing or None has its default. EncodeOptions explains each option.
    """

    pooling_strategy: str | Sequence[str] | None
    pooling_layer: int | Sequence[int] | None
    normalize: bool | None
    dimensions: int | None
    truncate: Literal["right", "left", "error"] | None
    long_text: Literal["truncate", "chunk"] | None
    prompt: str | None
    prompt_name: str | None
    pairs: bool | None


@dataclass(frozen=True, slots=True)
class EncodeOptions:
    """The options of a request. None means the setting that the server was started with.

    pooling_strategy: names in POOLING_STRATEGIES; vectors of several strategies are concatenated in this order.
    "auto": the pooling configured in the model folder. NONE: a vector for each token. SPLADE: rows of
    (index, value), one for each term of the vocabulary whose value is not zero.
    pooling_layer: the layers to pool; their hidden states are concatenated in this order. 0: the first layer;
    -1: the last.
    normalize: divide each vector by its L2 norm.
    dimensions: shorten each vector to its first `dimensions` numbers, before it is normalized. The model must be
    trained for this.
    truncate: cut texts that are too long at their "right" or "left" end; "error": refuse them (InvalidRequest).
    long_text: "chunk": split a text that is too long into overlapping windows and return the mean of their
    vectors. The weight of a window is the number of tokens that it adds to the windows before it. "truncate": cut
    the text; see the option `truncate`.
    prompt: text to put in front of each text and of each window. prompt_name: the name of a prompt configured in
    the model folder.
    pairs: read "a ||| b" as a pair of sentences. Set this to false if texts may contain " ||| " with another
    meaning: the reply does not show which texts were read as pairs.
    ragged: return the vectors of tokens without padding.
    show_tokens, show_offsets: return the tokens of each text, and their positions in the text in characters.
    show_usage: return the number of tokens and the time that the request took.
    on_error: what a text that cannot be encoded leads to. "error": the whole request fails. "null": the text has a
    row of NaN, or no row if texts have different numbers of rows; the reply says why in `errors`.

    Raises TypeError or ValueError; the message names the option.
    """

    pooling_strategy: tuple[str, ...] | None = None
    pooling_layer: tuple[int, ...] | None = None
    normalize: bool | None = None
    dimensions: int | None = None
    truncate: str = "right"
    long_text: str = "truncate"
    prompt: str | None = None
    prompt_name: str | None = None
    pairs: bool = True
    ragged: bool = False
    show_tokens: bool = False
    show_offsets: bool = False
    show_usage: bool = False
    on_error: str = "error"

    def __post_init__(self) -> None:
        # A single name or number becomes a tuple of one item, so that "MEAN" and ["MEAN"] make equal options.
        if self.pooling_strategy is not None:
            names = _strings("pooling_strategy", self.pooling_strategy)
            known = None if [n.lower() for n in names] == ["auto"] else tuple(map(pooling_name, names))
            if known is not None and len(known) > 1 and (alone := _ALONE & set(known)):
                raise ValueError(f"pooling_strategy {min(alone)} cannot be combined with other strategies")
            _refuse_repeated("pooling_strategy", known or ())
            object.__setattr__(self, "pooling_strategy", known or ("auto",))
        if self.pooling_layer is not None:
            layers = _whole_numbers("pooling_layer", self.pooling_layer)
            _refuse_repeated("pooling_layer", layers)
            object.__setattr__(self, "pooling_layer", layers)
        for name in ("normalize", "pairs", "ragged", "show_tokens", "show_offsets", "show_usage"):
            value = getattr(self, name)
            if not (isinstance(value, bool) or (value is None and name == "normalize")):
                raise TypeError(f"{name} must be true or false, got {shortened(value)}")
        if self.dimensions is not None and (type(self.dimensions) is not int or not 1 <= self.dimensions < _LIMIT):
            raise ValueError(f"dimensions must be a whole number from 1, got {shortened(self.dimensions)}")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                got = shortened(getattr(self, name))
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {got}")
        self._check_prompts()

    def _check_prompts(self) -> None:
        for name in ("prompt", "prompt_name"):
            value = getattr(self, name)
            if not isinstance(value, str | None):
                raise TypeError(f"{name} must be a string, got {shortened(value)}")
            if value is not None and has_lone_surrogate(value):
                raise ValueError(f"{name} contains a lone surrogate, which is not Unicode text")
        if self.prompt is not None and len(self.prompt) > _MAX_PROMPT_CHARS:  # each text gets a copy of the prompt
            raise ValueError(f"prompt must have at most {_MAX_PROMPT_CHARS} characters, got {len(self.prompt)}")
        if self.prompt is not None and self.prompt_name is not None:
            raise ValueError("set prompt or prompt_name, not both")

    def to_json(self) -> dict[str, object]:
        """Return the options that differ from the defaults, by name."""
        return {name: value for name, default in _DEFAULTS.items() if (value := getattr(self, name)) != default}


_DEFAULTS = {field.name: field.default for field in fields(EncodeOptions)}


def options_from_json(value: object) -> EncodeOptions:
    """Return the options in a JSON object. Raises TypeError or ValueError; the message names the option."""
    if not isinstance(value, Mapping):
        raise TypeError(f"options must be a JSON object, got {type(value).__name__}")
    if unknown := sorted(value.keys() - _DEFAULTS.keys()):
        raise ValueError(f"unknown option {shortened(unknown[0])}; the options are {', '.join(_DEFAULTS)}")
    return EncodeOptions(**{name: v for name, v in value.items() if v is not None})


def check_spans(spans: object, num_texts: int) -> None:
    """Raise ValueError unless spans has a non-empty list of [start, end) for each text."""
    if not isinstance(spans, list | tuple) or len(spans) != num_texts:
        raise ValueError(f"spans must be a list with one item for each of the {num_texts} texts")
    num_spans = sum(len(of_text) for of_text in spans if isinstance(of_text, list | tuple))
    if num_spans > _MAX_SPANS_IN_REQUEST:
        raise ValueError(f"spans may hold at most {_MAX_SPANS_IN_REQUEST} pairs in one request, got {num_spans}")
    for i, of_text in enumerate(spans):
        if not isinstance(of_text, list | tuple) or not 1 <= len(of_text) <= _MAX_SPANS:
            raise ValueError(f"spans[{i}] must be a list of 1 to {_MAX_SPANS} pairs [start, end]")
        for span in of_text:
            pair = isinstance(span, list | tuple) and len(span) == 2 and all(type(x) is int for x in span)
            if not pair or not 0 <= span[0] < span[1] < _LIMIT:
                raise ValueError(
                    f"spans[{i}] must hold [start, end] in characters, start < end, got {shortened(span)}"
                )


def _strings(name: str, value: object) -> tuple[str, ...]:
    values = (value,) if isinstance(value, str) else value
    if not _is_short_list_of(values, str):
        raise TypeError(f"{name} must be a name or a list of names, got {shortened(value)}")
    return tuple(values)


def _whole_numbers(name: str, value: object) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else value
    if not _is_short_list_of(values, int):
        raise TypeError(f"{name} must be a whole number or a list of them, got {shortened(value)}")
    if not all(-_LIMIT < number < _LIMIT for number in values):
        raise ValueError(f"{name} must be the number of a layer, got {shortened(value)}")
    return tuple(values)


def _refuse_repeated(name: str, values: Sequence[object]) -> None:
    """Raise ValueError if a value occurs twice: it would make vectors longer without new information."""
    if repeated := [value for value in values if values.count(value) > 1]:
        raise ValueError(f"{name} must not contain {shortened(repeated[0])} more than once")


def _is_short_list_of(value: object, kind: type[_T]) -> TypeGuard[Sequence[_T]]:
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str | bytes)
        and 1 <= len(value) <= _MAX_LIST
        and all(isinstance(item, kind) and not isinstance(item, bool) for item in value)
    )
