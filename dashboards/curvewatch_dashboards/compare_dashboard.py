"""The dashboard of several runs beside one another."""

from __future__ import annotations

from curvewatch_dashboards.grafana import models, table, trend
from curvewatch_dashboards.knobs import Knobs
from curvewatch_dashboards.panels import Grid, by_epoch
from curvewatch_dashboards.promql import lately, select
from curvewatch_dashboards.run_table import run_rows
from curvewatch_dashboards.variables import CHOSEN, choice, clusters_and_owners, dashboard, fixed_choice
from curvewatch_workers import series

SPLITS = ("train", "validation")
_WINDOW = "$ended"
"""How long ago runs may have left `/metrics/curves`. Not all of the time that is shown: a curve that grows leaves other
epochs out as it gets longer, so that three hours of 50 long runs are five times the points of the last minutes."""
_RUNS = {"run": "=~$run", "run_id": "=~$run_id"}


def compare_dashboard(knobs: Knobs) -> models.Dashboard:
    """Build the dashboard that compares runs."""
    begun = dashboard(
        knobs,
        knobs.compare_dashboard_uid,
        "Curvewatch / Compare",
        "Any number of runs by epoch, whenever they ran: which learns faster, which gets lower, which overfits.",
    )
    info = series.RUN_INFO
    for variable in (
        *clusters_and_owners(),
        choice("run", "Runs", info, several=True, **CHOSEN),
        choice("run_id", "Run ids", info, several=True, **CHOSEN, run=_RUNS["run"]),
        choice("metric", "Metric", series.EPOCH_METRIC, several=False, **_RUNS),
        fixed_choice(
            "ended",
            "Ended within",
            "Curves of runs that ended longer ago are left out; the longer, the slower.",
            ("15m", "1h", "3h", "12h", "1d", "7d", "30d"),
        ),
    ):
        begun.with_variable(variable)
    grid = Grid(begun)
    grid.heading("Losses by epoch")
    validation, train = _losses("validation"), _losses("train")
    grid.row(
        12,
        _panel(
            "Validation loss", "Global validation loss of each run, every sample counted once.", validation
        ),
        _panel("Train loss", "Global train loss of each run, every sample counted once.", train),
    )
    grid.heading("Metric by epoch")
    grid.row(
        12,
        _panel("$metric on validation", "The chosen metric on the validation split.", _metrics("validation")),
        _panel("$metric on train", "The chosen metric on the train split.", _metrics("train")),
        _panel("Gap", "Validation loss minus train loss.", f"{validation}\n- ignoring (split) {train}"),
    )
    grid.heading("Outcome")
    grid.row(10, _results(knobs))
    return begun.build()


def _losses(split: str) -> str:
    return _latest(select(series.EPOCH_LOSS, **_RUNS, split=split))


def _metrics(split: str) -> str:
    return _latest(select(series.EPOCH_METRIC, **_RUNS, split=split, metric="$metric"))


def _latest(selector: str) -> str:
    return f"max by (run, run_id, split, epoch) ({lately(selector, window=_WINDOW)})"


def _panel(title: str, description: str, expr: str) -> trend.Panel:
    # Of all runs the matchers say no more than `.*`, whoever's they are. Curves may be scraped by a job of their own.
    of_chosen = f"(\n{expr}\n)\nand on (run_id) {lately(select(series.RUN_INFO, **CHOSEN), window=_WINDOW)}"
    # Two runs of one name are two lines.
    line = f'label_join(\n{of_chosen},\n"line", " ", "run", "run_id"\n)'
    return by_epoch(title, f"{description} Of a long curve not every epoch is there.", line, "line")


def _results(knobs: Knobs) -> table.Panel:
    losses = {f"{split.capitalize()} loss": select(series.LOSS, **_RUNS, split=split) for split in SPLITS}
    return run_rows(
        "Results",
        "Where each run stands, and the best that it has reached; a click on an id opens the run's dashboard.",
        knobs,
        {**CHOSEN, **_RUNS},
        _RUNS,
        {
            "Best validation loss": select(series.BEST_VALIDATION_LOSS, **_RUNS),
            "Best epoch": select(series.BEST_EPOCH, **_RUNS),
            "Epoch": select(series.EPOCH, **_RUNS),
            **losses,
        },
        ended=True,
    )
