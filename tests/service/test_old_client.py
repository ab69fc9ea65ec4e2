"""The unmodified bert-serving-client 1.10.0 from PyPI works with this server, in a separate environment."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import bert_serving.client
import numpy as np
import pytest
from bert_serving.client import BertClient, ConcurrentBertClient

from tests.support.old_client import run_with
from tests.support.running_server import RunningServer
from tests.support.tensor_bundles import GOOGLE_BERT
from tests.support.tiny_models import make_classifier, make_model

SCRIPT = """
import json, sys
import numpy as np
from bert_serving.client import BertClient, ConcurrentBertClient
import bert_serving.client
assert bert_serving.client.__version__ == "1.10.0", bert_serving.client.__version__
port, port_out = int(sys.argv[1]), int(sys.argv[2])
ports = dict(port=port, port_out=port_out, timeout=int(sys.argv[3]))
found = {}

with BertClient(**ports) as bc:                        # default checks
    rows = bc.encode(["First do it", "then do it right"])
    found["shape"], found["dtype"] = list(rows.shape), str(rows.dtype)
    found["row"] = rows[0].tolist()
    found["tokenized"] = bc.encode([["first", "do", "it"]], is_tokenized=True)[0].tolist()
    sizes = [3, 1, 2]
    for size in sizes:
        bc.encode(["hello world"] * size, blocking=False)
    found["fetch_all"] = [len(part) for part in bc.fetch_all()]
    for size in sizes:
        bc.encode(["hello world"] * size, blocking=False)
    found["concat"] = list(bc.fetch_all(concat=True).shape)
    found["async"] = sorted(len(r.embedding) for r in bc.encode_async(iter([["a"], ["b", "c"]] * 2), delay=0.5))
    found["config"] = bc.server_config["server_version"]
    found["status"] = bc.server_status["statistic"]["num_data_request"]
    found["own"] = bc.status["num_request"]

fresh = []
for i in range(30):                                    # each client sends before its subscription arrives
    with BertClient(ignore_all_checks=True, **ports) as bc:
        fresh.append(bc.encode(["fresh client %d" % i]).shape == (1, 384))
found["fresh"] = sum(fresh)

with BertClient(output_fmt="list", **ports) as bc:
    found["list"] = len(bc.encode(["x"])[0])

with ConcurrentBertClient(max_concurrency=3, **ports) as bc:
    found["concurrent"] = list(bc.encode(["x"]).shape)

with BertClient(ignore_all_checks=True, **ports) as bc:  # the client does not check; the server must reply
    bc._send(json.dumps(["fine", 5]).encode(), 2)
    try:
        bc._recv_ndarray(1)
    except TypeError as exc:
        found["error"] = str(exc)
    found["after_error"] = list(bc.encode(["fine"]).shape)
print(json.dumps(found))
"""


def test_the_old_client_works_with_this_server(server: RunningServer, old_python: Path, tmp_path: Path) -> None:
    found = run_with(old_python, SCRIPT, server.ports, tmp_path)
    with BertClient(**server.ports) as client:
        (expected,) = client.encode(["First do it"])
    row, tokenized = found.pop("row"), found.pop("tokenized")
    assert max(abs(a - b) for a, b in zip(row, expected, strict=True)) < 0.01
    assert max(abs(a - b) for a, b in zip(tokenized, expected, strict=True)) < 0.01
    assert found.pop("status") >= 10
    assert found.pop("error") == "data type 'invalid_request: texts[1] must be a string; got int' not understood"
    assert found == {
        "shape": [2, 384],
        "dtype": "float32",
        "fetch_all": [3, 1, 2],
        "concat": [6, 384],
        "async": [1, 1, 2, 2],
        "config": "1.10.0",
        "own": 15,
        "fresh": 30,
        "list": 384,
        "concurrent": [1, 384],
        "after_error": [1, 384],
    }


CALLS_SCRIPT = """
import contextlib, io, json, socket, sys, threading, warnings
import numpy as np
from bert_serving.client import BertClient, ConcurrentBertClient
ports = dict(port=int(sys.argv[1]), port_out=int(sys.argv[2]), timeout=int(sys.argv[3]))
found = {}

def warned(call):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        call()
    return [str(each.message)[:30] for each in seen]

def raised(call):
    try:
        call()
    except Exception as exc:
        return [type(exc).__name__, str(exc)[:27]]

with BertClient(**ports) as bc:
    texts = ["a quick fox", "snow in may", "the price of tea", "who reads mail"]
    rows = bc.encode(texts)

    with ConcurrentBertClient(max_concurrency=4, **ports) as pool:
        nearest = [[] for _ in texts]
        def ask(i):
            for _ in range(20):
                (row,) = pool.encode([texts[i]])
                nearest[i].append(int(np.abs(rows - row).max(axis=1).argmin()))
        threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found["threads"] = [[len(each), *set(each)] for each in nearest]
        found["pool"] = [pool.server_config["server_version"], pool.status["client_version"],
                         "statistic" in pool.server_status, raised(pool.fetch_all)[0]]

    for size in (3, 1, 2):
        bc.encode(["hello world"] * size, blocking=False)
    sent = bc.status["pending_request"].copy()
    responses = {each.id: len(each.embedding) for each in bc.fetch()}
    found["fetch"] = [responses.keys() == sent, [responses[each] for each in sorted(sent)]]
    for size in (3, 1, 2):
        bc.encode(["hello world"] * size, blocking=False)
    found["unsorted"] = sorted(map(len, bc.fetch_all(sort=False)))
    found["nothing pending"] = bc.fetch_all()
    batches = iter([[["hello", "world"]]] * 5)
    responses = list(bc.encode_async(batches, max_num_batch=3, delay=0.5, is_tokenized=True))
    found["async"] = [list(each.embedding.shape) for each in responses]

    long = ["word " * 300]
    found["long"] = warned(lambda: bc.encode(long))
    found["short"] = warned(lambda: bc.encode(["word"]))
    found["tokens"] = warned(lambda: bc.encode(["word"], show_tokens=True))

    bc.timeout = 1
    found["in time"] = raised(lambda: bc.encode([f"sentence {i} takes a while" for i in range(1000)]))
    bc.timeout = ports["timeout"]
    again = bc.encode(texts[:1])                       # must not be the late reply
    found["later"] = int(np.abs(rows - again).max(axis=1).argmin())

with BertClient(check_length=False, check_version=False, check_token_info=False, **ports) as bc:
    found["unchecked"] = [bc.status["num_request"], warned(lambda: bc.encode(long))]

with BertClient(identity=b"a name", ip="127.0.0.1", output_fmt="list", **ports) as bc:
    found["identity"] = bc.status["identity"].decode()
    for size in (2, 1):
        bc.encode(["hello world"] * size, blocking=False)
    lists = bc.fetch_all(concat=True)
    found["lists"] = [type(lists).__name__, len(lists), type(lists[0]).__name__, type(lists[0][0]).__name__]

printed = io.StringIO()
with contextlib.redirect_stdout(printed):
    BertClient(show_server_config=True, **ports).close()
title, *lines = printed.getvalue().splitlines()
found["title"] = title
found["printed"] = sorted({"client", "max_seq_len", "server_version", "ventilator -> worker"}.intersection(
    line.partition("\\t=")[0].strip() for line in lines))

with socket.socket() as nobody:
    nobody.bind(("127.0.0.1", 0))
    nowhere = dict(port=nobody.getsockname()[1], port_out=nobody.getsockname()[1], timeout=200)
    found["nobody"] = raised(lambda: BertClient(**nowhere))
    found["nobody, unchecked"] = raised(lambda: BertClient(ignore_all_checks=True, **nowhere).encode(["x"]))
print(json.dumps(found))
"""


def test_the_old_clients_calls_return_warn_and_raise_as_they_did(
    server: RunningServer, old_python: Path, tmp_path: Path
) -> None:
    too_late = ["TimeoutError", "no response from the server"]
    assert run_with(old_python, CALLS_SCRIPT, server.ports, tmp_path) == {
        "threads": [[20, 0], [20, 1], [20, 2], [20, 3]],
        "pool": ["1.10.0", "1.10.0", True, "NotImplementedError"],
        "fetch": [True, [3, 1, 2]],
        "unsorted": [1, 2, 3],
        "nothing pending": None,
        "async": [[1, 384]] * 3,
        "long": ["some of your sentences have mo"],
        "short": [],
        "tokens": ['"show_tokens=True", but the se'],
        "in time": too_late,
        "later": 0,
        "unchecked": [0, []],
        "identity": "a name",
        "lists": ["list", 3, "list", "float"],
        "title": "server config:",
        "printed": ["client", "max_seq_len", "server_version", "ventilator -> worker"],
        "nobody": too_late,
        "nobody, unchecked": too_late,
    }


FLAGS_SCRIPT = """
import json, sys, warnings
import numpy as np
from bert_serving.client import BertClient, ConcurrentBertClient
ports = dict(port=int(sys.argv[1]), port_out=int(sys.argv[2]), timeout=int(sys.argv[3]))
found = {}
with BertClient(**ports) as bc:
    config = bc.server_config
    found["config"] = [config[key] for key in ("max_seq_len", "show_tokens_to_client", "pooling_strategy")]
    found["batches"] = [config[key] for key in ("num_worker", "max_batch_size", "priority_batch_size")]
    for name, texts in (
        ("plain", ["one two three", "a"]),
        ("pair", ["one two ||| three"]),
        ("tokenized", [["one", "two"], ["a"]]),
        ("cased", ["Hello"]),
        ("long", ["one " * 1000]),
    ):
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            result = bc.encode(
                texts, is_tokenized=name == "tokenized", show_tokens=config["show_tokens_to_client"]
            )
        rows, tokens = result if config["show_tokens_to_client"] else (result, None)
        found[name] = [list(rows.shape), str(rows.dtype), tokens]
        found[name + " rows"] = rows.reshape(-1, rows.shape[-1]).any(axis=1).tolist()
        found[name + " sums"] = rows.reshape(-1, rows.shape[-1]).sum(axis=1).round(3).tolist()
        found[name + " warnings"] = len(seen)

    plain, *turned = ["one two three", "a"], "one three two", "two one three"
    rows = bc.encode(plain)
    def is_same(each):
        return each.shape == rows.shape and each.dtype == rows.dtype and bool(np.abs(each - rows).max() < 0.02)

    def send():
        for _ in range(3):
            bc.encode(plain, blocking=False)

    send()
    found["fetch"] = [is_same(each.embedding) for each in bc.fetch()]
    send()
    found["fetch_all"] = [is_same(each) for each in bc.fetch_all()]
    send()
    found["concat"] = [is_same(each) for each in np.split(bc.fetch_all(concat=True), 3)]
    found["async"] = [is_same(each.embedding) for each in bc.encode_async(iter([plain] * 3), delay=0.1)]
    found["status"] = bc.server_status["statistic"]["num_data_request"] > 12
    one, other = bc.encode(turned)
    found["order matters"] = bool(np.abs(one - other).max() > 0.02)
with ConcurrentBertClient(max_concurrency=2, **ports) as pool:
    found["concurrent"] = [is_same(pool.encode(plain)) for _ in range(3)]
print(json.dumps(found))
"""


@pytest.mark.parametrize(
    ("model", "flags", "expected"),
    [
        (
            "tiny",
            [
                *("-pooling_strategy", "NONE", "-mask_cls_sep", "-max_seq_len", "NONE"),
                *("-num_worker", "2", "-priority_batch_size", "1"),
            ],
            {
                "batches": [2, 256, 1],
                "plain": [[2, 5, 64], "float32", None],
                "plain rows": [False, True, True, True, False, False, True] + [False] * 3,
                "plain warnings": 1,  # the client warns that the server sets no limit, as with 1.10.0
                "long": [[1, 512, 64], "float32", None],
                "long warnings": 1,
            },
        ),
        (
            "tiny",
            ["-pooling_strategy", "CLS_POOLED", "-fp16", "-max_batch_size", "1"],
            {
                "config": [512, False, 6],
                "batches": [1, 1, 16],
                "plain": [[2, 64], "float16", None],
                "pair": [[1, 64], "float16", None],
                "order matters": True,
            },
        ),
        (
            "tiny",
            [
                *("-pooling_strategy", "REDUCE_MEAN_MAX", "-pooling_layer", "-1", "-2"),
                *("-cased_tokenization", "-no_position_embeddings"),
            ],
            {"config": [512, False, 3], "plain": [[2, 256], "float32", None], "order matters": False},
        ),
        (
            "tiny",
            ["-pooling_strategy", "REDUCE_MAX", "FIRST_TOKEN", "LAST_TOKEN"],
            {"config": [512, False, None], "plain": [[2, 192], "float32", None]},
        ),
        (
            "one label",
            ["-pooling_strategy", "REGRESSION"],
            {"config": [512, False, 8], "plain": [[2, 1], "float32", None]},
        ),
        (
            "tuned",
            [
                *("-pooling_strategy", "CLASSIFICATION", "-num_labels", "3"),
                *("-config_name", "my_config.json", "-ckpt_name", "my.ckpt-343"),
            ],
            {
                "config": [24, False, 7],
                "plain": [[2, 3], "float32", None],
                "plain sums": [1, 1],
                "pair sums": [1],
            },
        ),
        (
            "google",
            [
                *("-pooling_strategy", "NONE", "-max_seq_len", "NONE", "-fixed_embed_length"),
                *("-no_special_token", "-cased_tokenization", "-show_tokens_to_client"),
            ],
            {
                "config": [None, True, 0],
                "plain": [
                    [2, 24, 16],
                    "float32",
                    [["[CLS]", "one", "two", "three", "[SEP]"], ["[CLS]", "a", "[SEP]"]],
                ],
                "tokenized": [[2, 24, 16], "float32", [["one", "two"], ["a"]]],
                "tokenized rows": [True] * 2 + [False] * 22 + [True] + [False] * 23,
                "cased": [[1, 24, 16], "float32", [["[CLS]", "Hello", "[SEP]"]]],
                "long": [[1, 24, 16], "float32", [["[CLS]", *["one"] * 22, "[SEP]"]]],
                "long warnings": 1,
            },
        ),
    ],
    ids=["NONE masked", "CLS_POOLED", "layers", "tokens", "REGRESSION", "CLASSIFICATION", "NONE fixed"],
)
def test_each_flag_has_the_same_effect_for_the_old_client_as_before(
    old_python: Path, tmp_path: Path, model: str, flags: list[str], expected: dict[str, object]
) -> None:
    with RunningServer(*_model_flags(model, tmp_path), "-cpu", *flags) as server:
        server.wait_ready()
        found = run_with(old_python, FLAGS_SCRIPT, server.ports, tmp_path)
        with BertClient(**server.ports) as ours:
            assert [ours.length_limit, ours.token_info_available] == found["config"][:2]
            if "FIRST_TOKEN" in flags:
                _check_three_strategies(ours)
    assert {key: found[key] for key in expected} == expected
    calls = ("fetch", "fetch_all", "concat", "async", "concurrent")
    assert {key: found[key] for key in calls} == dict.fromkeys(calls, [True] * 3)
    assert found["status"]


def _model_flags(model: str, folder: Path) -> list[object]:
    if model == "tiny":
        return ["-model_dir", make_model(folder / "model", "bert")]
    if model == "one label":
        return ["-model_dir", make_classifier(folder / "model", "bert", num_labels=1)]
    if model == "google":
        return ["-model_dir", GOOGLE_BERT]
    base, tuned = folder / "base", folder / "tuned"
    for path in (base, tuned):
        path.mkdir()
    (base / "my_config.json").symlink_to(GOOGLE_BERT / "bert_config.json")
    (base / "vocab.txt").symlink_to(GOOGLE_BERT / "vocab.txt")
    for end in ("index", "data-00000-of-00001"):
        (tuned / f"my.ckpt-343.{end}").symlink_to(GOOGLE_BERT / f"bert_model.ckpt.{end}")
    return ["-model_dir", base, "-tuned_model_dir", tuned]


def _check_three_strategies(client: BertClient) -> None:
    for text in ("one two three", "a"):
        (row,) = client.encode([text])
        (tokens,) = client.encode([text], pooling_strategy="NONE")
        assert np.abs(row - np.concatenate([tokens.max(axis=0), tokens[0], tokens[-1]])).max() < 0.02


CLONES_SCRIPT = """
import json, socket, sys, threading
from bert_serving.client import BertClient
port, port_out, timeout = map(int, sys.argv[1:])

def pass_on(source, target):
    while data := source.recv(65536):
        target.sendall(data)

def slow_line(is_open):
    # Return a port that connects one client with port_out. No data passes before is_open is set.
    listener = socket.create_server(("127.0.0.1", 0))
    def serve():
        near = listener.accept()[0]
        is_open.wait()
        far = socket.create_connection(("127.0.0.1", port_out))
        threading.Thread(target=pass_on, args=(far, near), daemon=True).start()
        pass_on(near, far)
    threading.Thread(target=serve, daemon=True).start()
    return listener.getsockname()[1]

def hear(client, request_id):
    client.pending_request.add(request_id)
    return client._recv_ndarray(request_id).embedding

def multicast(identity):
    bc = BertClient(port=port, port_out=port_out, identity=identity, timeout=timeout)
    is_open, clones = threading.Event(), []
    def clone():
        line = slow_line(is_open)
        clones.append(BertClient(port=port, port_out=line, identity=bc.identity, timeout=timeout))
    threads = [threading.Thread(target=clone) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in threads:                                  # only bc receives the replies to the clones
        assert bc.receiver.poll(timeout)
        bc.receiver.recv_multipart()
    is_open.set()
    for thread in threads:
        thread.join()
    rows = bc.encode(["one for all", "all for one"])   # request 2
    found = {"clones": len(clones), "heard": [(hear(each, 2) == rows).all().item() for each in clones]}
    found["kept"] = sorted(bc.pending_response)
    for size in (3, 1, 2):
        bc.encode(["hello world"] * size, blocking=False)
    found["fetch_all"] = [len(part) for part in bc.fetch_all()]
    found["clone asks"] = (clones[0].encode(["one for all"])[0] == rows[0]).all().item()
    found["status"] = "statistic" in bc.server_status
    found["pending"] = bc.status["num_pending_request"]
    for each in (bc, *clones):
        each.close()
    return found

print(json.dumps([multicast(None), multicast(b"a name")]))
"""


def test_old_clients_may_share_an_identity_whichever_of_their_connections_is_slow(
    server: RunningServer, old_python: Path, tmp_path: Path
) -> None:
    """Multicast works as in 1.10.0, but a client also gets a reply that was sent before the client had subscribed.

    In 1.10.0, the client waited for such a reply without end.
    """
    expected = {
        "clones": 2,
        "heard": [True, True],
        "kept": [1],  # as with 1.10.0, a client keeps one reply to the first request of its clones
        "fetch_all": [3, 1, 2],
        "clone asks": True,
        "status": True,
        "pending": 0,
    }
    assert run_with(old_python, CLONES_SCRIPT, server.ports, tmp_path) == [expected, expected]


NAMES_SCRIPT = """
import inspect, json, sys
import bert_serving.client as module
from bert_serving.client import BertClient, ConcurrentBertClient
options = dict(port=int(sys.argv[1]), port_out=int(sys.argv[2]), ignore_all_checks=True)
public = lambda value: [name for name in dir(value) if not name.startswith("_")]
found = {"module": module.__all__, "arguments": {}, "refused": []}
with BertClient(**options) as bc, ConcurrentBertClient(max_concurrency=1, **options) as pool:
    found["BertClient"], found["ConcurrentBertClient"] = public(bc), public(pool)
    for texts, is_tokenized in json.loads(sys.stdin.read()):
        try:
            bc.encode(texts, blocking=False, is_tokenized=is_tokenized)
            found["refused"].append(None)
        except (TypeError, ValueError) as exc:
            found["refused"].append(type(exc).__name__)
for name in ("__init__", "encode", "encode_async", "fetch", "fetch_all", "close"):
    parameters = inspect.signature(getattr(BertClient, name)).parameters.values()
    found["arguments"][name] = [[p.name, repr(p.default)] for p in parameters if p.kind != p.VAR_KEYWORD]
print(json.dumps(found))
"""

#: Sockets and buffers of the old client. The new client receives in another way and does not have them.
INSIDES = {"context", "sender", "receiver", "formatter", "pending_response"}

REQUESTS: list[tuple[object, bool]] = [
    (["fine", ""], False),
    (["fine", "   "], False),
    (["\t\n"], False),
    ([" fine "], False),
    ([["fine", ""]], True),
    ([["fine", " "]], True),
    ([["fine"], []], True),
    (["text"], True),
    ([["token"]], False),
    ([], False),
    ([], True),
    (["fine", None], False),
    ("text", False),
]


def test_the_new_client_has_every_public_name_and_argument_of_the_old_one(
    server: RunningServer, old_python: Path, tmp_path: Path
) -> None:
    found = run_with(old_python, NAMES_SCRIPT, server.ports, tmp_path, stdin=json.dumps(REQUESTS))
    assert set(found["module"]) <= set(bert_serving.client.__all__)
    with (
        BertClient(**server.ports, ignore_all_checks=True) as client,
        ConcurrentBertClient(max_concurrency=1, **server.ports, ignore_all_checks=True) as pool,
    ):
        assert set(found["BertClient"]) - set(dir(client)) == INSIDES
        assert set(found["ConcurrentBertClient"]) <= set(dir(pool))
        assert [_refusal(client, *request) for request in REQUESTS] == found["refused"]
    for name, arguments in found["arguments"].items():
        parameters = inspect.signature(getattr(BertClient, name)).parameters.values()
        assert [[p.name, repr(p.default)] for p in parameters][: len(arguments)] == arguments


def _refusal(client: BertClient, texts: Any, is_tokenized: bool) -> str | None:
    try:
        client.encode(texts, blocking=False, is_tokenized=is_tokenized)
    except (TypeError, ValueError) as exc:
        return type(exc).__name__
    return None
