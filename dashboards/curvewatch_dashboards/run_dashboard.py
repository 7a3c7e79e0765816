"""The dashboard of one run."""

from __future__ import annotations

import json

from curvewatch_dashboards.grafana import JSONEncoder, builders, models, units
from curvewatch_dashboards.knobs import Knobs
from curvewatch_dashboards.panels import (
    DATASOURCE,
    Grid,
    Query,
    Word,
    curves,
    number,
    steps,
    timeline,
    zero_line,
)
from curvewatch_dashboards.promql import select
from curvewatch_workers import series
from curvewatch_workers.series import Series

VERDICTS: dict[str, Word] = {
    "too_early": Word(text="too early", color="text"),
    "good_fit": Word(text="good fit", color="green"),
    "slow_convergence": Word(text="slow convergence", color="light-blue"),
    "plateau": Word(text="plateau", color="blue"),
    "underfitting": Word(text="underfitting", color="purple"),
    "unstable": Word(text="unstable", color="yellow"),
    "overconfident": Word(text="overconfident", color="light-orange"),
    "overfitting": Word(text="overfitting", color="orange"),
    "diverging": Word(text="diverging", color="red"),
    "not_finite": Word(text="not finite", color="dark-red"),
}
"""Every verdict of the diagnosis, in order of concern."""

STATES: dict[str, Word] = {
    "QUEUED": Word(text="queued", color="text"),
    "STARTING": Word(text="starting", color="light-blue"),
    "RUNNING": Word(text="running", color="blue"),
    "RESTARTING": Word(text="restarting", color="yellow"),
    "STOPPING": Word(text="stopping", color="light-orange"),
    "STOPPED": Word(text="stopped", color="orange"),
    "SUCCEEDED": Word(text="succeeded", color="green"),
    "FAILED": Word(text="failed", color="red"),
    "LOST": Word(text="lost", color="dark-red"),
}
"""Every state of a run."""

_RUN = {"run_id": "$run_id"}
_EXACT = {1: Word(text="exact", color="green"), 0: Word(text="NOT exact", color="red")}


def run_dashboard_json(knobs: Knobs) -> str:
    """Return the dashboard as Grafana imports it."""
    return json.dumps(run_dashboard(knobs), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


def run_dashboard(knobs: Knobs) -> models.Dashboard:
    """Build the dashboard of one run."""
    dashboard = (
        builders.Dashboard("Curvewatch / Run")
        .uid(knobs.dashboard_uid)
        .description("One training run: its curves, what they mean, and how it is getting on.")
        .tags(["curvewatch"])
        .readonly()
        .timezone("browser")
        .refresh(knobs.dashboard_refresh)
        .time(knobs.dashboard_from, "now")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
    )
    _add_variables(dashboard)
    grid = Grid(dashboard)
    _add_progress(grid)
    _add_curves(grid)
    _add_learning(grid)
    _add_work(grid)
    return dashboard.build()


def _add_variables(dashboard: builders.Dashboard) -> None:
    datasource = builders.DatasourceVariable("datasource").label("Data source").type("prometheus")
    dashboard.with_variable(datasource.description("Prometheus that scrapes the service."))
    info = series.RUN_INFO
    in_cluster = select(info, cluster="$cluster")
    for name, label, query in (
        ("cluster", "Cluster", f"label_values({select(info)}, cluster)"),
        ("run", "Run", f"label_values({in_cluster}, run)"),
        ("run_id", "Run id", f"label_values({select(info, cluster='$cluster', run='$run')}, run_id)"),
    ):
        dashboard.with_variable(_query_variable(name, label, query))


def _query_variable(name: str, label: str, query: str) -> builders.QueryVariable:
    return (
        builders.QueryVariable(name)
        .label(label)
        .query(query)
        .definition(query)
        .datasource(DATASOURCE)
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(
            models.VariableSort.ALPHABETICAL_DESC
            if name == "run_id"
            else models.VariableSort.ALPHABETICAL_ASC
        )
        .include_all(False)
        .multi(False)
    )


def _add_progress(grid: Grid) -> None:
    grid.heading("Progress")
    grid.row(
        4,
        number(
            "Epoch",
            "Finished epochs, of those that the job asks for.",
            _query(series.EPOCH, "epoch"),
            _query(series.EPOCHS_PLANNED, "of"),
        ),
        number(
            "Best epoch",
            "Epoch of the lowest validation loss; the best checkpoint is of another one if this one had none.",
            _query(series.BEST_EPOCH, "best epoch"),
        ),
        number(
            "Epochs since best",
            "Epochs without a new best validation loss, and how many the run allows before an alert.",
            _query(series.EPOCHS_SINCE_BEST, "since best"),
            _query(series.PATIENCE_EPOCHS, "allowed"),
        ),
        number(
            "Best validation loss",
            "Lowest validation loss so far.",
            _query(series.BEST_VALIDATION_LOSS, "best"),
            unit=units.NoUnit,
        ),
        number(
            "Receipt",
            "Whether each sample was counted exactly once in the latest epoch.",
            _query(series.RECEIPT_EXACT, "{{split}}"),
            words=_EXACT,
        ),
        number(
            "Worker restarts",
            "Starts of the worker group after the first.",
            _query(series.WORKER_RESTARTS, "restarts"),
        ),
    )
    grid.row(
        4,
        timeline(
            "Verdict",
            "What the diagnosis said of the curve at each moment.",
            _word_query(series.VERDICT, "verdict", VERDICTS),
            tuple(VERDICTS.values()),
        ),
        timeline(
            "State",
            "State of the run at each moment.",
            _word_query(series.RUN_STATE, "state", STATES),
            tuple(STATES.values()),
        ),
    )


def _add_curves(grid: Grid) -> None:
    grid.heading("Curves")
    best = _query(series.BEST_VALIDATION_LOSS, "best validation")
    grid.row(
        10,
        curves(
            "Loss",
            "Global mean loss of each split at its latest epoch, every sample counted once.",
            _query(series.LOSS, "{{split}}"),
            best,
        ),
        curves(
            "Metrics",
            "Global metrics at the latest epoch; accuracy and the like are ratios from 0 to 1.",
            _query(series.METRIC, "{{split}} {{metric}}"),
        ),
    )
    gap = curves(
        "Generalization gap",
        "Validation loss minus train loss. A gap that grows means memorising.",
        _query(series.GENERALIZATION_GAP, "gap"),
    )
    slopes = curves(
        "Slopes",
        "Slope of each loss over the latest epochs (the run's patience). Below zero it learns.",
        _query(series.LOSS_SLOPE, "{{split}} per epoch"),
    )
    grid.row(8, zero_line(gap), zero_line(slopes))


def _add_learning(grid: Grid) -> None:
    grid.heading("Optimiser")
    grid.row(
        8,
        curves(
            "Learning rate",
            "Learning rate at the last step of the latest epoch.",
            _query(series.LEARNING_RATE, "learning rate"),
        ),
        curves(
            "Gradient norm",
            "L2 norm of the global gradient at the last step of the latest epoch, before clipping.",
            _query(series.GRADIENT_NORM, "gradient norm"),
        ),
    )


def _add_work(grid: Grid) -> None:
    grid.heading("Workers")
    grid.row(
        8,
        curves(
            "Samples per second",
            "Samples of both splits in the latest epoch, by its duration.",
            _query(series.SAMPLES_PER_SECOND, "samples/s"),
            unit=units.Short,
        ),
        curves(
            "Seconds of each rank",
            "Time of each rank in the latest epoch; the slowest holds up the others.",
            _query(series.RANK_EPOCH_SECONDS, "rank {{rank}}"),
            unit=units.Seconds,
        ),
        steps(
            "Samples of each rank",
            "Train samples of each rank in the latest epoch.",
            _query(series.SHARD_SAMPLES, "rank {{rank}}"),
        ),
    )
    grid.row(
        8,
        steps(
            "World size and restarts",
            "Ranks of the latest attempt, and starts of the worker group after the first.",
            _query(series.WORLD_SIZE, "ranks"),
            _query(series.WORKER_RESTARTS, "restarts"),
        ),
        steps(
            "Samples whose loss was not finite",
            "Samples with a loss of NaN or infinity, over all epochs so far.",
            _query(series.NONFINITE_SAMPLES, "{{split}}"),
        ),
    )


def _query(what: Series, legend: str) -> Query:
    return Query(expr=select(what, **_RUN), legend=legend)


def _word_query(what: Series, label: str, words: dict[str, Word]) -> Query:
    """Return a query whose value is the place of the word whose series is 1."""
    terms = (f"{index} * ({select(what, **_RUN, **{label: word})} == 1)" for index, word in enumerate(words))
    return Query(expr=f"max without ({label}) (\n  " + "\n  or ".join(terms) + "\n)", legend=label)
