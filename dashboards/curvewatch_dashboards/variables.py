"""What a person chooses at the top of a dashboard, and the links between dashboards, which carry the choice along."""

from __future__ import annotations

from curvewatch_dashboards.grafana import builders, models
from curvewatch_dashboards.knobs import Knobs
from curvewatch_dashboards.panels import DATASOURCE
from curvewatch_dashboards.promql import select
from curvewatch_workers.series import RUN_INFO, Series

TAG = "curvewatch"
"""On every dashboard: the links at the top find the others by it."""

CHOSEN = {"cluster": "=~$cluster", "owner": "=~$owner"}
"""Matchers of `curvewatch_run_info` for the runs of the chosen clusters and owners."""

_KEYS = "job, instance, run_id"


def dashboard(knobs: Knobs, uid: str, title: str, description: str) -> builders.Dashboard:
    """Begin a dashboard with its data source to choose, and links to the others."""
    links = builders.DashboardLink("Curvewatch").type(models.DashboardLinkType.DASHBOARDS).tags([TAG])
    datasource = builders.DatasourceVariable("datasource").label("Data source").type("prometheus")
    return (
        builders.Dashboard(title)
        .uid(uid)
        .description(description)
        .tags([TAG])
        .readonly()
        .timezone("browser")
        .refresh(knobs.dashboard_refresh)
        .time(knobs.dashboard_from, "now")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .link(links.include_vars(True).keep_time(True).as_dropdown(False))
        .with_variable(datasource.description("Prometheus that scrapes the service."))
    )


def choice(name: str, label: str, of: Series, *, several: bool, **matchers: str) -> builders.QueryVariable:
    """Return a variable whose values are those of a label of a series.

    Args:
        name: Of the label, and of the variable.
        label: What a person reads.
        of: The series.
        several: Whether several values, or all, may be chosen; else one is.
        matchers: Which elements of the series count.
    """
    query = f"label_values({select(of, **matchers)}, {name})"
    variable = (
        builders.QueryVariable(name)
        .label(label)
        .query(query)
        .definition(query)
        .datasource(DATASOURCE)
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .include_all(several)
        .multi(several)
    )
    if several:
        everything = models.VariableOption(text="All", value="$__all")
        # `.*` also takes what has no such label, and stays short with thousands of runs.
        variable = variable.all_value(".*").current(everything)
    return variable


def fixed_choice(name: str, label: str, description: str, values: tuple[str, ...]) -> builders.CustomVariable:
    """Return a variable with values of its own, of which one is chosen: the first, until a person does."""
    options = [
        models.VariableOption(selected=not index, text=one, value=one) for index, one in enumerate(values)
    ]
    variable = builders.CustomVariable(name).label(label).description(description).values(",".join(values))
    return variable.options(options).current(options[0])


def clusters_and_owners() -> tuple[builders.QueryVariable, ...]:
    """Return the variables that `CHOSEN` and `of_chosen` read."""
    return (
        choice("cluster", "Cluster", RUN_INFO, several=True),
        choice("owner", "Owner", RUN_INFO, several=True, cluster=CHOSEN["cluster"]),
    )


def of_chosen(expr: str) -> str:
    """Keep of an expression on runs those of the chosen clusters and owners."""
    return f"{expr}\nand on ({_KEYS}) {select(RUN_INFO, **CHOSEN)}"


def by_owner(expr: str, *, window: str) -> str:
    """Give an expression on runs the label `owner`, of the runs of the chosen clusters and owners.

    Args:
        expr: Left side.
        window: How far back a run may have been seen, such as `$__range`.
    """
    # topk keeps the join one-to-one: two info series of one run would otherwise fail the query for all runs.
    info = f"topk by ({_KEYS}) (1, last_over_time({select(RUN_INFO, **CHOSEN)}[{window}]))"
    return f"{expr}\n* on ({_KEYS}) group_left (owner)\n  {info}"
