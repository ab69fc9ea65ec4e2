"""The unmodified bert-serving-client 1.10.0 from PyPI, in an environment of its own."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import bert_serving.client
import pytest
from bert_serving.client import BertClient, ConcurrentBertClient
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


@pytest.fixture(scope="module")
def old_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("old-client")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, "bert-serving-client==1.10.0"], check=True)
    return python


def run_with(
    python: Path, script: str, server: RunningServer, folder: Path, stdin: str | None = None
) -> dict[str, Any]:
    """Run a script on the server's ports, far from this repository; return the JSON that it prints."""
    path = folder / "script.py"
    path.write_text(script)
    done = subprocess.run(
        [python, path, str(server.port), str(server.port_out)],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=folder,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_old_client_does_all_that_it_could(server: RunningServer, old_python: Path, tmp_path: Path) -> None:
    found = run_with(old_python, SCRIPT, server, tmp_path)
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
        found = run_with(old_python, FLAGS_SCRIPT, server, tmp_path)
        with BertClient(**server.ports) as ours:
            assert [ours.length_limit, ours.token_info_available] == found["config"][:2]
    assert {key: found[key] for key in expected} == expected


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

#: The old client's sockets and buffers, which belong to its way of receiving.
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


def test_every_public_name_and_argument_of_the_old_client_is_ours(
    server: RunningServer, old_python: Path, tmp_path: Path
) -> None:
    found = run_with(old_python, NAMES_SCRIPT, server, tmp_path, stdin=json.dumps(REQUESTS))
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
