"""The wheel and the sdist contain the right files and work in a clean environment."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import running_server
from tests.support.code_blocks import ROOT, blocks_run_by, code_blocks, on_ports_of
from tests.support.processes import run
from tests.support.running_server import RunningServer

PIP = ("-m", "pip", "--disable-pip-version-check", "--quiet")


@dataclass(frozen=True)
class Distributions:
    """The files that a release consists of."""

    sdist: Path
    wheel: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Distributions:
    """An sdist of this repository, and a wheel that is built from the sdist."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", out, ROOT)
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return Distributions(sdist, wheel)


def test_twine_finds_no_fault(built: Distributions) -> None:
    run(sys.executable, "-m", "twine", "check", "--strict", built.sdist, built.wheel)


def test_the_wheel_holds_both_halves_and_no_init_in_the_namespace(built: Distributions) -> None:
    names = {name for name in zipfile.ZipFile(built.wheel).namelist() if ".dist-info/" not in name}
    halves = [ROOT / "client", ROOT / "server"]
    files = {path.relative_to(half) for half in halves for path in half.rglob("*") if path.is_file()}
    assert names == {path.as_posix() for path in files if "__pycache__" not in path.parts}
    assert {"bert_serving/client/sync.py", "bert_serving/server/settings.py"} <= names
    assert "bert_serving/__init__.py" not in names


def test_the_sdist_holds_what_the_repository_holds(built: Distributions) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    with tarfile.open(built.sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()} - {"PKG-INFO"}
    tracked = set(run("git", "ls-files", cwd=ROOT).splitlines())
    new = set(run("git", "ls-files", "--others", "--exclude-standard", cwd=ROOT).splitlines())
    assert tracked - names == set()
    assert names - tracked <= new


def test_the_wheel_alone_is_the_client_on_numpy_and_pyzmq(
    built: Distributions, tmp_path: Path, server: RunningServer
) -> None:
    run(sys.executable, "-m", "venv", tmp_path / "env")
    python = tmp_path / "env/bin/python"
    run(python, *PIP, "install", "-c", ROOT / "constraints.txt", built.wheel)
    installed = run(python, "-m", "pip", "--disable-pip-version-check", "list", "--format=freeze").split()
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


def test_only_their_extras_bring_large_packages(built: Distributions) -> None:
    large = ("ray", "pyarrow", "sentence-transformers")
    (metadata,) = [name for name in zipfile.ZipFile(built.wheel).namelist() if name.endswith("/METADATA")]
    lines = zipfile.ZipFile(built.wheel).read(metadata).decode().splitlines()
    needed = [line.removeprefix("Requires-Dist: ") for line in lines if line.startswith("Requires-Dist: ")]
    extras = {name: {line.partition("extra == ")[2] for line in needed if line.startswith(name)} for name in large}
    assert extras == {
        "ray": {"'ray'"},
        "pyarrow": {"'files'", "'ray'", "'train'"},
        "sentence-transformers": {"'train'", "'test'"},
    }


def test_the_sdist_takes_the_place_of_the_old_packages_and_serves_the_readmes_first_example(
    built: Distributions, tmp_path: Path, demo_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commands are those of docs/migrating.md. The environment has nothing else from this repository."""
    (block,) = blocks_run_by(__file__)
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "env")
    python, scripts = tmp_path / "env/bin/python", tmp_path / "env/bin"
    (site_packages,) = (tmp_path / "env/lib").glob("python*/site-packages")
    shared = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (site_packages / "shared.pth").write_text("\n".join(shared))
    with tarfile.open(built.sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.glob("bert_embedding_service-*")
    (scripts / "pip").write_text(f'#!/bin/sh\nexec {sys.executable} {" ".join(PIP)} --python {python} "$@"\n')
    (scripts / "pip").chmod(0o755)
    run(scripts / "pip", "install", "--no-deps", "bert-serving-client==1.10.0")
    done = subprocess.run(
        ["bash", "-euc", block.code.partition("bert-serving-start")[0]],
        input="y\n",  # pip asks before it uninstalls
        capture_output=True,
        text=True,
        check=False,
        cwd=source,
        env={
            **os.environ,
            "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
            "PIP_CONSTRAINT": str(ROOT / "constraints.txt"),
            "PYTHONPATH": "",
        },
    )
    assert done.returncode == 0, done.stdout + done.stderr

    where = "import bert_serving.client as c, bert_serving.server as s; print(c.__file__, s.__file__)"
    files = run(python, "-c", where, cwd=tmp_path, env={"PYTHONPATH": ""}).split()
    assert all(Path(file).is_relative_to(site_packages) for file in files), files
    installed = run(scripts / "pip", "list", "--path", site_packages, "--format=freeze")
    assert "bert-serving-client" not in installed
    example = next(block for block in code_blocks(ROOT / "README.md") if block.language == "python")
    monkeypatch.setattr(running_server, "_BIN", scripts)
    options = [word.replace("/path/to/model", str(demo_model)) for word in block.start_options]
    with RunningServer(*options, env={"PYTHONPATH": ""}) as server:
        code = on_ports_of(server.wait_ready(), example.code)
        printed = run(python, "-c", code, cwd=tmp_path, env={"PYTHONPATH": ""})
    assert printed.splitlines() == example.printed == ["(3, 384)"]
