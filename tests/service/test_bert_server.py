"""A server started by a Python program, as in bert-as-service's README and examples."""

from __future__ import annotations

import json
import multiprocessing
import signal
import subprocess
import sys
import textwrap
from argparse import Namespace
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from bert_serving.client import BertClient
from bert_serving.server import BertServer
from bert_serving.server.graph import PoolingStrategy
from bert_serving.server.helper import get_args_parser, get_benchmark_parser, get_shutdown_parser

from tests.support.running_server import free_ports, is_alive
from tests.support.waiting import HANG_S, wait_until


def arguments(model: Path, *flags: object) -> Namespace:
    port, port_out = free_ports(2)
    return get_args_parser().parse_args(
        list(map(str, ["-model_dir", model, "-port", port, "-port_out", port_out, "-cpu", *flags]))
    )


def ports(args: Namespace) -> dict[str, int]:
    return {"port": args.port, "port_out": args.port_out}


def test_a_server_is_ready_inside_its_context_and_has_ended_after_it(tiny: Path) -> None:
    args = arguments(tiny)
    with BertServer(args) as server:
        assert server.is_ready.is_set()
        assert (server.args, server.port, server.port_out) == (args, args.port, args.port_out)
        assert (server.model_dir, server.max_seq_len) == (str(tiny), args.max_seq_len)
        assert (server.num_worker, server.max_batch_size) == (args.num_worker, args.max_batch_size)
        with pytest.raises(RuntimeError, match="started only once"):
            server.start()
        assert server._process is not None
        server._process.send_signal(signal.SIGHUP)  # asks for a reload; must not end the server
        with BertClient(**ports(args)) as client:
            assert client.encode(["hello world"]).shape == (1, 64)
    assert server._process.returncode == 0
    assert not server.is_ready.is_set()
    assert not server.is_alive()
    with pytest.raises(TimeoutError):
        BertClient(**ports(args), connect_timeout=300)


def test_close_waits_longer_than_the_drain_time(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    with BertServer(arguments(tiny, "-drain_timeout", 77)) as server:
        assert server._process is not None
        wait = server._process.wait
        monkeypatch.setattr(
            server._process, "wait", lambda timeout=None: (waits.append(timeout), wait(timeout))[1]
        )
    assert max(filter(None, waits)) > 77


def test_the_keys_of_a_server_are_those_of_its_arguments(tiny: Path) -> None:
    (http_port,) = free_ports(1)
    args = arguments(tiny, "-http_port", http_port, "-api_key", "secret")
    url = f"http://127.0.0.1:{http_port}/v1/models"
    with BertServer(args) as server:
        assert server._process is not None
        assert httpx.get(url, timeout=HANG_S).status_code == 401
        assert httpx.get(url, headers={"Authorization": "Bearer secret"}, timeout=HANG_S).status_code == 200
        family = [psutil.Process(server._process.pid), *psutil.Process(server._process.pid).children()]
        assert not any("secret" in word for process in family for word in process.cmdline())


def test_one_program_may_start_and_close_servers_one_after_the_other_with_changed_arguments(tiny: Path) -> None:
    args = arguments(tiny)
    rows = []
    for i in range(4):
        args.pooling_layer = [-1 - i % 3]
        server = BertServer(args)
        server.start()
        with BertClient(**ports(args)) as client:  # the request waits until the model is loaded
            rows.append(client.encode(["hello"])[0])
        server.close()
    assert (rows[3] == rows[0]).all()
    assert not (rows[0] == rows[1]).all()
    assert not (rows[1] == rows[2]).all()


def test_a_fork_of_the_program_neither_stops_the_server_nor_keeps_it_alive(tiny: Path) -> None:
    context = multiprocessing.get_context("fork")
    is_over = context.Event()
    args = arguments(tiny)
    with BertServer(args) as server:
        lingerer, closer = context.Process(target=is_over.wait), context.Process(target=server.close)
        lingerer.start()
        closer.start()
        closer.join(HANG_S)
        with BertClient(**ports(args)) as client:
            assert client.encode(["hello world"]).shape == (1, 64)
    assert server._process is not None
    assert server._process.returncode == 0
    assert lingerer.is_alive()
    is_over.set()
    lingerer.join(HANG_S)


@pytest.mark.parametrize("form", ["namespace", "port", "number"])
def test_shutdown_ends_a_server_and_its_thread(tiny: Path, form: str) -> None:
    args = arguments(tiny)
    server = BertServer(args)
    server.start()
    server.wait_ready(HANG_S)
    if form == "namespace":
        BertServer.shutdown(get_shutdown_parser().parse_args(["-port", str(args.port)]))
    else:
        BertServer.shutdown(args.port) if form == "number" else BertServer.shutdown(port=args.port)
    server.join(HANG_S)
    assert not server.is_alive()
    assert server._process is not None
    assert server._process.returncode == 0


def test_what_keeps_a_server_from_starting_is_raised(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="model_dir has no config"):
        BertServer(arguments(tmp_path))
    modules = [{"type": "sentence_transformers.models.LSTM", "path": ""}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    for file in ("config.json", "tokenizer.json", "model.safetensors"):
        (tmp_path / file).write_text("{}")
    with pytest.raises(ValueError, match=r"modules\.json must list .* got LSTM"):
        BertServer(arguments(tmp_path, "-max_seq_len", 25))
    bad_layer = arguments(tiny, "-pooling_layer", 9)
    with pytest.raises(RuntimeError, match="pooling_layer must be in"), BertServer(bad_layer):
        pass


def test_parsed_arguments_may_be_changed_and_fp16_returns_float16_vectors(tiny: Path) -> None:
    port, port_out = free_ports(2)
    args = get_benchmark_parser().parse_args(["-dtype", "float32"])  # this parser has the server's arguments too
    args.model_dir, args.port, args.port_out = tiny, port, port_out
    args.fp16 = args.cpu = True
    args.pooling_strategy, args.pooling_layer = PoolingStrategy.REDUCE_MEAN_MAX, -1
    args.device_map = args.cors = args.verbose = args.tuned_model_dir = None
    args.do_lower_case = False
    with BertServer(args), BertClient(**ports(args)) as client:
        config = client.server_config
        assert (config["pooling_strategy"], config["pooling_layer"], config["do_lower_case"]) == (3, [-1], False)
        rows, tokens = client.encode(["hello world"]), client.encode_tokens(["hello world"])[0]
        padded = client.encode(["hello world"], pooling_strategy="NONE")
    assert (rows.dtype, tokens.vectors.dtype, padded.dtype) == (np.float16, np.float16, np.float16)


def test_a_program_needs_no_main_guard_and_leaves_nothing_when_it_is_killed(tiny: Path, tmp_path: Path) -> None:
    port, port_out = free_ports(2)
    script = tmp_path / "program.py"
    script.write_text(
        textwrap.dedent(f"""
        import ctypes, signal
        from bert_serving.client import BertClient
        from bert_serving.server import BertServer
        from bert_serving.server.helper import get_args_parser
        args = get_args_parser().parse_args(
            ["-model_dir", {str(tiny)!r}, "-port", "{port}", "-port_out", "{port_out}", "-cpu"])
        server = BertServer(args)
        server.start()
        print(BertClient(port={port}, port_out={port_out}).encode(["hello"]).shape, flush=True)
        fork = ctypes.PyDLL(None).fork()  # a fork that Python does not know of keeps all files open
        if fork:
            print(fork, flush=True)
        signal.alarm({HANG_S})
        signal.pause()
        """)
    )
    program = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    assert program.stdout is not None
    assert program.stdout.readline() == "(1, 64)\n"
    fork = psutil.Process(int(program.stdout.readline()))
    family = [child for child in psutil.Process(program.pid).children(recursive=True) if child != fork]
    assert len(family) >= 2
    program.kill()
    program.wait()
    program.stdout.close()
    wait_until(lambda: not any(map(is_alive, family)), lambda: f"left behind: {list(filter(is_alive, family))}")
    fork.kill()
