"""Tables of runs: the facts of each, and the ways to its dashboard and to its page."""

from __future__ import annotations

from collections.abc import Mapping

from curvewatch_dashboards.grafana import table
from curvewatch_dashboards.knobs import Knobs
from curvewatch_dashboards.panels import Column, Query, rows
from curvewatch_dashboards.promql import select
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
) -> table.Panel:
    """Return a table with a row for each run.

    Args:
        title: Of the panel.
        description: Of the panel.
        knobs: Those of the dashboards.
        info: Matchers of `curvewatch_run_info` for the runs.
        runs: Matchers of the other series; they may select more runs, whose rows are left out.
        numbers: Query of each further column, by its name.
    """
    shown = select(series.RUN_INFO, **info)
    facts = f"max by ({', '.join(_FACTS)}, page) ({shown})"
    columns = {
        **numbers,
        "Verdict": word_of(series.VERDICT, "verdict", VERDICTS, **runs),
        "State": word_of(series.RUN_STATE, "state", STATES, **runs),
    }
    queries = [f"max by (run_id) (\n{expr}\n)\nand on (run_id) {shown}" for expr in columns.values()]
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
