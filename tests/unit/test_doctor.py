"""What bert-serving-doctor concludes from the facts of a machine, which are made up here."""

from __future__ import annotations

import os
import resource
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bert_serving.doctor.examination import Choices, Examination, advice_of, problem_line, problems_of, reasons
from bert_serving.doctor.machine import Machine, memory_within, this_machine
from bert_serving.doctor.measured import GpuMemory, Measured, OneText, gpu_memory, texts_of
from bert_serving.doctor.ports import taken_by
from bert_serving.doctor.report import text_of
from bert_serving.server.model.errors import ModelError
from bert_serving.server.settings import Settings
from bert_serving.server.supervisor.startup import StartError

GB = 1_000_000_000
MACHINE = Machine(
    processor="a processor",
    flags=("avx512_bf16",),
    cores=4,
    all_cores=8,
    load=0.1,
    memory=16 * GB,
    free_memory=12 * GB,
    driver_gpus=(),
    torch_gpus=(),
    max_files=65536,
    versions={"torch": "2.13.0+cpu"},
)
MEASURED = Measured(
    device="cpu",
    dtype="bfloat16",
    forward_kind="compiled",
    padded_because=None,
    kind="embedding",
    dimension=384,
    max_seq_len=256,
    parity=0.99999,
    load_s=2,
    memory=GB,
    gpu=None,
    texts_per_s=800,
    tokens_per_s=20_000,
    one_text=OneText(calls=400, median_ms=5, p99_ms=7, max_ms=9),
)
PACKED = replace(MEASURED, forward_kind="packed")
CHOICES = Choices(model="/models/x", workers=1, threads=4, devices=("cpu",), compiler="/usr/bin/g++")
WHY = {
    "workers": "one for the CPU",
    "device": "PyTorch sees no GPU",
    "dtype": "bf16",
    "forward pass": "a compiler",
}
SOUND = Examination(MACHINE, {5555: None, 5556: None}, True, CHOICES, MEASURED, WHY)


def settings(**given: Any) -> Settings:
    return Settings(**given)


def test_a_sound_machine_has_no_problem_and_needs_no_advice() -> None:
    assert problems_of(SOUND, settings()) == []
    assert advice_of(SOUND, settings(compile="auto")) == []
    assert "a server can start here" in text_of(SOUND)
    assert "folder      whole" in text_of(SOUND)


def test_a_server_is_promised_only_after_the_model_was_loaded() -> None:
    report = text_of(replace(SOUND, measured=None))
    assert "a server can start here" not in report
    assert "the model was not loaded (-seconds 0)" in " ".join(report.split())


@pytest.mark.parametrize(
    ("changed", "given", "expected"),
    [
        ({"ports": {5555: "process 7, nc -l 5555"}}, {}, "port 5555 is in use: process 7, nc -l 5555"),
        ({"choices": replace(CHOICES, workers=16)}, {}, "16 workers of 1,000 MB"),
        ({"measured": replace(MEASURED, parity=0.98)}, {}, "cosine of 0.9800: use -dtype float32"),
    ],
)
def test_a_problem_is_named(changed: dict[str, Any], given: dict[str, Any], expected: str) -> None:
    found = replace(SOUND, **changed)
    (problem,) = problems_of(found, settings(**given))
    assert expected in problem
    assert problem.split()[0] in text_of(replace(found, problems=(problem,)))


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"machine": replace(MACHINE, driver_gpus=("NVIDIA H200",))}, "PyTorch 2.13.0+cpu uses none"),
        ({"machine": replace(MACHINE, load=5.2)}, "5.2 threads ran or waited on the 8 cores"),
        ({"choices": replace(CHOICES, workers=5)}, "use at most one for each core"),
        ({"choices": replace(CHOICES, compiler=None)}, "install g++"),
        ({"measured": replace(MEASURED, dtype="float32")}, "does not compute in bfloat16"),
        ({"measured": replace(MEASURED, padded_because="of its positions")}, "padded"),
    ],
)
def test_advice_is_given(changed: dict[str, Any], expected: str) -> None:
    (advice,) = advice_of(replace(SOUND, **changed), settings(compile="auto"))
    assert expected in advice


@pytest.mark.parametrize(
    "changed",
    [
        {"machine": replace(MACHINE, load=4.9)},
        {"machine": replace(MACHINE, load=16, all_cores=64)},
        {"machine": replace(MACHINE, load=8), "measured": None},
    ],
    ids=["half a host", "a large host", "nothing was measured"],
)
def test_a_load_that_spoils_no_figures_needs_no_advice(changed: dict[str, Any]) -> None:
    assert advice_of(replace(SOUND, **changed), settings(compile="auto")) == []


def test_the_workers_of_a_gpu_share_its_free_memory() -> None:
    gpu = GpuMemory(total=80 * GB, free=10 * GB, used=4 * GB)
    measured = replace(PACKED, device="cuda:0", gpu=gpu)
    four = replace(SOUND, choices=replace(CHOICES, workers=4, devices=("cuda:0", "cuda:1")), measured=measured)
    assert problems_of(four, settings()) == []
    assert "4,000 MB for a worker; of 80,000 MB, 10,000 MB were free" in text_of(four)
    (problem,) = problems_of(replace(four, choices=replace(CHOICES, workers=3, devices=("cuda:0",))), settings())
    assert "3 workers on cuda:0 may need 12,000 MB of its memory, 4,000 MB each, and 10,000 MB are free" in problem


def test_a_cpu_has_no_gpu_memory() -> None:
    assert gpu_memory(torch.device("cpu")) is None


def test_the_free_memory_of_a_gpu_is_what_the_driver_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3 * GB, 8 * GB))  # as (free, total)
    assert gpu_memory(torch.device("cuda:0")) == GpuMemory(total=8 * GB, free=3 * GB, used=0)


def test_few_open_files_mean_few_connections() -> None:
    found = replace(SOUND, machine=replace(MACHINE, max_files=1024))
    (advice,) = advice_of(found, settings(http_port=8125))
    assert "HTTP keeps 896 connections open and not -http_max_connect 4096" in advice
    assert problems_of(found, settings(http_port=8125)) == []
    assert advice_of(found, settings(http_port=8125, http_max_connect=896)) == []
    assert advice_of(found, settings()) == []
    assert advice_of(replace(SOUND, machine=replace(MACHINE, max_files=None)), settings(http_port=8125)) == []


def test_the_soft_limit_of_open_files_does_not_count_because_a_server_raises_it() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    try:
        assert this_machine().max_files == (None if hard == resource.RLIM_INFINITY else hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(
    ("exc", "expected"),
    [
        (StartError("model_dir has no tokenizer"), "model_dir has no tokenizer"),
        (ModelError("cannot load: DefaultCPUAllocator: can't allocate memory"), "memory is used up; stop other"),
        (torch.OutOfMemoryError("CUDA out of memory.\nMore"), "CUDA out of memory.: the memory is used up"),
        (MemoryError(), "MemoryError: the memory is used up"),
        (KeyError("x"), "the model cannot be examined: KeyError: 'x'; with -verbose"),
    ],
)
def test_an_examination_that_ends_early_says_why_in_one_line(exc: Exception, expected: str) -> None:
    line = problem_line(exc)
    assert expected in line
    assert "\n" not in line


def test_what_was_asked_for_needs_no_advice() -> None:
    assert advice_of(replace(SOUND, measured=replace(MEASURED, dtype="float32")), settings(dtype="float32")) == []
    assert advice_of(replace(SOUND, choices=replace(CHOICES, compiler=None)), settings(compile="off")) == []
    gpu = replace(SOUND, machine=replace(MACHINE, driver_gpus=("NVIDIA H200",)))
    assert advice_of(gpu, settings(cpu=True)) == []


@pytest.mark.parametrize(
    ("changed", "given", "expected"),
    [
        ({}, {}, {"workers": "one for the CPU", "device": "PyTorch sees no GPU"}),
        ({}, {"num_worker": 1, "cpu": True}, {"workers": "-num_worker", "device": "-cpu"}),
        ({}, {}, {"dtype": "the processor has avx512_bf16", "forward pass": "there is a compiler, /usr/bin/g++"}),
        ({}, {"dtype": "float32"}, {"dtype": "-dtype"}),
        ({"machine": replace(MACHINE, flags=("avx2",))}, {}, {"dtype": "the processor has no bfloat16"}),
        (
            {"measured": replace(MEASURED, forward_kind="packed")},
            {"compile": "off"},
            {"forward pass": "-compile off"},
        ),
        (
            {
                "choices": replace(CHOICES, devices=("cuda:0",)),
                "measured": replace(PACKED, device="cuda:0"),
            },
            {"compile": "auto"},
            {
                "workers": "one for each GPU",
                "device": "PyTorch sees a GPU",
                "dtype": "it is fast on all GPUs",
                "forward pass": "this model, device or dtype is not compiled",
            },
        ),
    ],
)
def test_each_choice_has_a_reason(
    changed: dict[str, Any], given: dict[str, Any], expected: dict[str, str]
) -> None:
    found = replace(SOUND, **changed)
    why = reasons(found, settings(**given))
    assert why.items() >= expected.items()
    assert all(reason in text_of(replace(found, why=why)) for reason in expected.values())


def test_a_port_is_free_or_has_an_owner() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert f"process {os.getpid()}," in str(taken_by("127.0.0.1", port))
    assert taken_by("127.0.0.1", port) is None
    assert "assign" in str(taken_by("203.0.113.7", port))  # an address of no machine


def test_this_machine_has_cores_memory_and_versions() -> None:
    found = this_machine()
    assert 1 <= found.cores <= found.all_cores
    assert 0 < found.free_memory <= found.memory
    assert set(found.versions) == {"Python", "bert-embedding-service", "torch", "transformers"}


@pytest.mark.parametrize(
    ("folder", "limit_file", "used_file", "cache"),
    [
        (".", "memory.max", "memory.current", "inactive_file"),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ],
    ids=["cgroup 2", "cgroup 1"],
)
def test_what_a_container_uses_is_not_free(
    tmp_path: Path, folder: str, limit_file: str, used_file: str, cache: str
) -> None:
    cgroup = tmp_path / folder
    cgroup.mkdir(exist_ok=True)
    (cgroup / limit_file).write_text(f"{8 * GB}\n")
    (cgroup / used_file).write_text(f"{6 * GB}\n")
    assert memory_within(tmp_path, 64 * GB, 60 * GB) == (8 * GB, 2 * GB)
    assert memory_within(tmp_path, 64 * GB, 1 * GB) == (8 * GB, 1 * GB)
    (cgroup / "memory.stat").write_text(f"anon {5 * GB}\nx_{cache} 7\n{cache} {1 * GB}\n")
    assert memory_within(tmp_path, 64 * GB, 60 * GB) == (8 * GB, 3 * GB), "the kernel can take back cached files"
    assert memory_within(tmp_path, 4 * GB, 3 * GB) == (4 * GB, 3 * GB), "a limit above the host's memory"


def test_without_a_limit_the_host_s_memory_counts(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_within(tmp_path, 64 * GB, 60 * GB) == (64 * GB, 60 * GB)


def test_a_p99_needs_100_calls() -> None:
    assert OneText.of([0.001, 0.002, 0.006]) == OneText(calls=3, median_ms=2, p99_ms=None, max_ms=6)
    enough = OneText.of([0.001] * 98 + [0.002, 0.006])
    assert enough.p99_ms is not None
    assert enough.median_ms < enough.p99_ms < enough.max_ms


def test_the_report_says_how_many_single_texts_were_measured() -> None:
    assert "5.0 ms; 99 of 100 took less than 7.0 ms (400 measured)" in text_of(SOUND)
    few = replace(MEASURED, one_text=OneText(calls=3, median_ms=5, p99_ms=None, max_ms=9))
    assert "5.0 ms; the slowest of 3 took 9.0 ms" in text_of(replace(SOUND, measured=few))


def test_texts_have_5_to_40_words() -> None:
    lengths = [len(text.split()) for text in texts_of(500)]
    assert (min(lengths), max(lengths)) == (5, 40)
