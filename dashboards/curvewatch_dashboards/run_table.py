"""Tables of runs: the facts of each, and the ways to its dashboard and to its page."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from curvewatch_dashboards.grafana import table
from curvewatch_dashboards.knobs import Knobs
from curvewatch_dashboards.panels import Column, Query, rows
from curvewatch_dashboards.promql import lately, select
from curvewatch_dashboards.transformations import joined
from curvewatch_dashboards.words import STATES, VERDICTS, numbered, word_of
from curvewatch_workers import series

_FACTS = {"run": "Run", "run_id": "Run id", "owner": "Owner", "cluster": "Cluster"}
PAGE = Column(title="Page", link="${__value.raw}", link_title="Open the run's page")
"""Column with the address of a run's page."""


def run_rows(
    title: str,
    description: str,
    knobs: Knobs,
    info: Mapping[str, str],
    runs: Mapping[str, str],
    numbers: Mapping[str, str],
    *,
    ended: bool,
) -> table.Panel:
    """Return a table with a row for each run.

    Args:
        title: Of the panel.
        description: Of the panel.
        knobs: Those of the dashboards.
        info: Matchers of `curvewatch_run_info` for the runs.
        runs: Matchers of the other series; they may select more runs, whose rows are left out.
        numbers: Selector of each further column, by its name.
        ended: Whether a run that has left `/metrics` is shown as it was at last.
    """
    info_now = select(series.RUN_INFO, **info)
    shown = lately(info_now) if ended else info_now
    facts = f"max by ({', '.join(_FACTS)}, page) ({shown})"
    columns = _columns(numbers, runs, str)
    queries = list(columns.values())
    if ended:
        # What is known now comes first: a service that moved has left its last words under its old address.
        before = _columns(numbers, runs, lately)
        queries = [f"{one}\nor\n{before[name]}" for name, one in columns.items()]
    queries = [f"(\n{query}\n)\nand on (run_id) {shown}" for query in queries]
    names = {f"Value #{chr(ord('B') + index)}": name for index, name in enumerate(columns)}
    # A link names all that its dashboard asks for: it would take the first run of the first cluster otherwise.
    chosen = "&".join(
        f"var-{name}=${{__data.fields.{name}:percentencode}}" for name in ("cluster", "run", "run_id")
    )
    address = f"/d/{knobs.run_dashboard_uid}?${{datasource:queryparam}}&{chosen}&${{__url_time_range}}"
    return rows(
        title,
        description,
        {
            "Run id": Column(title="Run id", link=address, link_title="Open its dashboard"),
            "Verdict": Column(title="Verdict", words=numbered(VERDICTS)),
            "State": Column(title="State", words=numbered(STATES)),
            "Page": PAGE,
        },
        joined("run_id", {**_FACTS, **names, "page": "Page"}),
        Query(expr=facts, legend=""),
        *(Query(expr=query, legend="") for query in queries),
    )


def _columns(
    numbers: Mapping[str, str], runs: Mapping[str, str], seen: Callable[[str], str]
) -> dict[str, str]:
    """Return the query of each column, with one element for each run."""
    return {
        **{name: f"max by (run_id) ({seen(selector)})" for name, selector in numbers.items()},
        "Verdict": word_of(series.VERDICT, "verdict", VERDICTS, runs, seen=seen),
        "State": word_of(series.RUN_STATE, "state", STATES, runs, seen=seen),
    }
