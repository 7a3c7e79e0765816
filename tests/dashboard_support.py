"""What the tests of dashboards share: the built ones, their queries filled in, and Grafana's rules for dashboards."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from curvewatch_dashboards.foreign import FOREIGN
from curvewatch_workers import series
from curvewatch_workers.series import Kind

BUILT = Path(__file__).parents[1] / "dashboards/curvewatch_dashboards/built"
DASHBOARDS: dict[str, dict[str, Any]] = {
    name: json.loads((BUILT / f"{name}.json").read_text(encoding="utf-8"))
    for name in ("run", "compare", "fleet")
}
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
TABLE = {**series.TABLE, **FOREIGN}
TOTALS = {
    series.WORKER_RESTARTS.name,
    series.REPLAY_MISMATCHES.name,
    series.NONFINITE_SAMPLES.name,
    series.GPU_SECONDS.name,
}
"""Counters whose total is what a person wants to know of a run: how many in all, not how many each second."""


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the panels that draw something."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def panel_named(dashboard: str, title: str) -> dict[str, Any]:
    """Return a panel of a built dashboard."""
    (found,) = (panel for panel in panels(DASHBOARDS[dashboard]) if panel["title"] == title)
    return found


def expressions(dashboard: dict[str, Any]) -> Iterator[str]:
    """Yield every query of panels and annotations."""
    for panel in panels(dashboard):
        for target in panel["targets"]:
            yield target["expr"]
    for annotation in dashboard["annotations"].get("list", ()):
        yield annotation["expr"]


def filled(text: str, chosen: Mapping[str, str], *, interval: str = "15s", span: str = "1h") -> str:
    """Return a query as Grafana sends it.

    Args:
        text: With variables.
        chosen: Values of the dashboard's variables; several as a regular expression.
        interval: For `$__interval`; `$__rate_interval` is four times as long, as Grafana has it.
        span: For `$__range`.
    """
    seconds = int(interval.removesuffix("s"))
    times = {"__interval": interval, "__rate_interval": f"{4 * seconds}s", "__range": span}
    return re.sub(r"\$(\w+)", lambda found: {**times, **chosen}[found[1]], text)


def legend(template: str, labels: Mapping[str, str]) -> str:
    """Return the name that Grafana gives to a line."""
    for name, value in labels.items():
        template = template.replace(f"{{{{{name}}}}}", value)
    return template


def lint(dashboard: dict[str, Any]) -> list[str]:
    """Return what breaks the rules of Grafana's dashboard-linter.

    Left out are its rules on Loki, which we do not ask, and those that want the variables and matchers `job` and
    `instance`: a run is chosen by its id, which is the same whoever scrapes it. A counter may be shown as it is where
    it is one of `TOTALS`.
    """
    found = []
    if dashboard["editable"] is not False:
        found.append("uneditable-dashboard: it can be edited in place")
    datasources = [one for one in dashboard["templating"]["list"] if one["type"] == "datasource"]
    if [(one["name"], one["query"], one.get("label")) for one in datasources] != [
        ("datasource", "prometheus", "Data source")
    ]:
        found.append("template-datasource-rule: no variable for the data source")
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            found += _lint_variable(variable)
    for panel in panels(dashboard):
        found += _lint_panel(panel)
    for annotation in dashboard["annotations"].get("list", ()):
        if annotation["datasource"] != DATASOURCE:
            found.append(f"annotation {annotation['name']}: not of the chosen data source")
    return found


def _lint_variable(variable: dict[str, Any]) -> Iterator[str]:
    if variable["refresh"] != 2:
        yield f"template-on-time-change-reload-rule: {variable['name']}"
    if not re.fullmatch(r"label_values\(\w+(\{[^{}]*\})?, \w+\)", variable["query"]):
        yield f"template-label-promql-rule: {variable['name']}: {variable['query']}"
    if variable["datasource"] != DATASOURCE:
        yield f"template-datasource-rule: {variable['name']}"


def _lint_panel(panel: dict[str, Any]) -> Iterator[str]:
    title = panel["title"]
    if not title or not panel.get("description"):
        yield f"panel-title-description-rule: {title!r}"
    if panel["datasource"] != DATASOURCE:
        yield f"panel-datasource-rule: {title}"
    if not panel["fieldConfig"]["defaults"].get("unit"):
        yield f"panel-units-rule: {title}"
    if not panel.get("targets"):
        yield f"panel-no-targets-rule: {title}"
    for target in panel.get("targets", ()):
        expr = target["expr"]
        for window in re.findall(r"\b(?:rate|irate)\([^\[]*\[([^\]]+)\]", expr):
            if window != "$__rate_interval":
                yield f"target-rate-interval-rule: {title}: {window}"
        for name in re.findall(r"\b(curvewatch_\w+_total)\b", expr):
            counted = TABLE[name].kind is Kind.COUNTER and name not in TOTALS
            if counted and not re.search(rf"(rate|increase)\({name}\b", expr):
                yield f"target-counter-agg-rule: {title}: {name}"
