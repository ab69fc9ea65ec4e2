"""The decisions of the arena: when texts arrive, which system runs when, and what is made of the values."""

from __future__ import annotations

import asyncio
import random
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from bert_serving.server.model.demo import find_demo_model
from tokenizers import Tokenizer

from benchmarks.arena import targets, texts
from benchmarks.arena.__main__ import chosen_systems
from benchmarks.arena.arrivals import poisson_arrivals
from benchmarks.arena.in_process import reason_in
from benchmarks.arena.load import closed_loop, job_beside_users, open_loop, part_within
from benchmarks.arena.plots import Bar, Line, bars, lines
from benchmarks.arena.report import markdown, plots, target_table, write
from benchmarks.arena.results import (
    P50,
    RATE,
    Closeness,
    LeftOut,
    Measurement,
    Results,
    Spread,
    latencies,
    percentile,
    spread,
)
from benchmarks.arena.systems import OWN, REFERENCE, SYSTEMS
from benchmarks.arena.tournament import cosines, order

ABOUT = {
    "cpu": "a CPU",
    "cores": 2,
    "cpu_flags": ["avx2"],
    "memory_gib": 8.0,
    "system": "Linux",
    "python": "3.11",
    "commit": "abc",
    "date": "2026-01-01",
    "options": {"rounds": 2, "quick": False},
    "environments": {"this project": {"torch": "2.13.0"}},
}


def results(*rates: tuple[str, str, list[float]]) -> Results:
    """Return results with a rate for each (system, workload) and round."""
    found = Results(ABOUT)
    for system, workload, values in rates:
        found.systems[system] = {
            "how": "in process",
            "arguments": {"dtype": "float32"},
            "environment": "this project",
        }
        for round_, value in enumerate(values):
            values_ = {RATE: value, **latencies([1 / value])}
            found.measurements.append(Measurement("demo", system, workload, round_, values_))
    return found


class FakeCaller:
    """Answers after some seconds; notes the texts."""

    def __init__(self, seconds: float, log: list[list[str]]) -> None:
        self.seconds, self.log, self.is_closed = seconds, log, False

    async def encode(self, some: Sequence[str]) -> np.ndarray:
        self.log.append(list(some))
        await asyncio.sleep(self.seconds)
        return np.ones((len(some), 2), np.float32)

    async def close(self) -> None:
        self.is_closed = True


class TestArrivals:
    def test_the_same_seed_gives_every_system_the_same_load(self) -> None:
        assert poisson_arrivals(50, 10, seed=1) == poisson_arrivals(50, 10, seed=1)
        assert poisson_arrivals(50, 10, seed=1) != poisson_arrivals(50, 10, seed=2)

    def test_gaps_are_exponential_with_the_mean_of_the_rate(self) -> None:
        times = poisson_arrivals(200, 100, seed=3)
        gaps = np.diff(times)
        assert times == sorted(times)
        assert 0 < times[0] < times[-1] < 100
        assert np.mean(gaps) == pytest.approx(1 / 200, rel=0.03)
        assert np.std(gaps) == pytest.approx(1 / 200, rel=0.05)  # of an exponential distribution: its mean


class TestStatistics:
    def test_a_spread_has_the_median_and_the_extremes(self) -> None:
        assert spread([5.0, 1.0, 3.0]) == Spread(3.0, 1.0, 5.0)
        assert spread([2.0, 1.0]) == Spread(1.5, 1.0, 2.0)

    @pytest.mark.parametrize(("percent", "value"), [(50, 50), (99, 99), (100, 100), (1, 1), (0, 1)])
    def test_percentiles_are_measured_values(self, percent: float, value: float) -> None:
        numbers = list(range(1, 101))
        random.Random(0).shuffle(numbers)
        assert percentile(numbers, percent) == value

    def test_p99_of_few_values_is_the_largest(self) -> None:
        assert percentile([3.0, 1.0, 2.0], 99) == 3.0

    def test_latencies_are_in_milliseconds(self) -> None:
        assert latencies([0.001, 0.002, 0.006]) == {"p50_ms": 2.0, "p99_ms": 6.0, "mean_ms": 3.0}

    @pytest.mark.parametrize(
        ("start", "stop", "part"), [(0, 1, 0.0), (3, 5, 1.0), (1, 3, 0.5), (5, 9, 0.25), (0, 10, 0.4), (7, 8, 0.0)]
    )
    def test_a_request_counts_with_the_part_that_lies_in_the_measured_time(
        self, start: float, stop: float, part: float
    ) -> None:
        assert part_within(start, stop, 2.0, 6.0) == pytest.approx(part)

    def test_cosines_do_not_depend_on_lengths(self) -> None:
        rows, reference = np.array([[2.0, 0.0], [0.0, 1.0]]), np.array([[1.0, 0.0], [1.0, 1.0]])
        assert cosines(rows, reference) == pytest.approx((0.5**0.5, (1 + 0.5**0.5) / 2))


class TestLoads:
    def test_closed_loop_callers_take_turns_with_the_requests(self) -> None:
        log: list[list[str]] = []
        callers = [FakeCaller(0.01, log), FakeCaller(0.01, log)]
        done = asyncio.run(closed_loop(callers, [["a"], ["b", "c"]], warm_s=0.03, seconds=0.1))
        assert log[:4] == [["a"], ["b", "c"], ["a"], ["b", "c"]]
        assert 0 < len(done.seconds) < len(log)  # those of the warm-up do not count
        assert done.requests == len(log)
        assert 0 < done.sentences < sum(map(len, log))
        assert min(done.seconds) >= 0.009

    def test_a_request_longer_than_the_measured_time_has_a_rate(self) -> None:
        done = asyncio.run(closed_loop([FakeCaller(0.2, [])], [["a"] * 100], warm_s=0.0, seconds=0.1))
        assert 0 < done.sentences < 100

    def test_open_loop_latency_begins_at_the_scheduled_time(self) -> None:
        log: list[list[str]] = []
        opened: list[FakeCaller] = []

        async def open_caller() -> FakeCaller:
            opened.append(FakeCaller(0.05, log))
            return opened[-1]

        took = asyncio.run(open_loop(open_caller, [0.0] * 40, ["a", "b"]))
        assert len(took) == len(log) == 40
        assert min(took) >= 0.05
        assert len(opened) == 40  # no text waits for the reply to another one
        assert all(caller.is_closed for caller in opened)

    def test_a_job_runs_beside_users(self) -> None:
        log: list[list[str]] = []

        async def open_caller() -> FakeCaller:
            return FakeCaller(0.005, log)

        found = asyncio.run(
            job_beside_users(open_caller, ["j"] * 7, ["u", "v"], num_users=2, pause_s=0.01, seconds=0.2)
        )
        users = [some for some in log if len(some) == 1]
        assert len(found.users) == len(users) > 1
        assert {"u", "v"} == {text for some in users for text in some}
        assert found.job_rate > 7


class TestTexts:
    def test_half_of_repeated_texts_are_new(self) -> None:
        both = texts.repeated(50)
        assert len(both) == 50
        assert sorted(both) == sorted(texts.natural(25) * 2)

    @pytest.mark.parametrize("num_tokens", [20, 256])
    def test_texts_of_a_length_have_exactly_so_many_tokens(self, num_tokens: int) -> None:
        some = texts.of_tokens(find_demo_model(), num_tokens, 5)
        tokenizer = Tokenizer.from_file(str(find_demo_model() / "tokenizer.json"))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        assert [len(each.ids) for each in tokenizer.encode_batch(some)] == [num_tokens] * 5
        assert len(set(some)) == 5


class TestTournament:
    def test_every_other_round_goes_backwards(self) -> None:
        systems = OWN[:3]
        assert [order(systems, round_) for round_ in range(3)] == [systems, systems[::-1], systems]

    def test_systems_are_chosen_by_the_beginnings_of_their_names(self) -> None:
        assert [each.name for each in chosen_systems(["http j", "Sentence-Transformers float"])] == [
            "HTTP JSON",
            REFERENCE,
        ]
        assert [each.name for each in chosen_systems(["bertclient"])] == ["BertClient"]  # a whole name
        assert len(chosen_systems(["bertcl"])) > 1
        assert chosen_systems(None) == list(SYSTEMS.values())

    def test_an_unknown_system_is_an_error(self) -> None:
        with pytest.raises(SystemExit, match="no system begins with 'htp'"):
            chosen_systems(["htp"])

    @pytest.mark.parametrize(
        ("log", "reason"),
        [
            ("Traceback\n  File x\nValueError: no file\n\nERROR:    Exiting.", "ValueError: no file"),
            (
                "INFO  starting\nbert-serving-start: error: no such flag\n",
                "bert-serving-start: error: no such flag",
            ),
            ("a.b.CustomError: first\nwarning\nTypeError: last\nbye", "TypeError: last"),
            ("", "it wrote nothing"),
        ],
    )
    def test_the_reason_is_the_last_exception_of_a_log(self, log: str, reason: str) -> None:
        assert reason_in(log) == reason


class TestTargets:
    def test_a_ratio_is_taken_within_each_round(self) -> None:
        found = results(("BertClient", "bulk", [400.0, 900.0, 600.0]), (REFERENCE, "bulk", [100.0, 300.0, 100.0]))
        row = targets.rows(found, "demo")[0]
        assert row.measured == Spread(4.0, 3.0, 6.0)
        assert row.systems == ("BertClient", REFERENCE)
        assert row.is_met

    def test_the_best_of_ours_counts_but_not_int8(self) -> None:
        found = results(
            ("BertClient", "bulk", [300.0]),
            ("BertClient bfloat16 eager", "bulk", [350.0]),
            ("BertClient int8", "bulk", [800.0]),
            (REFERENCE, "bulk", [100.0]),
        )
        plain, int8, *_ = targets.rows(found, "demo")
        assert plain.measured == Spread(3.5, 3.5, 3.5)
        assert not plain.is_met
        assert int8.measured == Spread(8.0, 8.0, 8.0)

    def test_inexact_int8_does_not_count(self) -> None:
        found = results(("BertClient int8", "bulk", [800.0]), (REFERENCE, "bulk", [100.0]))
        found.closeness.append(Closeness("demo", "BertClient int8", 1000, 0.998, 0.9999))
        assert targets.rows(found, "demo")[1].measured is None

    def test_times_have_an_upper_limit(self) -> None:
        found = results(("BertClient", "one sentence", [100.0]), (REFERENCE, "one sentence", [30.0]))
        row = next(
            row for row in targets.rows(found, "demo") if row.target.title.startswith("one sentence, time: Bert")
        )
        assert row.measured is not None
        assert row.measured.median == pytest.approx(0.3)
        assert row.is_met

    def test_the_table_names_every_target_also_without_measurements(self) -> None:
        table = target_table(Results(ABOUT), "demo")
        assert table.count("| not measured |") == len(targets.TARGETS)


class TestReport:
    def found(self) -> Results:
        found = results(
            ("BertClient", "bulk", [400.0, 500.0]),
            (REFERENCE, "bulk", [100.0, 100.0]),
            ("BertClient", "1 clients", [50.0, 60.0]),
            ("BertClient", "64 clients", [250.0, 260.0]),
        )
        found.closeness.append(Closeness("demo", "BertClient", 1000, 0.9991, 0.9999))
        found.left_out.append(LeftOut("demo", "fastembed", "cannot be installed"))
        return found

    def test_tables_have_medians_and_extremes(self) -> None:
        page = markdown(self.found(), "arena")
        assert "| **BertClient** | 450 (400 to 500) | 4.50 |" in page
        assert "0.99910 / 0.99990" in page
        assert "| **BertClient** | 55.0 (50.0 to 60.0) | 255 (250 to 260) |" in page
        assert "| demo | fastembed | cannot be installed |" in page
        assert "![demo-bulk](arena-demo-bulk.svg)" in page
        assert "open loop" not in page

    def test_every_row_of_a_table_has_the_cells_of_its_head(self) -> None:
        tables = [block.splitlines() for block in markdown(self.found(), "arena").split("\n\n") if "|---" in block]
        assert len(tables) >= 5
        for lines_ in tables:
            rows = [line for line in lines_ if line.startswith("|")]
            assert len({row.count("|") for row in rows}) == 1, rows

    def test_a_saved_file_gives_the_same_results(self, tmp_path: Path) -> None:
        self.found().save(tmp_path / "arena.json")
        loaded = Results.load(tmp_path / "arena.json")
        assert loaded == self.found()
        assert write(tmp_path / "arena.json") == target_table(loaded, "demo")
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            "arena-demo-bulk.svg",
            "arena-demo-clients.svg",
            "arena.json",
            "arena.md",
        ]

    def test_plots_are_svg_with_the_names_of_the_systems(self) -> None:
        for _, svg in plots(self.found()):
            assert "BertClient" in "".join(ET.fromstring(svg).itertext())

    def test_names_are_escaped(self) -> None:
        ET.fromstring(bars("a < b", "c & d", [Bar("<x>", Spread(1, 1, 1), is_ours=True)]))
        ET.fromstring(lines("a", "b", [(0, "0"), (1, "1")], [Line("<x>", [(0, 1.0), (1, 2.0)])]))

    def test_a_value_that_was_not_measured_is_none(self) -> None:
        assert self.found().spread("demo", "BertClient", "bulk", "no such value") is None
        assert self.found().spread("demo", "fastembed", "bulk", P50) is None
