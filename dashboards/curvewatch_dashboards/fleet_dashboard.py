"""The dashboard of all runs, and of the service."""

from __future__ import annotations

from curvewatch_dashboards import foreign
from curvewatch_dashboards.grafana import models, table, timeseries, units
from curvewatch_dashboards.knobs import Knobs
from curvewatch_dashboards.panels import Grid, Query, bars, curves, number, rows, stacked, steps, worded
from curvewatch_dashboards.promql import select
from curvewatch_dashboards.run_table import run_rows
from curvewatch_dashboards.transformations import arranged, only
from curvewatch_dashboards.variables import CHOSEN, by_owner, clusters_and_owners, dashboard, of_chosen
from curvewatch_dashboards.words import OUTCOMES, STATES, UP, VERDICTS
from curvewatch_workers import series
from curvewatch_workers.series import Series

_SHOWN = "Of the runs on /metrics: those that have not ended, or only just."


def fleet_dashboard(knobs: Knobs) -> models.Dashboard:
    """Build the dashboard of all runs."""
    begun = dashboard(
        knobs,
        knobs.fleet_dashboard_uid,
        "Curvewatch / Fleet",
        "All runs: their states, what their curves say, what fails, what they cost; and how the service does.",
    )
    for variable in clusters_and_owners():
        begun.with_variable(variable)
    grid = Grid(begun)
    _add_runs(grid, knobs)
    _add_cost(grid)
    _add_service(grid, knobs)
    return begun.build()


def _add_runs(grid: Grid, knobs: Knobs) -> None:
    grid.heading("Now")
    grid.row(
        8,
        _runs_by_state(),
        worded(
            bars(
                "Verdicts",
                f"Runs by what the diagnosis says of their curve now. {_SHOWN}",
                Query(
                    expr=f"sum by (verdict) (\n{of_chosen(f'{select(series.VERDICT)} == 1')}\n)",
                    legend="{{verdict}}",
                ),
            ),
            VERDICTS,
        ),
        _alerts_now(),
    )
    grid.row(
        11,
        run_rows(
            "Runs",
            f"{_SHOWN} A click on an id opens the run's dashboard.",
            knobs,
            CHOSEN,
            {},
            {
                "Epoch": select(series.EPOCH),
                "of": select(series.EPOCHS_PLANNED),
                "Validation loss": select(series.LOSS, split="validation"),
                "Best validation loss": select(series.BEST_VALIDATION_LOSS),
                "Epochs since best": select(series.EPOCHS_SINCE_BEST),
            },
            ended=False,
        ),
    )


def _runs_by_state() -> timeseries.Panel:
    """Return the panel of how many runs are in which state."""
    expr = f"sum by (state) (\n{of_chosen(f'{select(series.RUN_STATE)} == 1')}\n)"
    panel = steps("Runs by state", f"Runs in each state. {_SHOWN}", Query(expr=expr, legend="{{state}}"))
    return worded(stacked(panel), STATES)


def _alerts_now() -> table.Panel:
    columns = {"alertname": "Alert", "severity": "Severity", "run": "Run", "owner": "Owner"}
    firing = select(
        foreign.ALERTS, alertname="=~Curvewatch.+", alertstate="firing", owner=f"{CHOSEN['owner']}|"
    )
    return rows(
        "Alerts that fire",
        "Alerts of Curvewatch that fire now; those without a run are about the service. Watchdog always fires.",
        {},
        (*only(tuple(columns)), *arranged(columns)),
        Query(expr=f"max by ({', '.join(columns)}) ({firing})", legend=""),
    )


def _add_cost(grid: Grid) -> None:
    grid.heading("Ends and cost")
    spent = select(series.GPU_SECONDS)
    hours = f"(max_over_time({spent}[$__range]) - min_over_time({spent}[$__range])) / 3600"
    grid.row(
        8,
        worded(
            bars(
                "Ended runs",
                "Runs of all clusters and owners that ended in the chosen time, by how.",
                Query(
                    expr=f"round(sum by (outcome) (increase({select(series.RUNS_FINISHED)}[$__range])))",
                    legend="{{outcome}}",
                ),
            ),
            OUTCOMES,
        ),
        worded(
            steps(
                "Runs in the store",
                "All runs of all clusters and owners that the service knows, by state.",
                Query(expr=f"sum by (state) ({select(series.RUNS)})", legend="{{state}}"),
            ),
            STATES,
        ),
        bars(
            "GPU-hours",
            "GPU time of epochs that finished in the chosen time, by owner; a replayed epoch counts once.",
            Query(expr=f"sum by (owner) (\n{by_owner(hours, window='$__range')}\n)", legend="{{owner}}"),
            # Grafana makes days of 24 hours, and weeks.
            unit="suffix:GPU-h",
        ),
    )


def _add_service(grid: Grid, knobs: Knobs) -> None:
    grid.heading("Health of the service")
    grid.row(
        5,
        number(
            "Service",
            "Whether Prometheus reaches the service, by scrape job.",
            Query(expr=select(foreign.UP, job=f"=~{knobs.scrape_jobs}"), legend="{{job}} {{instance}}"),
            words=UP,
        ),
        number(
            "Version",
            "Version of the service.",
            Query(expr=f"max by (version) ({select(series.BUILD_INFO)})", legend="{{version}}"),
            names_only=True,
        ),
        number(
            "Epochs that wait for remote write",
            "Epochs that the receiver has not taken yet; 0 where none is set.",
            Query(expr=select(series.REMOTE_WRITE_PENDING), legend="{{instance}}"),
        ),
    )
    grid.row(
        8,
        _rates(
            "Messages of workers", "Messages taken each second, by kind.", series.INGESTED_MESSAGES, "kind"
        ),
        curves(
            "Errors",
            "Errors each second: requests of workers that were refused, runs that could not be exported or brought on.",
            *(
                Query(expr=f"sum(rate({select(what)}[$__rate_interval]))", legend=legend)
                for what, legend in (
                    (series.INGEST_ERRORS, "ingest"),
                    (series.COLLECTOR_ERRORS, "export"),
                    (series.RECONCILE_ERRORS, "reconcile"),
                )
            ),
            unit=units.CountsPerSecond,
        ),
        curves(
            "Time of a scrape",
            "Time that the service took to build /metrics.",
            Query(expr=select(series.COLLECTOR_DURATION), legend="{{instance}}"),
            unit=units.Seconds,
        ),
    )
    seconds = f"sum by (le, route) (rate({series.HTTP_SECONDS.name}_bucket[$__rate_interval]))"
    grid.row(
        8,
        _rates("HTTP requests", "Answered requests each second, by status.", series.HTTP_REQUESTS, "status"),
        curves(
            "HTTP latency",
            "Time within which 99 of 100 requests were answered, by route.",
            Query(expr=f"histogram_quantile(0.99, {seconds})", legend="{{route}}"),
            unit=units.Seconds,
        ),
        _rates(
            "Alerts received",
            "Alerts that Alertmanager told of, each second.",
            series.ALERTS_RECEIVED,
            "status",
        ),
    )


def _rates(title: str, description: str, what: Series, by: str) -> timeseries.Panel:
    expr = f"sum by ({by}) (rate({select(what)}[$__rate_interval]))"
    return curves(title, description, Query(expr=expr, legend=f"{{{{{by}}}}}"), unit=units.CountsPerSecond)
