"""Options as JSON and back, remembered: most requests of a service have the same few options.

To check the options of a request and to write them takes longer than everything else in a short request.
"""

from __future__ import annotations

from functools import lru_cache

from .encoding import dump_json, load_json
from .messages import JsonObject
from .options import EncodeOptions, options_from_json

_NUM_REMEMBERED = 256
_MAX_BYTES = 512  # longer options are not remembered: they have a prompt, which may be another one in each request
_DEFAULT = EncodeOptions()


@lru_cache(maxsize=_NUM_REMEMBERED)
def options_to_json(options: EncodeOptions) -> JsonObject:
    """Return `options.to_json()`. The caller must not change it."""
    return options.to_json()


def known_options(value: object) -> EncodeOptions:
    """Return `options_from_json(value)`. Equal values give the same object, if they were seen lately."""
    if not value:
        return _DEFAULT
    try:
        text = dump_json(value)
    except (TypeError, ValueError):  # such as a number of more than 64 bits: the error must name the option
        return options_from_json(value)
    return _options_in(text) if len(text) <= _MAX_BYTES else options_from_json(value)


@lru_cache(maxsize=_NUM_REMEMBERED)
def _options_in(text: bytes) -> EncodeOptions:
    return options_from_json(load_json(text))
