"""Builds the dashboards in deploy/grafana/dashboards, and the alerts for Prometheus Operator in deploy/kubernetes.

    make docs                                              writes the files
    python deploy/grafana/build_dashboards.py --check      exits with 1 if a file is not current

panels.py says what is on the dashboards, which are built with grafana-foundation-sdk. The alerts are those of
deploy/prometheus/rules.yaml.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import yaml
from grafana_foundation_sdk.builders import dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import DataSourceRef, VariableOption, VariableRefresh
from panels import DASHBOARDS, Board, Panel

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "grafana" / "dashboards"
RULES = ROOT / "deploy" / "prometheus" / "rules.yaml"
PROMETHEUS_RULE = ROOT / "deploy" / "kubernetes" / "components" / "prometheus-rule" / "prometheus-rule.yaml"

_SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
_HEIGHT, _WIDTH = 8, 8  # in units of the grid, which is 24 wide
_STAT_HEIGHT, _STAT_WIDTH = 4, 4
_LINE = 120
_ABOUT_RULE = """\
# Built by `make docs` from deploy/prometheus/rules.yaml: change that file instead. Many installations select
# PrometheusRules by a label, such as `release`: add theirs with a patch.
"""


def main() -> int:
    """Write the files, or with --check compare them with those that are there; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a file is not current")
    check = parser.parse_args().check
    files = {FOLDER / f"{board.uid}.json": to_json(board) for board in DASHBOARDS}
    files[PROMETHEUS_RULE] = to_prometheus_rule(RULES.read_text())
    stale = {path: text for path, text in files.items() if not path.exists() or path.read_text() != text}
    for path, text in stale.items():
        if check:
            print(f"{path.relative_to(ROOT)} is not current: run `make docs`", file=sys.stderr)
        else:
            path.write_text(text)
    return 1 if check and stale else 0


def to_prometheus_rule(rules: str) -> str:
    """Return rules of Prometheus as the resource of Prometheus Operator. rules: the content of rules.yaml."""
    name = "bert-embedding-service"
    resource = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/name": name}},
        "spec": yaml.safe_load(rules),
    }
    return _ABOUT_RULE + yaml.safe_dump(resource, sort_keys=False, width=_LINE)


def to_json(board: Board) -> str:
    """Return a dashboard as Grafana reads it."""
    built = (
        dashboard.Dashboard(board.title)
        .uid(board.uid)
        .description(board.about)
        .tags(["bert-serving"])
        .readonly()
        .time("now-1h", "now")
        .refresh("10s")
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(_label_variable("job", f"label_values({board.metric}, job)"))
        .with_variable(_label_variable("instance", f'label_values({board.metric}{{job=~"$job"}}, instance)'))
    )
    for title, panels in board.rows.items():
        built = built.with_row(dashboard.Row(title))
        for panel in panels:
            built = built.with_panel(_stat(panel) if panel.is_number else _curves(panel))
    return JSONEncoder(sort_keys=True, indent=2).encode(built.build()) + "\n"


def _label_variable(name: str, query: str) -> dashboard.QueryVariable:
    """Return a list at the top of the dashboard, from which values of a label are chosen."""
    variable = dashboard.QueryVariable(name).label(name.capitalize()).datasource(_SOURCE).query(query)
    all_values = VariableOption(selected=True, text="All", value="$__all")
    return (
        variable.multi(True).include_all(True).current(all_values).refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
    )


def _stat(panel: Panel) -> stat.Panel:
    """Return a panel that shows one number for each query."""
    built = stat.Panel().title(panel.title).description(panel.meaning).unit(panel.unit).datasource(_SOURCE)
    for target in _targets(panel):
        built = built.with_target(target.instant())
    return built.height(_STAT_HEIGHT).span(_STAT_WIDTH)


def _curves(panel: Panel) -> timeseries.Panel:
    """Return a panel with a curve for each series."""
    built = timeseries.Panel().title(panel.title).description(panel.meaning).unit(panel.unit).datasource(_SOURCE)
    built = built.min(0).fill_opacity(10)
    for target in _targets(panel):
        built = built.with_target(target.range())
    return built.height(_HEIGHT).span(_WIDTH)


def _targets(panel: Panel) -> list[prometheus.Dataquery]:
    return [
        prometheus.Dataquery().expr(expr).legend_format(legend).ref_id(chr(ord("A") + i))
        for i, (legend, expr) in enumerate(panel.queries.items())
    ]


if __name__ == "__main__":
    sys.exit(main())
