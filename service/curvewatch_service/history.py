"""The past for Prometheus: every epoch of a run at the time at which it ended, for an import or a remote write."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta

from curvewatch_service.samples import Sample
from curvewatch_service.stored import Run
from curvewatch_workers import series
from curvewatch_workers.contract import SPLITS, EpochRecord

_UNIX_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)


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


def end_millisecond(record: EpochRecord) -> int:
    """Return the Unix time in whole milliseconds at which an epoch ended: what Prometheus keeps of a time."""
    return (record.finished_at - _UNIX_EPOCH) // _MILLISECOND


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
