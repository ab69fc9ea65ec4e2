"""Random ZeroMQ messages: random frames, and requests in which something is wrong."""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import Iterator

from bert_serving.protocol import Command

# TERMINATION is obeyed if it comes from this machine, so it is not garbage.
_COMMANDS: list[bytes] = [command.value for command in Command if command is not Command.TERMINATION]
_WRONG_TEXTS: tuple[object, ...] = (
    [],
    None,
    1,
    "a",
    [1, "a"],
    [[]],
    [None],
    ["\ud800"],
    [["a"], "b"],
    {"texts": ["a"]},
    [{"text": "a"}],
)
_WRONG_OPTIONS: tuple[object, ...] = (
    {"pooling_layer": "x"},
    {"pooling_layer": [99]},
    {"pooling_strategy": "MEDIAN"},
    {"dimensions": -1},
    {"truncate": "x" * 1000},
    {"nothing": 1},
    [],
    {"prompt": 1},
    {"prompt_name": "none"},
    {"normalize": "yes"},
)


def garbage_messages(seed: int) -> Iterator[list[bytes]]:
    """Yield random messages without end: about half of them are almost requests, and a few are requests."""
    rng = random.Random(seed)
    noise = rng.randbytes(1 << 16)
    kinds = (_random_frames, _almost_a_request, _cut_request)
    while True:
        yield rng.choice(kinds)(rng, noise)


def _random_frames(rng: random.Random, noise: bytes) -> list[bytes]:
    """Return 1 to 6 frames of random bytes. Small frames are more likely."""
    return [_slice(rng, noise, 2 ** rng.randrange(13)) for _ in range(rng.randrange(1, 7))]


def _almost_a_request(rng: random.Random, noise: bytes) -> list[bytes]:
    """Return four frames, of which some are as they should be."""
    return [_identity(rng, noise), _body(rng, noise), _number(rng, noise), _number(rng, noise)]


def _cut_request(rng: random.Random, noise: bytes) -> list[bytes]:
    """Return a request that lacks a frame or has one more, or whose body is cut."""
    frames = _almost_a_request(rng, noise)
    frames[1] = frames[1][: rng.randrange(len(frames[1]) + 1)]
    if rng.random() < 0.5:
        del frames[rng.randrange(4)]
    else:
        frames.insert(rng.randrange(5), _slice(rng, noise, 64))
    return frames


def _identity(rng: random.Random, noise: bytes) -> bytes:
    """Return an identity that nobody has subscribed to, or bytes that are not an identity."""
    if rng.random() < 0.5:
        return str(uuid.UUID(int=rng.getrandbits(128))).encode()
    return _slice(rng, noise, 300)


def _number(rng: random.Random, noise: bytes) -> bytes:
    return b"%d" % rng.choice((0, 1, 1, 2, 10**25)) if rng.random() < 0.8 else _slice(rng, noise, 30)


def _body(rng: random.Random, noise: bytes) -> bytes:
    choice = rng.random()
    if choice < 0.1:
        return rng.choice(_COMMANDS)
    if choice < 0.3:
        return _slice(rng, noise, 2000)
    texts = ["a"] if rng.random() < 0.5 else rng.choice(_WRONG_TEXTS)
    if choice < 0.5:
        return json.dumps(texts).encode()
    return json.dumps({"texts": texts, "options": rng.choice(_WRONG_OPTIONS)}).encode()


def _slice(rng: random.Random, noise: bytes, max_bytes: int) -> bytes:
    start = rng.randrange(len(noise) - max_bytes)
    return noise[start : start + rng.randrange(max_bytes + 1)]
