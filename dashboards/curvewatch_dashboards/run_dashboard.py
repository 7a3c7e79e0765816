"""The dashboard of one run."""

from __future__ import annotations

from curvewatch_dashboards import foreign
from curvewatch_dashboards.annotations import run_annotations
from curvewatch_dashboards.grafana import builders, models, timeseries, units
from curvewatch_dashboards.knobs import Knobs
from curvewatch_dashboards.panels import (
    Grid,
    Query,
    by_epoch,
    curves,
    number,
    rows,
    steps,
    timeline,
    worded,
    zero_line,
)
from curvewatch_dashboards.promql import lately, one_of, select
from curvewatch_dashboards.run_table import PAGE
from curvewatch_dashboards.transformations import arranged, only
from curvewatch_dashboards.variables import CHOSEN, choice, dashboard
from curvewatch_dashboards.words import EXACT, FIRING, SLOPES, SPLITS, STATES, VERDICTS, numbered, word_of
from curvewatch_workers import series
from curvewatch_workers.series import Series

_RUN = {"run_id": "$run_id"}
_MACHINES = {"Hostname": "=~$Hostname"}


def run_dashboard(knobs: Knobs) -> models.Dashboard:
    """Build the dashboard of one run."""
    begun = dashboard(
        knobs,
        knobs.run_dashboard_uid,
        "Curvewatch / Run",
        "One training run: its curves, what they mean, and how it is getting on.",
    )
    _add_variables(begun)
    for annotation in run_annotations(_RUN):
        begun.annotation(annotation)
    grid = Grid(begun)
    _add_progress(grid)
    _add_curves(grid)
    _add_curves_over_time(grid)
    _add_optimizer(grid)
    _add_workers(grid)
    _add_gpus(grid)
    return begun.build()


def _add_variables(begun: builders.Dashboard) -> None:
    info = series.RUN_INFO
    of_owner = {"cluster": "$cluster", "owner": CHOSEN["owner"]}
    for variable in (
        choice("cluster", "Cluster", info, several=False),
        choice("owner", "Owner", info, several=True, cluster="$cluster"),
        choice("run", "Run", info, several=False, **of_owner),
        choice("run_id", "Run id", info, several=False, **of_owner, run="$run"),
        choice("Hostname", "GPU machines", foreign.GPU_UTILIZATION, several=True),
    ):
        begun.with_variable(variable)


def _add_progress(grid: Grid) -> None:
    grid.heading("Progress")
    facts = {
        "run": "Run",
        "run_id": "Run id",
        "owner": "Owner",
        "cluster": "Cluster",
        "task": "Task",
        "page": "Page",
    }
    grid.row(
        4,
        rows(
            "Facts",
            "What run this is; its page has its job, its events and its receipt.",
            {"Page": PAGE},
            (*only(tuple(facts)), *arranged(facts)),
            Query(expr=f"max by ({', '.join(facts)}) ({lately(select(series.RUN_INFO, **_RUN))})", legend=""),
        ),
    )
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
            "Whether each sample was counted exactly once in the latest epoch; empty for the means of a framework.",
            _query(series.RECEIPT_EXACT, "{{split}}"),
            words=EXACT,
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
            Query(expr=word_of(series.VERDICT, "verdict", VERDICTS, _RUN), legend="verdict"),
            numbered(VERDICTS),
        ),
        timeline(
            "State",
            "State of the run at each moment.",
            Query(expr=word_of(series.RUN_STATE, "state", STATES, _RUN), legend="state"),
            numbered(STATES),
        ),
        timeline(
            "Alerts",
            "Alerts on the run that were firing; empty while there is none. The runbook has an entry for each.",
            Query(
                expr=one_of(foreign.ALERTS, select(foreign.ALERTS, **_RUN, alertstate="firing")),
                legend="{{alertname}} ({{severity}})",
            ),
            FIRING,
        ),
    )


def _add_curves(grid: Grid) -> None:
    grid.heading("Curves by epoch")
    loss, metric = (lately(select(what, **_RUN)) for what in (series.EPOCH_LOSS, series.EPOCH_METRIC))
    of_metric = f"max by (split, metric, epoch) ({metric})"
    grid.row(
        11,
        worded(
            by_epoch(
                "Loss by epoch",
                "Global mean loss of each split, every sample counted once; of a long curve not every epoch.",
                f"max by (split, epoch) ({loss})",
                "split",
            ),
            SPLITS,
        ),
        by_epoch(
            "Metrics by epoch",
            "Global metrics of each split; accuracy and the like are ratios from 0 to 1.",
            f'label_join({of_metric}, "line", " ", "split", "metric")',
            "line",
        ),
    )


def _add_curves_over_time(grid: Grid) -> None:
    grid.heading("Curves over time")
    grid.row(
        10,
        worded(
            curves(
                "Loss",
                "Global mean loss of each split at its latest epoch, every sample counted once.",
                _query(series.LOSS, "{{split}}"),
                _query(series.BEST_VALIDATION_LOSS, "best validation"),
            ),
            SPLITS,
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
    grid.row(8, zero_line(gap), worded(zero_line(slopes), SLOPES))


def _add_optimizer(grid: Grid) -> None:
    grid.heading("Optimizer")
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
        worded(
            steps(
                "Samples whose loss was not finite",
                "Samples with a loss of NaN or infinity, over all epochs so far.",
                _query(series.NONFINITE_SAMPLES, "{{split}}"),
            ),
            SPLITS,
        ),
    )


def _add_workers(grid: Grid) -> None:
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
        curves(
            "Slowness of each rank",
            "Time for a sample of its validation passes, by that of the median rank; empty while too little was "
            "measured to tell.",
            _query(series.RANK_SLOWNESS, "rank {{rank}}"),
        ),
    )
    grid.row(
        8,
        steps(
            "Samples of each rank",
            "Train samples of each rank in the latest epoch.",
            _query(series.SHARD_SAMPLES, "rank {{rank}}"),
        ),
        steps(
            "World size and restarts",
            "Ranks of the latest attempt, and starts of the worker group after the first.",
            _query(series.WORLD_SIZE, "ranks"),
            _query(series.WORKER_RESTARTS, "restarts"),
        ),
        steps(
            "Replayed epochs that differ",
            "Epochs that a restart trained again to other numbers, by whether that may be.",
            _query(series.REPLAY_MISMATCHES, "{{reason}}"),
        ),
    )


def _add_gpus(grid: Grid) -> None:
    grid.heading("GPUs")
    of_machine = "DCGM's exporter tells it of each GPU of the machines chosen above; it knows of no runs."
    grid.row(
        8,
        curves(
            "GPU memory peak of each rank",
            "Most memory that the rank had allocated in the latest epoch; empty on CPUs.",
            _query(series.GPU_MEMORY_PEAK, "rank {{rank}}"),
            unit=units.BytesIEC,
        ),
        _gpu_panel("GPU memory in use", f"Memory in use. {of_machine}", foreign.GPU_MEMORY_USED),
        _gpu_panel(
            "GPU utilization", f"Share of time in which a kernel ran. {of_machine}", foreign.GPU_UTILIZATION
        ),
    )
    grid.row(
        8,
        _gpu_panel("GPU power", f"Power drawn. {of_machine}", foreign.GPU_POWER),
        _gpu_panel("GPU temperature", f"Temperature. {of_machine}", foreign.GPU_TEMPERATURE),
    )


def _gpu_panel(title: str, description: str, what: Series) -> timeseries.Panel:
    query = Query(expr=select(what, **_MACHINES), legend="{{Hostname}} GPU {{gpu}}")
    return curves(title, description, query, unit=what.unit)


def _query(what: Series, legend: str) -> Query:
    return Query(expr=one_of(what, select(what, **_RUN)), legend=legend)
