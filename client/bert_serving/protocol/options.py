"""What a request may ask for beyond the server's own settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from .texts import has_lone_surrogate

#: Pooling strategies: bert-as-service's names, then sentence-transformers' names.
POOLING_STRATEGIES = (
    *(
        "NONE",
        "REDUCE_MEAN",
        "REDUCE_MAX",
        "REDUCE_MEAN_MAX",
        "CLS_TOKEN",
        "FIRST_TOKEN",
        "SEP_TOKEN",
        "LAST_TOKEN",
    ),
    *("CLS_POOLED", "CLASSIFICATION", "REGRESSION", "MEAN_SQRT_LEN", "WEIGHTED_MEAN", "LOGITS", "SPLADE"),
)
_ALSO_CALLED = {
    "MEAN": "REDUCE_MEAN",
    "MAX": "REDUCE_MAX",
    "CLS": "CLS_TOKEN",
    "LASTTOKEN": "LAST_TOKEN",
    "MEAN_SQRT_LEN_TOKENS": "MEAN_SQRT_LEN",
    "WEIGHTEDMEAN": "WEIGHTED_MEAN",
}
_ALONE = {"NONE", "SPLADE"}
_CHOICES = {"truncate": ("right", "left", "error"), "long_text": ("truncate", "chunk")}
_MAX_LIST = 32
_MAX_SPANS = 1024  # of one text: each is a vector
_MAX_PROMPT_CHARS = 4096


def pooling_name(name: str) -> str:
    """Return a pooling strategy as it is spelled in POOLING_STRATEGIES. Raises ValueError if it is none."""
    upper = name.upper()
    upper = _ALSO_CALLED.get(upper, upper)
    if upper not in POOLING_STRATEGIES:
        raise ValueError(f"pooling_strategy must be one of auto, {', '.join(POOLING_STRATEGIES)}, got {name!r}")
    return upper


@dataclass(frozen=True, slots=True)
class EncodeOptions:
    """How the texts of one request become vectors; None is what the server was started with.

    pooling_strategy: one or several, side by side in this order; "auto" is the model's own. NONE: a vector
    for each token. SPLADE: (index, value) of each term of the vocabulary that a text has some of.
    pooling_layer: layers, concatenated in this order; -1 is the last, 0 the first.
    normalize: divide each vector by its L2 norm. dimensions: keep so many leading components (of a model
    that was trained for it), before normalizing. truncate: the side on which too long a text is cut, or
    "error" to refuse it. long_text: "chunk" reads all of it, in overlapping windows whose vectors are
    averaged by length. prompt: goes in front of each text; prompt_name: one of the model's own prompts.
    pairs: "a ||| b" is a pair of sentences. ragged: token vectors come back without padding.
    show_tokens, show_offsets: send the tokens, and where they lie in the text, in characters. show_usage: send
    the number of tokens and the times that the request took.

    Raises TypeError or ValueError, which name the option.
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

    def __post_init__(self) -> None:
        # A single name or number is the same as a list of one: equal options must compare equal.
        if self.pooling_strategy is not None:
            names = _strings("pooling_strategy", self.pooling_strategy)
            known = None if [n.lower() for n in names] == ["auto"] else tuple(map(pooling_name, names))
            if known is not None and len(known) > 1 and (alone := _ALONE & set(known)):
                raise ValueError(f"pooling_strategy {min(alone)} stands alone: a text has any number of its rows")
            object.__setattr__(self, "pooling_strategy", known or ("auto",))
        if self.pooling_layer is not None:
            object.__setattr__(self, "pooling_layer", _whole_numbers("pooling_layer", self.pooling_layer))
        for name in ("normalize", "pairs", "ragged", "show_tokens", "show_offsets", "show_usage"):
            value = getattr(self, name)
            if not (isinstance(value, bool) or (value is None and name == "normalize")):
                raise TypeError(f"{name} must be true or false, got {value!r}")
        if self.dimensions is not None and (type(self.dimensions) is not int or self.dimensions < 1):
            raise ValueError(f"dimensions must be a whole number from 1, got {self.dimensions!r}")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        self._check_prompts()

    def _check_prompts(self) -> None:
        for name in ("prompt", "prompt_name"):
            value = getattr(self, name)
            if not isinstance(value, str | None):
                raise TypeError(f"{name} must be a string, got {value!r}")
            if value is not None and has_lone_surrogate(value):
                raise ValueError(f"{name} contains a lone surrogate, which is no Unicode text")
        if self.prompt is not None and len(self.prompt) > _MAX_PROMPT_CHARS:  # it is copied in front of each text
            raise ValueError(f"prompt must have at most {_MAX_PROMPT_CHARS} characters, got {len(self.prompt)}")
        if self.prompt is not None and self.prompt_name is not None:
            raise ValueError("give prompt or prompt_name, not both")

    def to_json(self) -> dict[str, Any]:
        """Return the options that differ from the defaults."""
        return {name: value for name, value in asdict(self).items() if value != _DEFAULTS[name]}


_DEFAULTS = {field.name: field.default for field in fields(EncodeOptions)}


def options_from_json(value: Any) -> EncodeOptions:
    """Return the options in a JSON object. Raises TypeError or ValueError, which name the option."""
    if not isinstance(value, Mapping):
        raise TypeError(f"options must be a JSON object, got {type(value).__name__}")
    if unknown := sorted(value.keys() - _DEFAULTS.keys()):
        raise ValueError(f"unknown option {unknown[0]!r}; there are {', '.join(_DEFAULTS)}")
    return EncodeOptions(**{name: v for name, v in value.items() if v is not None})


def check_spans(spans: Any, num_texts: int) -> None:
    """Raise TypeError or ValueError unless there is a non-empty list of (start, end) for each text."""
    if not isinstance(spans, list | tuple) or len(spans) != num_texts:
        raise ValueError(f"spans must be a list with an entry for each of the {num_texts} texts")
    for i, of_text in enumerate(spans):
        if not isinstance(of_text, list | tuple) or not 1 <= len(of_text) <= _MAX_SPANS:
            raise ValueError(f"spans[{i}] must be a list of 1 to {_MAX_SPANS} [start, end]")
        for span in of_text:
            pair = isinstance(span, list | tuple) and len(span) == 2 and all(type(x) is int for x in span)
            if not pair or not 0 <= span[0] < span[1]:
                raise ValueError(f"spans[{i}] must hold [start, end] in characters, start < end, got {span!r}")


def _strings(name: str, value: Any) -> tuple[str, ...]:
    values = (value,) if isinstance(value, str) else value
    if not _is_short_list(values) or not all(isinstance(v, str) for v in values):
        raise TypeError(f"{name} must be a name or a list of names, got {value!r}")
    return tuple(values)


def _whole_numbers(name: str, value: Any) -> tuple[int, ...]:
    values = (value,) if type(value) is int else value
    if not _is_short_list(values) or not all(type(v) is int for v in values):
        raise TypeError(f"{name} must be a whole number or a list of them, got {value!r}")
    return tuple(values)


def _is_short_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes) and 1 <= len(value) <= _MAX_LIST
