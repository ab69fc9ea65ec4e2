"""The contents of the wheel and of the image, and which module imports which."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.running_server import RunningServer
from tests.support.waiting import HANG_S

ROOT = Path(__file__).parents[2]


def run(*command: object, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **(env or {})},
        timeout=HANG_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "module",
    [
        "bert_serving.client",
        "bert_serving.server.broker.broker",
        "bert_serving.server.supervisor",
        "bert_serving.server.gateway.app",
        "bert_serving.server.cli",
        "bert_serving.server.cli.status_table",
        "bert_serving.server.compat.benchmark.runner",
    ],
)
def test_nothing_but_the_worker_loads_torch_or_transformers(module: str) -> None:
    code = f"import sys, {module}; print(*(m for m in ('torch', 'transformers') if m in sys.modules))"
    assert run(sys.executable, "-c", code).strip() == ""


def test_broker_worker_and_gateway_do_not_import_each_other() -> None:
    server = ROOT / "server/bert_serving/server"
    parts = ("broker", "worker", "gateway")
    for part in parts:
        for file in (server / part).glob("*.py"):
            imported = re.findall(r"^\s*(?:from|import) ([\w.]+)", file.read_text(), re.M)
            others = [name for name in imported for other in parts if other != part and other in name.split(".")]
            assert others == [], file


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--outdir", out, ROOT)
    (built,) = out.glob("*.whl")
    return built


def test_the_wheel_holds_both_halves_and_no_init_in_the_namespace(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {
        "bert_serving/client/sync.py",
        "bert_serving/server/cli/start.py",
        "bert_serving/protocol/codec.py",
    } <= set(names)
    assert "bert_serving/__init__.py" not in names


def test_the_wheel_alone_is_the_client_on_numpy_and_pyzmq(
    wheel: Path, tmp_path: Path, server: RunningServer
) -> None:
    run(sys.executable, "-m", "venv", tmp_path / "env")
    python = tmp_path / "env/bin/python"
    run(
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "-c",
        ROOT / "constraints.txt",
        wheel,
    )
    installed = run(python, "-m", "pip", "list", "--format=freeze").split()
    names = {line.partition("==")[0].lower() for line in installed} - {"pip", "setuptools"}
    assert names == {"bert-embedding-service", "numpy", "pyzmq"}
    code = (
        "from bert_serving.client import BertClient, AsyncBertClient, ConcurrentBertClient\n"
        f"with BertClient(port={server.port}, port_out={server.port_out}) as client:\n"
        "    print(client.encode(['alone'], show_tokens=True))"
    )
    assert "[CLS]" in run(python, "-c", code, cwd=tmp_path)
    start = subprocess.run([tmp_path / "env/bin/bert-serving-start"], capture_output=True, text=True, check=False)
    assert start.returncode == 1
    (line,) = start.stderr.splitlines()
    assert "pip install 'bert-embedding-service[server]'" in line


def test_the_images_run_lines_work_in_a_clean_environment(tmp_path: Path) -> None:
    """Run the RUN lines of the Dockerfile's build stage with other paths, and then its entry point."""
    dockerfile = (ROOT / "Dockerfile").read_text()
    source, target = tmp_path / "src", tmp_path / "venv"
    source.mkdir()
    build_stage = dockerfile.split("\nFROM ")[1]
    for what, where in re.findall(r"^COPY (.+) (\S+)$", build_stage, re.M):
        for name in what.split():
            here = ROOT / name
            if here.is_dir():
                shutil.copytree(here, source / where, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(here, source / where)
    lines = re.findall(r"^RUN (.+)$", build_stage, re.M)
    assert len(lines) == 4
    env = {"TORCH_BACKEND": "cpu"}
    if local := os.environ.get("PIP_FIND_LINKS"):
        env |= {"UV_FIND_LINKS": local, "UV_OFFLINE": "1"}  # a machine with a local copy of the torch build
    for line in lines:
        command = line.replace("/opt/venv", str(target)).replace("python -m venv", f"{sys.executable} -m venv")
        run("sh", "-ec", command.replace("--no-cache-dir", "").replace("--no-cache ", ""), cwd=source, env=env)
    assert re.fullmatch(
        r"bert-serving-start \S+\n", run(target / "bin/bert-serving-start", "-version", cwd=tmp_path)
    )
    run(target / "bin/python", "-c", "from bert_serving.server.model.folder import find_demo_model as f; f()")


def test_the_image_runs_as_an_unprivileged_user_and_checks_its_health(server: RunningServer) -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert re.search(r"^USER 10001:10001$", dockerfile, re.M)
    assert not re.findall(
        r"^RUN ", dockerfile.split("\nFROM ")[2], re.M
    )  # RUN lines of the last stage would not be tested
    (check,) = re.findall(r'HEALTHCHECK.*\\\n +CMD \["python", "-c", "(.+)"\]', dockerfile)
    assert "/ready" in check
    run(sys.executable, "-c", check.replace("127.0.0.1:8125", f"127.0.0.1:{server.http_port}"))


def test_compose_publishes_both_port_sets_and_a_model_volume() -> None:
    import yaml

    (service,) = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"].values()
    assert {port.rpartition(":")[2] for port in service["ports"]} == {"5555", "5556", "8125"}
    assert service["volumes"] == ["${MODELS:-models}:/models"]
    assert service["environment"] == {
        "BERT_SERVING_MODEL_DIR": "${MODEL:-}",
        "BERT_SERVING_API_KEY": "${API_KEY:-}",
    }
