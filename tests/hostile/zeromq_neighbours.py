"""Bad neighbours that use the ZeroMQ ports. Each function attacks until `until`, in monotonic seconds.

The bodies are written by hand, because our clients refuse to send most of them.
"""

from __future__ import annotations

import itertools
import json
import time
import uuid
from collections.abc import Mapping
from contextlib import ExitStack, suppress

import zmq
from bert_serving.protocol import MAX_TEXT_CHARS

from tests.hostile.garbage_messages import garbage_messages
from tests.hostile.raw import RawClient, shaken_hands
from tests.hostile.target import Target
from tests.support.sentences import numbered

_MAX_TEXTS = 262_144  # the server's default limit for the texts of one request
_NUM_SUBSCRIPTIONS = 10_000
_NUM_UNREAD = 70_000  # so many replies once stopped a server for a minute


def does_not_read(target: Target, until: float) -> None:
    """Ask for many small replies and many large ones, and read none of them."""
    large = _body(numbered("a", 500))
    with RawClient(target, reads=False) as client:
        for i in range(_NUM_UNREAD):
            if time.monotonic() > until:
                break
            if i % 1000 == 0:
                client.ask(large, 500)
            client.ask(b"[]", 0)
        _sleep_until(until)


def floods_with_requests(target: Target, until: float) -> None:
    """Send valid requests of one text as fast as the server reads them."""
    body = _body(["a short text"])
    with RawClient(target) as client:
        while time.monotonic() < until:
            for _ in range(100):
                client.ask(body, 1)
            for _ in client.replies():
                pass


def floods_with_garbage(target: Target, until: float) -> None:
    """Send messages of random shape."""
    messages = garbage_messages(seed=1)
    with RawClient(target) as client:
        while time.monotonic() < until:
            for message in itertools.islice(messages, 100):
                client.send(message)


def explodes_by_duplicates(target: Target, until: float) -> None:
    """Ask for vectors of the same layer and strategy 120 times over."""
    options = {"pooling_layer": [-1] * 30, "pooling_strategy": ["REDUCE_MEAN"] * 4}
    _ask_again_and_again(target, until, _body(numbered("a", 3000), options), 3000)


def explodes_by_layers(target: Target, until: float) -> None:
    """Ask for vectors of as many components as distinct layers and strategies allow."""
    strategies = ["REDUCE_MEAN_MAX", "REDUCE_MEAN", "REDUCE_MAX", "CLS_TOKEN", "SEP_TOKEN", "MEAN_SQRT_LEN"]
    options = {"pooling_layer": [0, 1, 2, 3, 4, 5], "pooling_strategy": strategies}
    _ask_again_and_again(target, until, _body(numbered("a", 3000), options), 3000)


def asks_for_token_vectors(target: Target, until: float) -> None:
    """Ask for the vectors of all tokens of long texts."""
    options = {"pooling_strategy": "NONE"}
    _ask_again_and_again(target, until, _body(numbered("a b c d e f g h " * 32, 200), options), 200)


def sends_huge_lists(target: Target, until: float) -> None:
    """Fill the queue with requests of as many texts as the server accepts."""
    _ask_again_and_again(target, until, _body(numbered("a", _MAX_TEXTS)), _MAX_TEXTS)


def sends_under_many_names(target: Target, until: float) -> None:
    """Fill the queue from fifty identities, each of which has a share."""
    body, names = _body(numbered("a", 5000)), [str(uuid.uuid4()).encode() for _ in range(50)]
    with RawClient(target) as client:
        for name in names:
            client.subscribe(name)
        while time.monotonic() < until:
            for name in names:
                client.ask(body, 5000, identity=name)
            for _ in client.replies(0.2):
                pass


def sends_distinct_options(target: Target, until: float) -> None:
    """Send requests of one text, each with other options, so that no two share a pooling plan."""
    layers = [list(some) for size in (1, 2, 3) for some in itertools.permutations(range(6), size)]
    bodies = [_body(["a b c"], {"pooling_layer": some}) for some in layers]
    with RawClient(target) as client:
        while time.monotonic() < until:
            for body in bodies:
                client.ask(body, 1)
            for _ in client.replies(0.2):
                pass


def sends_long_texts(target: Target, until: float) -> None:
    """Send texts that become hundreds of windows each."""
    _ask_again_and_again(target, until, _body(["word " * 130_000], {"long_text": "chunk"}), 1)


def sends_blanks(target: Target, until: float) -> None:
    """Send texts that consist of 100 MB of blanks."""
    _ask_again_and_again(target, until, _body([" " * 100_000_000]), 1)


def sends_longest_texts(target: Target, until: float) -> None:
    """Send 100 MB in texts as long as the server accepts."""
    text = ("word " * MAX_TEXT_CHARS)[:MAX_TEXT_CHARS]
    texts = [each[:MAX_TEXT_CHARS] for each in numbered(text, 24)]
    _ask_again_and_again(target, until, _body(texts), 24)


def sends_containers(target: Target, until: float) -> None:
    """Send JSON that takes many times its size when it is parsed."""
    body = b'{"texts":["a"],"x":[' + b"[]," * 4_000_000 + b"[]]}"
    _ask_again_and_again(target, until, body, 9)  # as many texts as let a body be so long


def sends_many_values(target: Target, until: float) -> None:
    """Send texts that are lists of token ids, with almost as many ids as a request may hold."""
    body = b'{"texts":[' + b",".join([b"[" + b",".join([b"100"] * 500) + b"]"] * 8000) + b"]}"
    _ask_again_and_again(target, until, body, 8000)


def sends_endless_messages(target: Target, until: float) -> None:
    """Send a message that has frames without end, to both ports."""
    pieces = {target.port: b"PUSH", target.port_out: b"SUB"}
    while time.monotonic() < until:
        with suppress(OSError), ExitStack() as stack:
            sockets = [stack.enter_context(shaken_hands(port, kind)) for port, kind in pieces.items()]
            while time.monotonic() < until:
                for socket in sockets:
                    socket.sendall(b"\1\0" * 30_000)


def subscribes(target: Target, until: float) -> None:
    """Subscribe to ten thousand identities over a hundred connections, disconnect, and do it again."""
    while time.monotonic() < until:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        for _ in range(100):
            socket = context.socket(zmq.SUB)
            for _ in range(_NUM_SUBSCRIPTIONS // 100):
                socket.subscribe(str(uuid.uuid4()).encode())
            socket.connect(f"tcp://127.0.0.1:{target.port_out}")
        time.sleep(1)
        context.destroy(linger=0)


def leaves(target: Target, until: float) -> None:
    """Send a large request, leave before the reply, and come back under another name."""
    body = _body(numbered("one two three four", 2000))
    while time.monotonic() < until:
        with RawClient(target) as client:
            client.ask(body, 2000)
            time.sleep(0.05)  # closing the client earlier would drop the request unsent


def connects_and_leaves(target: Target, until: float) -> None:
    """Open and close connections to both ports as fast as possible."""
    while time.monotonic() < until:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        for _ in range(20):
            for kind, port in ((zmq.PUSH, target.port), (zmq.SUB, target.port_out)):
                context.socket(kind).connect(f"tcp://127.0.0.1:{port}")
        time.sleep(0.02)
        context.destroy(linger=0)


def _ask_again_and_again(target: Target, until: float, body: bytes, num_texts: int) -> None:
    """Keep a few of these requests waiting. Replies are read, but not parsed."""
    num_open = 0
    with RawClient(target) as client:
        while time.monotonic() < until:
            if num_open < 6:
                num_open += client.ask(body, num_texts)
            num_open -= sum(1 for _ in client.replies(0.05))


def _body(texts: list[str], options: Mapping[str, object] | None = None) -> bytes:
    return json.dumps({"texts": texts, "options": options or {}}).encode()


def _sleep_until(until: float) -> None:
    time.sleep(max(0.0, until - time.monotonic()))


ATTACKS = (
    does_not_read,
    floods_with_requests,
    floods_with_garbage,
    explodes_by_duplicates,
    explodes_by_layers,
    asks_for_token_vectors,
    sends_huge_lists,
    sends_under_many_names,
    sends_distinct_options,
    sends_long_texts,
    sends_blanks,
    sends_longest_texts,
    sends_containers,
    sends_many_values,
    sends_endless_messages,
    subscribes,
    leaves,
    connects_and_leaves,
)
