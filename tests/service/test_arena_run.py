"""The arena runs with this project's own systems, and writes a JSON file, tables and plots."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.arena.in_process import LeftOutError
from benchmarks.arena.kinds import InProcess, Own
from benchmarks.arena.models import find_model
from tests.support.waiting import HANG_S

ROOT = Path(__file__).parents[2]
SYSTEMS = ["encoder float32", "BertClient float32", "HTTP base64"]
NOT_HERE = "ONNX Runtime bfloat16"
CLIENTS = {"1 clients", "16 clients", "4 clients, 64 texts", "bulk beside 8 users"}
CLIENTS |= {f"open loop, {percent} %" for percent in (50, 80, 95)}
ALL = {"bulk", "one sentence", "one sentence, one core busy", "duplicates"}
ALL |= {f"{count} tokens" for count in (20, 64, 128, 256)}


def test_a_quick_run_measures_every_workload_of_every_system(tmp_path: Path) -> None:
    out = tmp_path / "arena.json"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.arena", "--quick", "--rounds", "1", "--out", out),
            *("--systems", *SYSTEMS, NOT_HERE),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert [(each["system"], each["reason"][:12]) for each in found["left_out"]] == [(NOT_HERE, "ONNX Runtime")]
    measured: dict[str, set[str]] = {}
    for each in found["measurements"]:
        assert each["model"] == "demo"
        assert each["round"] == 0
        # CPU time may be 0, because it is counted in steps of 10 ms.
        assert all(value > 0 or name.endswith("_cpu_us") for name, value in each["values"].items()), each
        measured.setdefault(each["system"], set()).add(each["workload"])
    assert measured == {
        "encoder float32": ALL,
        "BertClient float32": ALL | CLIENTS,
        "HTTP base64": ALL | CLIENTS,
    }
    about = found["about"]
    assert about["cores"] >= 1
    assert about["environments"]["this project"]["torch"]
    assert found["systems"]["BertClient float32"]["flags"][:2] == ["-dtype", "float32"]
    for name in ("encoder float32", "BertClient float32"):
        assert found["systems"][name]["ran"]["forward"] in {"packed", "compiled"}
    page = out.with_suffix(".md").read_text()
    assert "| one sentence, time: one core busy / at rest, BertClient | at most 2 | not measured |" in done.stdout
    assert all(f"| **{name}** |" in page for name in SYSTEMS)
    assert f"| demo | {NOT_HERE} |" in page
    plots = {path.name for path in tmp_path.glob("*.svg")}
    assert plots == {f"arena-demo-{name}.svg" for name in ("bulk", "one", "clients", "open")}


@pytest.mark.parametrize(
    ("system", "reason"),
    [
        (Own("refused", ("-no_such_flag", "1")), "unrecognized arguments: -no_such_flag 1"),
        (
            InProcess("refused", "encoder", {"no_such_argument": 1}),
            "unexpected keyword argument 'no_such_argument'",
        ),
        (InProcess("refused", "no_such_driver"), "drive_no_such_driver.py"),
        (
            InProcess("refused", "encoder", forward="folded"),
            "forward passes are (packed|compiled), not folded",
        ),
        (Own("refused", (), forward="folded"), "forward passes are (packed|compiled), not folded"),
    ],
)
def test_a_system_whose_arguments_are_refused_is_left_out(system: Own | InProcess, reason: str) -> None:
    with pytest.raises(LeftOutError, match=reason):
        system.start(find_model("demo"), ["hello"], {})
