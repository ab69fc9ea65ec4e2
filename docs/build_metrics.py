"""Builds the table of docs/metrics.md from the metrics in the code.

    make docs                                  writes the table
    python docs/build_metrics.py --check       exits with 1 if the table is not current

The meaning of a metric is its documentation string, which Prometheus gets too. The text around the table is
written by hand. tests/service/test_scrape.py compares the table with what a server shows.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from bert_serving.protocol.workers import Heartbeat, ModelFacts
from bert_serving.server.broker.device_metrics import DeviceMetrics
from bert_serving.server.broker.info_metrics import InfoMetrics
from bert_serving.server.broker.metrics import BrokerMetrics
from bert_serving.server.broker.repeat_metrics import RepeatMetrics
from bert_serving.server.broker.repeats import Repeats
from bert_serving.server.broker.sizes import ResultSizes
from bert_serving.server.broker.tei_metrics import TeiMetrics
from bert_serving.server.broker.workers import WorkerView
from bert_serving.server.gateway.metrics import GatewayMetrics
from bert_serving.server.settings import Settings
from bert_serving.server.supervisor.process_metrics import ProcessMetrics
from prometheus_client import disable_created_metrics, generate_latest
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "metrics.md"
FIRST = "<!-- Built by `make docs` from the metrics in the code. Change those instead of this table. -->"
LAST = "<!-- end of the table -->"

#: What a server without a GPU does not show.
ONLY_WITH_GPUS = {"bert_serving_device_memory_bytes"}

_FLAG = re.compile(r"(?<![\w`-])-[a-z]\w+")


class Row(NamedTuple):
    """What the table says about a metric."""

    name: str
    kind: str
    labels: tuple[str, ...]
    meaning: str

    def __str__(self) -> str:
        labels = ", ".join(f"`{label}`" for label in self.labels)
        meaning = _FLAG.sub(lambda flag: f"`{flag[0]}`", self.meaning)
        return f"| `{self.name}` | {self.kind} | {labels}{' ' if labels else ''}| {meaning} |"


def main() -> int:
    """Write the page, or with --check compare it with the file; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit with 1 if the table is not current"
    )
    check = parser.parse_args().check
    old = PAGE.read_text()
    new = page(old)
    if not check:
        PAGE.write_text(new)
    elif new != old:
        print(f"{PAGE.relative_to(ROOT)} is not current: run `make docs`", file=sys.stderr)
        return 1
    return 0


def page(old: str) -> str:
    """Return the page with a new table. old: the page with any table."""
    before, _, rest = old.partition(FIRST)
    _, _, after = rest.partition(LAST)
    table = [
        "| metric | type | labels | meaning |",
        "|---|---|---|---|",
        *map(str, rows(_broker_text() + _http_text())),
    ]
    return "\n".join([before + FIRST, "", *table, "", LAST + after])


def rows(text: str) -> list[Row]:
    """Return the rows for metrics in Prometheus' text format: our names first, then those of TEI."""
    return sorted(_rows(text), key=lambda row: row.name.startswith("te_"))


def _rows(text: str) -> Iterator[Row]:
    for family in text_string_to_metric_families(text):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = {label: None for sample in family.samples for label in sample.labels if label != "le"}
        yield Row(name, family.type.replace("unknown", "untyped"), tuple(labels), family.documentation)


def _broker_text() -> str:
    """Return the metrics of the server process, with one series for each label."""
    metrics = BrokerMetrics(["worker-0"], ["gateway"])
    RepeatMetrics(metrics.registry, Repeats(ResultSizes(), cache_bytes=0))
    facts: dict[str, Any] = {field.name: "" for field in fields(ModelFacts)}
    ProcessMetrics(metrics.registry, lambda: {"server": []})
    worker = WorkerView("worker-0", facts=ModelFacts(**facts), heartbeat=Heartbeat(0.0, device_bytes=0))
    InfoMetrics(metrics.registry, Settings(), {worker.name: worker})
    DeviceMetrics(metrics.registry, {worker.name: worker})
    TeiMetrics(metrics)
    return metrics.text()


def _http_text() -> str:
    """Return the metrics of a gateway process, with one series for each label."""
    disable_created_metrics()  # type: ignore[no-untyped-call]  # gateways show none
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        metrics = GatewayMetrics({"/embed": "a dialect"}, ["a key"])
        return generate_latest(metrics.registry).decode() + metrics.facts_text(broker_up=True)


if __name__ == "__main__":
    sys.exit(main())
