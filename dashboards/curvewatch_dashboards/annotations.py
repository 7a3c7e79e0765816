"""Marks on the panels over time of a run: what happened, and when."""

from __future__ import annotations

from curvewatch_dashboards import foreign
from curvewatch_dashboards.grafana import builders
from curvewatch_dashboards.panels import DATASOURCE
from curvewatch_dashboards.promql import one_of, select
from curvewatch_workers import series
from curvewatch_workers.series import Series

LEARNING_RATE_FACTOR = 2
"""By how much a learning rate must change from one point to the next to be marked: schedules change it a little in
each epoch."""


def run_annotations(run: dict[str, str]) -> tuple[builders.AnnotationQuery, ...]:
    """Return the marks of the runs that some matchers select."""
    learning_rate, before = _now(series.LEARNING_RATE, run), _before(series.LEARNING_RATE, run)
    world_size = _now(series.WORLD_SIZE, run)
    return (
        _best_epoch(run),
        _annotation(
            "Restarts",
            "orange",
            f"{_now(series.WORKER_RESTARTS, run)} - {_before(series.WORKER_RESTARTS, run)} > 0",
            "Workers restarted",
        ),
        _annotation(
            "World size",
            "purple",
            f"abs({world_size} - {_before(series.WORLD_SIZE, run)}) > 0",
            "Another number of workers",
        ),
        _annotation(
            "Learning rate",
            "blue",
            f"{learning_rate} / {before} >= {LEARNING_RATE_FACTOR}\n"
            f"or {before} / {learning_rate} >= {LEARNING_RATE_FACTOR}",
            f"Learning rate changed {LEARNING_RATE_FACTOR}-fold or more",
        ),
        _annotation(
            "Alerts",
            "red",
            one_of(foreign.ALERTS, select(foreign.ALERTS, **run, alertstate="firing")),
            "{{alertname}}",
        ),
    )


def _now(what: Series, run: dict[str, str]) -> str:
    return one_of(what, select(what, **run))


def _before(what: Series, run: dict[str, str]) -> str:
    """Return the value one point earlier, so that each change is marked at exactly one point."""
    return one_of(what, f"{select(what, **run)} offset $__interval")


def _best_epoch(run: dict[str, str]) -> builders.AnnotationQuery:
    """Build the mark at the end of the epoch that is the best by now; earlier bests are left out."""
    best = one_of(series.BEST_EPOCH, f"last_over_time({select(series.BEST_EPOCH, **run)}[$__range] @ end())")
    expr = f"1000 * {_now(series.LAST_EPOCH_TIMESTAMP, run)}\nand (\n  {_now(series.EPOCH, run)} == {best}\n)"
    # The value is the time itself: the scrape that saw it came later.
    return _annotation("Best epoch", "green", expr, "Best epoch").use_value_for_time(True)


def _annotation(name: str, color: str, expr: str, title: str) -> builders.AnnotationQuery:
    return (
        builders.AnnotationQuery()
        .name(name)
        .datasource(DATASOURCE)
        .enable(True)
        .icon_color(color)
        .expr(expr)
        .title_format(title)
    )
