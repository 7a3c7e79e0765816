"""The curves for Prometheus, epoch by epoch: what `/metrics` has of the latest epoch only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta

from prometheus_client import Metric
from prometheus_client.registry import Collector

from curvewatch_service.export import exported, families, utc_now
from curvewatch_service.samples import Sample
from curvewatch_service.scrape import Scrape, scraping
from curvewatch_service.settings import Settings
from curvewatch_service.store import Run, Store
from curvewatch_workers import series
from curvewatch_workers.contract import SPLITS, EpochRecord

MOST_POINTS = 100
"""Of each run and split: every point is a time series of Prometheus' own."""


class CurveCollector(Collector):
    """Exports the curves of the runs that `/metrics` shows."""

    def __init__(self, store: Store, settings: Settings, *, clock: Callable[[], datetime] = utc_now) -> None:
        self._store = store
        self._linger = timedelta(seconds=settings.linger_seconds)
        self._clock = clock

    def describe(self) -> list[Metric]:
        """Return nothing: a registry would otherwise read the whole store to learn the names."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Read the store; a run that cannot be exported is counted and left out."""
        with scraping(self._store) as scrape:
            since = self._clock() - self._linger
            samples = list(exported(scrape, self._store.counters, since, _samples))
        yield from families(samples)


def _samples(scrape: Scrape, run_id: str) -> Iterator[Sample]:
    run, epochs = scrape.epoch_numbers(run_id)
    best = None if run.diagnosis is None else run.diagnosis["best_epoch"]
    for record in scrape.epochs(run_id, spread(epochs, best=best)):
        yield from points(run, record)


def spread(epochs: Sequence[int], *, best: int | None, most: int = MOST_POINTS) -> list[int]:
    """Return at most so many epochs of a curve: the first, the last, the best, and evenly spaced ones.

    What is between are the multiples of a power of two, so that a point stays where it is while the curve
    grows: each point that moved would be a new time series.

    Args:
        epochs: All of them, in order.
        best: The epoch of lowest validation loss, if it is known.
        most: At least 3.
    """
    always = {*epochs[:1], *epochs[-1:]} | {epoch for epoch in epochs if epoch == best}
    chosen, step = always | set(epochs), 1
    while len(chosen) > most:
        step *= 2
        chosen = always | {epoch for epoch in epochs if epoch % step == 0}
    return sorted(chosen)


def points(run: Run, record: EpochRecord) -> Iterator[Sample]:
    """Yield what the curves of a run have of one epoch."""
    for name in SPLITS:
        split = record.split(name)
        labels = {"run_id": run.run_id, "run": run.name, "split": name, "epoch": str(record.epoch)}
        yield Sample(series.EPOCH_LOSS, float(split.loss), labels)
        for metric, value in split.metric_values.items():
            yield Sample(series.EPOCH_METRIC, float(value), {**labels, "metric": metric})
