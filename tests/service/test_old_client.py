"""The unmodified bert-serving-client 1.10.0 from PyPI, in an environment of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from old_client import run_with
from running_server import RunningServer
from tiny_models import make_model

SCRIPT = """
import json, sys
import numpy as np
from bert_serving.client import BertClient, ConcurrentBertClient
import bert_serving.client
assert bert_serving.client.__version__ == "1.10.0", bert_serving.client.__version__
port, port_out = int(sys.argv[1]), int(sys.argv[2])
ports = dict(port=port, port_out=port_out, timeout=20000)
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
for i in range(30):                                    # each asks before its subscription can have arrived
    with BertClient(ignore_all_checks=True, **ports) as bc:
        fresh.append(bc.encode(["fresh client %d" % i]).shape == (1, 384))
found["fresh"] = sum(fresh)

with BertClient(output_fmt="list", **ports) as bc:
    found["list"] = len(bc.encode(["x"])[0])

with ConcurrentBertClient(max_concurrency=3, **ports) as bc:
    found["concurrent"] = list(bc.encode(["x"]).shape)

with BertClient(ignore_all_checks=True, **ports) as bc:  # past the client's own check: an error, not a hang
    bc._send(json.dumps(["fine", ""]).encode(), 2)
    try:
        bc._recv_ndarray(1)
    except TypeError as exc:
        found["error"] = str(exc)
    found["after_error"] = list(bc.encode(["fine"]).shape)
print(json.dumps(found))
"""


def test_the_old_client_does_all_that_it_could(server: RunningServer, old_python: Path, tmp_path: Path) -> None:
    from bert_serving.client import BertClient

    found = run_with(old_python, SCRIPT, server.ports, tmp_path)
    with BertClient(**server.ports) as client:
        (expected,) = client.encode(["First do it"])
    row, tokenized = found.pop("row"), found.pop("tokenized")
    assert max(abs(a - b) for a, b in zip(row, expected, strict=True)) < 0.01
    assert max(abs(a - b) for a, b in zip(tokenized, expected, strict=True)) < 0.01
    assert found.pop("status") >= 10
    assert found.pop("error") == "data type 'invalid_request: texts[1] is an empty string' not understood"
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


FLAGS_SCRIPT = """
import json, sys
from bert_serving.client import BertClient
ports = dict(port=int(sys.argv[1]), port_out=int(sys.argv[2]), timeout=20000)
found = {}
with BertClient(**ports) as bc:
    config = bc.server_config
    found["config"] = [config[key] for key in ("max_seq_len", "show_tokens_to_client", "pooling_strategy")]
    for name, texts in (("plain", ["one two three", "a"]), ("pair", ["one two ||| three"])):
        result = bc.encode(texts, show_tokens=config["show_tokens_to_client"])
        rows, tokens = result if config["show_tokens_to_client"] else (result, None)
        found[name] = [list(rows.shape), str(rows.dtype), tokens]
        found[name + " rows"] = rows.reshape(-1, rows.shape[-1]).any(axis=1).tolist()
print(json.dumps(found))
"""


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (
            ["-pooling_strategy", "NONE", "-max_seq_len", "25", "-show_tokens_to_client"],
            {
                "config": [25, True, 0],
                "plain": [[2, 25, 64], "float32", [["<s>", "one", "two", "three", "</s>"], ["<s>", "a", "</s>"]]],
                "pair": [[1, 25, 64], "float32", [["<s>", "one", "two", "</s>", "three", "</s>"]]],
                "plain rows": [*[True] * 5, *[False] * 20, *[True] * 3, *[False] * 22],
            },
        ),
        (
            ["-pooling_strategy", "NONE", "-mask_cls_sep", "-max_seq_len", "NONE"],
            {
                "plain": [[2, 5, 64], "float32", None],
                "plain rows": [False, True, True, True, False, False, True] + [False] * 3,
            },
        ),
        (
            ["-pooling_strategy", "CLS_POOLED", "-fp16"],
            {"config": [512, False, 6], "plain": [[2, 64], "float16", None], "pair": [[1, 64], "float16", None]},
        ),
        (
            ["-pooling_strategy", "REDUCE_MEAN_MAX", "-pooling_layer", "-1", "-2", "-cased_tokenization"],
            {"config": [512, False, 3], "plain": [[2, 256], "float32", None]},
        ),
    ],
    ids=["NONE 25", "NONE masked", "CLS_POOLED", "layers"],
)
def test_the_old_client_gets_what_each_flag_gave_it(
    old_python: Path, tmp_path: Path, flags: list[str], expected: dict[str, object]
) -> None:
    model = make_model(tmp_path / "model", "bert")
    with RunningServer("-model_dir", model, "-cpu", *flags) as server:
        server.wait_ready()
        found = run_with(old_python, FLAGS_SCRIPT, server.ports, tmp_path)
    assert {key: found[key] for key in expected} == expected


CLONES_SCRIPT = """
import json, socket, sys, threading
from bert_serving.client import BertClient
port, port_out = int(sys.argv[1]), int(sys.argv[2])

def pass_on(source, target):
    while data := source.recv(65536):
        target.sendall(data)

def slow_line(is_open):
    # To port_out, for one client; nothing passes before it is open.
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
    bc = BertClient(port=port, port_out=port_out, identity=identity, timeout=20000)
    is_open, clones = threading.Event(), []
    def clone():
        line = slow_line(is_open)
        clones.append(BertClient(port=port, port_out=line, identity=bc.identity, timeout=20000))
    threads = [threading.Thread(target=clone) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in threads:                                  # the answers for the clones go out to bc alone
        assert bc.receiver.poll(20000)
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
    """The original's multicast. What it answered before a clone could hear it, the clone waited for for ever."""
    expected = {
        "clones": 2,
        "heard": [True, True],
        "kept": [1],  # as with the original: a client keeps one answer to its clones' first question
        "fetch_all": [3, 1, 2],
        "clone asks": True,
        "status": True,
        "pending": 0,
    }
    assert run_with(old_python, CLONES_SCRIPT, server.ports, tmp_path) == [expected, expected]
