"""The past for Prometheus: every epoch of a run at the time at which it ended, for an import or a remote write."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from curvewatch_service.openmetrics import TimeSeries
from curvewatch_service.samples import Sample, end_millisecond
from curvewatch_service.scrape import scraping
from curvewatch_service.store import Store
from curvewatch_service.stored import Run
from curvewatch_workers import series
from curvewatch_workers.contract import SPLITS, EpochRecord
from curvewatch_workers.series import TABLE


def history_samples(run: Run, record: EpochRecord, *, cluster: str) -> list[Sample]:
    """Return what one epoch adds to the series of its run; what the record does not know is left out.

    Args:
        run: The run that the record is of.
        record: The epoch.
        cluster: Name of the service's cluster, as on `curvewatch_run_info`.
    """
    identity = {"run_id": run.run_id, "run": run.name}
    samples = [Sample(series.HISTORY_INFO, 1.0, {**identity, "owner": run.owner, "cluster": cluster})]
    for name in SPLITS:
        split, labels = record.split(name), {**identity, "split": name}
        samples.append(Sample(series.HISTORY_LOSS, float(split.loss), labels))
        for metric, value in split.metric_values.items():
            samples.append(Sample(series.HISTORY_METRIC, float(value), {**labels, "metric": metric}))
    numbers = (
        (series.HISTORY_EPOCH, record.epoch),
        (series.HISTORY_LEARNING_RATE, record.learning_rate),
        (series.HISTORY_GRADIENT_NORM, record.gradient_norm),
        (series.HISTORY_EPOCH_DURATION, record.duration_seconds),
    )
    samples += (Sample(one, float(value), identity) for one, value in numbers if value is not None)
    return samples


def with_times(records: Iterable[EpochRecord]) -> Iterator[tuple[int, EpochRecord]]:
    """Yield each epoch of a curve with its time in milliseconds since 1970.

    Prometheus keeps one value a millisecond, and takes them in order. An epoch that ended no later than the one
    before it, as after a restart on a machine whose clock is behind, is put a millisecond after that one.

    Args:
        records: The visible curve, in order.
    """
    latest: int | None = None
    for record in records:
        time = end_millisecond(record)
        latest = time if latest is None else max(time, latest + 1)
        yield latest, record


def read_history(store: Store, run_id: str, *, cluster: str) -> list[TimeSeries]:
    """Return the history of a run's visible curve, as of one moment, in the order of the table.

    Records are read a few at a time: in memory is what comes out, 16 bytes a value.

    Raises:
        NotFoundError: There is no such run.
    """
    found: dict[tuple[str, ...], TimeSeries] = {}
    with scraping(store) as scrape:
        run, records = scrape.history(run_id)
        for time, record in with_times(records):
            for sample in history_samples(run, record, cluster=cluster):
                key = (sample.series.name, *sample.labels.values())
                if key not in found:
                    found[key] = TimeSeries(sample.series, sample.labels)
                found[key].times.append(time)
                found[key].values.append(sample.value)
    place = {name: number for number, name in enumerate(TABLE)}
    return sorted(found.values(), key=lambda one: place[one.series.name])
