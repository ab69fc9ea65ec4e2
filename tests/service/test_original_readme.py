"""The examples of bert-as-service's README work with the unmodified old client and this server."""

from __future__ import annotations

import http.client
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from bert_serving.client import BertClient
from bert_serving.server import BertServer
from bert_serving.server.helper import get_args_parser, get_shutdown_parser

from tests.support.old_client import run_with
from tests.support.running_server import RunningServer, free_ports
from tests.support.tensor_bundles import GOOGLE_BERT
from tests.support.waiting import HANG_S

FIRST_STEPS = """
import json, sys
import numpy as np
from bert_serving.client import BertClient
ports = dict(port=int(sys.argv[1]), port_out=int(sys.argv[2]), timeout=int(sys.argv[3]))
found = {}

bc = BertClient(**ports)                               # never closed, as in the README
found["encode"] = list(bc.encode(["First do it", "then do it right", "then do it better"]).shape)
found["pair"] = list(bc.encode(["First do it ||| then do it right"]).shape)

def batches():
    while True:
        yield ["hello world", "good day"]

found["async"] = [list(each.embedding.shape) for each in bc.encode_async(batches(), max_num_batch=10, delay=0.5)]
for _ in range(3):
    bc.encode(["hello world"] * 5, blocking=False)
found["concat"] = list(bc.fetch_all(concat=True).shape)

questions = ["Where can I download a model?", "How fast is it?", "Does it run on a graphics card?"]
rows = bc.encode(questions)
(asked,) = bc.encode(["is a GPU card used?"])
scores = np.sum(asked * rows, axis=1) / np.linalg.norm(rows, axis=1)
found["best"] = questions[np.argsort(scores)[::-1][0]]

words = [text.split() for text in ["hello world", "good day"]]
found["own tokenizer"] = list(bc.encode(words, is_tokenized=True).shape)
found["elsewhere"] = list(BertClient(ip="127.0.0.1", **ports).encode(["hello"]).shape)
print(json.dumps(found))
"""

TOKENS = """
import json, sys
from bert_serving.client import BertClient
bc = BertClient(port=int(sys.argv[1]), port_out=int(sys.argv[2]), timeout=int(sys.argv[3]))
found = {}
rows = bc.encode(["hello you", "jumped over!"])
found["shape"], found["of one"], found["of a word"] = (list(part.shape) for part in (rows, rows[0], rows[0][1]))
found["filled"] = rows.any(axis=2).sum(axis=1).tolist()
try:
    rows[0][20]
except IndexError:
    found["beyond"] = "IndexError"
found["tokens"] = bc.encode(["hello you", "jumped over!", "you ||| i say"], show_tokens=True)[1]
found["own tokens"] = bc.encode([["hello", "unheard", "jump", "##ed"]], is_tokenized=True, show_tokens=True)[1]
print(json.dumps(found))
"""

MANY = """
import json, sys
from bert_serving.client import BertClient
with BertClient(port=int(sys.argv[1]), port_out=int(sys.argv[2]), timeout=int(sys.argv[3])) as bc:
    rows = bc.encode(["one", "two three"])
    for i in range(3000):                              # more than ZeroMQ queues; 1.10.0 lost some requests
        bc.encode(["one"], blocking=False)
    many = bc.fetch_all(concat=True)
    print(json.dumps([list(rows.shape), list(many.shape), float(abs(many - rows[0]).max())]))
"""


def test_first_steps(server: RunningServer, old_python: Path, tmp_path: Path) -> None:
    assert run_with(old_python, FIRST_STEPS, server.ports, tmp_path) == {
        "encode": [3, 384],
        "pair": [1, 384],
        "async": [[2, 384]] * 10,
        "concat": [15, 384],
        "best": "Does it run on a graphics card?",
        "own tokenizer": [2, 384],
        "elsewhere": [1, 384],
    }


def test_vectors_and_names_of_all_tokens(old_python: Path, tmp_path: Path) -> None:
    flags = ["-pooling_strategy", "NONE", "-max_seq_len", "20", "-show_tokens_to_client"]
    with RunningServer("-model_dir", GOOGLE_BERT, *flags) as server:
        server.wait_ready()
        found = run_with(old_python, TOKENS, server.ports, tmp_path)
    assert found == {
        "shape": [2, 20, 16],
        "of one": [20, 16],
        "of a word": [16],
        "filled": [4, 6],
        "beyond": "IndexError",
        "tokens": [
            ["[CLS]", "hello", "you", "[SEP]"],
            ["[CLS]", "jump", "##ed", "over", "!", "[SEP]"],
            ["[CLS]", "you", "[SEP]", "i", "say", "[SEP]"],
        ],
        "own tokens": [["[CLS]", "hello", "[UNK]", "jump", "##ed", "[SEP]"]],
    }


def test_a_server_from_python(old_python: Path, tmp_path: Path) -> None:
    port, port_out = free_ports(2)
    args = get_args_parser().parse_args(
        [
            *("-model_dir", str(GOOGLE_BERT), "-port", str(port), "-port_out", str(port_out)),
            *("-max_seq_len", "NONE", "-mask_cls_sep", "-cpu"),
        ]
    )
    server = BertServer(args)
    server.start()
    try:
        one_and_two, many, difference = run_with(old_python, MANY, {"port": port, "port_out": port_out}, tmp_path)
        BertServer.shutdown(get_shutdown_parser().parse_args(["-ip", "localhost", "-port", str(port)]))
        server.join(HANG_S)
        assert not server.is_alive()
    finally:
        server.close()
    assert (one_and_two, many) == ([2, 16], [3000, 16])
    assert difference < 0.05


BODY = b'{"id": 123,"texts": ["hello world"], "is_tokenized": false}'


@pytest.mark.parametrize("how", ["python", "curl"] if shutil.which("curl") else ["python"])
def test_http(server: RunningServer, client: BertClient, how: str) -> None:
    status, content = (_post_with_curl if how == "curl" else _post)(server, BODY)
    reply = json.loads(content)
    assert (status, reply["id"], reply["status"]) == (200, 123, 200)
    (row,) = reply["result"]
    assert np.abs(np.array(row) - client.encode(["hello world"])[0]).max() < 0.01


def _post(server: RunningServer, body: bytes) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=HANG_S)
    connection.request("POST", "/encode", body, {"content-type": "application/json"})
    reply = connection.getresponse()
    status, content = reply.status, reply.read()
    connection.close()
    return status, content


def _post_with_curl(server: RunningServer, body: bytes) -> tuple[int, bytes]:
    command = ["curl", "-sS", "--noproxy", "*", "-w", "\n%{http_code}", "-X", "POST", f"{server.url}/encode"]
    command += ["-H", "content-type: application/json", "-d", body.decode()]
    done = subprocess.run(command, capture_output=True, timeout=HANG_S, check=True)
    content, _, status = done.stdout.rpartition(b"\n")
    return int(status), content
