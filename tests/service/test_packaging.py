"""Which imports load torch, and what the container image contains."""

from __future__ import annotations

import os
import re
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from bert_serving.server.worker.compiled.forward import GraphFacts

from tests.support.code_blocks import ROOT, CodeBlock, blocks_run_by
from tests.support.image import health_check
from tests.support.processes import run
from tests.support.running_server import RunningServer, command

DOCKERFILE = (ROOT / "Dockerfile").read_text()
BASE_STAGE, BUILD_STAGE, LAST_STAGE = DOCKERFILE.split("\nFROM ")[1:]


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


_IMPORT_WORKER = """
import sys
from bert_serving.server.worker import start
try:
    start.main(no_such_option=1)
except TypeError:  # after everything is imported
    print("transformers" in sys.modules, *(name for name in ("sklearn", "scipy") if name in sys.modules))
"""


def test_a_worker_does_not_import_what_it_does_not_need() -> None:
    assert find_spec("sklearn")  # else this shows nothing
    assert find_spec("scipy")
    assert run(sys.executable, "-c", _IMPORT_WORKER) == "True\n"


@pytest.mark.parametrize("block", blocks_run_by(__file__), ids=str)
def test_make_serve_starts_the_server_that_the_tests_start(block: CodeBlock) -> None:
    """CI runs what `make serve` does before this: `make check` installs the same, and more."""
    (words,) = block.commands
    installed = Path(sys.prefix) / ".serve"
    options = ["--dry-run", "--no-print-directory", "--assume-old", installed, f"VENV={sys.prefix}"]
    run_by_make = run(*words, *options, cwd=ROOT)
    assert run_by_make.split() == command("bert-serving-start", "-http_port", 8125)


def test_the_images_run_lines_work_in_a_clean_environment(tmp_path: Path) -> None:
    """Run the RUN lines of the Dockerfile's build stage with other paths, then the image's entry point."""
    source, opt = tmp_path / "src", tmp_path / "opt"
    target = opt / "venv"
    source.mkdir()
    opt.mkdir()
    for what, where in re.findall(r"^COPY (.+) (\S+)$", BUILD_STAGE, re.M):
        for name in what.split():
            here = ROOT / name
            if here.is_dir():
                shutil.copytree(here, source / where, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(here, source / where)
    lines = re.findall(r"^RUN (.+)$", BUILD_STAGE, re.M)
    assert len(lines) == 6
    for line in lines:
        env = {"TORCH_BACKEND": "cpu"}
        if "--torch-backend" in line and (local := os.environ.get("PIP_FIND_LINKS")):
            env |= {"UV_FIND_LINKS": local, "UV_OFFLINE": "1"}  # this machine has a local copy of the torch build
        command = line.replace("/opt/", f"{opt}/").replace("python -m venv", f"{sys.executable} -m venv")
        run("sh", "-ec", command.replace("--no-cache-dir", "").replace("--no-cache ", ""), cwd=source, env=env)
    assert re.fullmatch(
        r"bert-serving-start \S+\n", run(target / "bin/bert-serving-start", "-version", cwd=tmp_path)
    )
    (compiled,) = (opt / "volumes/models/.compiled").glob("*/graph.so")
    assert GraphFacts.read(compiled.parent).failed is None
    run(target / "bin/python", "-c", "from bert_serving.server.model.demo import find_demo_model as f; f()")


def test_the_image_has_the_python_that_the_tests_run_on() -> None:
    tested = re.findall(r'"Programming Language :: Python :: (\d\.\d+)"', (ROOT / "pyproject.toml").read_text())
    (version,) = re.findall(r"^ARG PYTHON_VERSION=(\S+)$", DOCKERFILE, re.M)
    assert version in tested


def test_the_image_runs_as_an_unprivileged_user_and_checks_its_health(server: RunningServer) -> None:
    assert re.search(r"^USER 10001:10001$", LAST_STAGE, re.M)
    assert not re.findall(r"^RUN ", LAST_STAGE, re.M)  # no test runs the RUN lines of the last stage
    check = health_check(server.http_port)
    assert "/ready" in check[-1]
    run(*check)


def image_settings() -> dict[str, str]:
    """Return the settings that the image sets as environment variables."""
    return dict(re.findall(r"^ +BERT_SERVING_(\w+)=(\S+)", LAST_STAGE, re.M))


def compose_service(text: str) -> dict[str, Any]:
    import yaml

    return dict(yaml.safe_load(text)["services"]["embedding"])


def test_the_image_opens_http_and_keeps_the_other_ports_to_itself() -> None:
    settings = image_settings()
    assert settings.pop("COMPILE_CACHE") == "/models/.compiled"
    assert settings == {"HTTP_HOST": "0.0.0.0", "HTTP_PORT": "8125"}


def test_the_image_has_the_compiler_of_forward_passes() -> None:
    assert " install --yes --no-install-recommends g++ " in BASE_STAGE
    assert BUILD_STAGE.startswith("base ")
    assert LAST_STAGE.startswith("base\n")


def test_the_user_of_the_image_owns_the_folder_of_the_models() -> None:
    (user,) = re.findall(r"^USER (\S+)$", LAST_STAGE, re.M)
    made = LAST_STAGE.index(f"COPY --from=build --chown={user} /opt/volumes /\n")
    assert made < LAST_STAGE.index("VOLUME /models")


def test_compose_publishes_only_ports_that_the_image_opens_and_a_model_volume() -> None:
    service = compose_service((ROOT / "docker-compose.yml").read_text())
    assert service["ports"] == ["127.0.0.1:8125:8125"]
    assert service["volumes"] == ["${MODELS:-models}:/models"]
    assert service["environment"] == {
        "BERT_SERVING_MODEL_DIR": "${MODEL:-}",
        "BERT_SERVING_API_KEY": "${API_KEY:-}",
        "BERT_SERVING_OTEL_ENDPOINT": "${OTEL_ENDPOINT:-}",
    }


def test_the_commented_lines_of_compose_open_the_other_ports_with_curve() -> None:
    lines = (ROOT / "docker-compose.yml").read_text()
    service = compose_service(re.sub(r"^( +)# (?=BERT_|- )", r"\1", lines, flags=re.M))
    assert {port.rpartition(":")[2] for port in service["ports"]} == {"5555", "5556", "8125"}
    assert service["environment"]["BERT_SERVING_HOST"] == "0.0.0.0"
    assert service["environment"]["BERT_SERVING_CURVE_DIR"] == "/keys"
    assert "./keys:/keys:ro" in service["volumes"]
