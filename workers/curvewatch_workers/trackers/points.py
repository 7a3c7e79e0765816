"""What trackers show: the numbers of an epoch under flat names, and what the job was given."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pydantic import JsonValue

from curvewatch_workers.contract import SPLITS, EpochRecord, JobSpec, SplitRecord
from curvewatch_workers.errors import printable

Scalar = str | int | float | bool


@dataclass(frozen=True, kw_only=True)
class Point:
    """One epoch as a tracker shows it."""

    epoch: int
    """The x axis, from 1."""
    time: dt.datetime
    """When the numbers were known; that of the first writing, also when the curve is written again."""
    values: Mapping[str, int | float]
    """Numbers by name, such as `validation/loss`; NaN and infinities are kept."""


def point_of(record: EpochRecord) -> Point:
    """Return what trackers show of an epoch."""
    values: dict[str, int | float] = {}
    for name in SPLITS:
        values |= {f"{name}/{key}": value for key, value in _split_values(record.split(name)).items()}
    values["learning_rate"] = record.learning_rate
    if record.gradient_norm is not None:
        values["gradient_norm"] = record.gradient_norm
    seconds = record.duration_seconds
    values["seconds"] = seconds
    if seconds > 0 and record.train.reported_by is None:
        values["samples_per_second"] = (record.train.samples_seen + record.validation.samples_seen) / seconds
    values |= {"world_size": record.world_size, "attempt": record.attempt}
    return Point(epoch=record.epoch, time=record.finished_at, values=values)


def _split_values(split: SplitRecord) -> dict[str, int | float]:
    ours: dict[str, int | float] = {
        "loss": split.loss,
        "loss_standard_error": split.standard_error,
        # A loss beside a count above zero is not the loss over all samples.
        "nonfinite_samples": split.nonfinite_samples,
    }
    users = split.metric_values
    return ours | {f"metric_{name}" if name in ours else name: value for name, value in users.items()}


def settings_of(spec: JobSpec) -> dict[str, JsonValue]:
    """Return what a run is compared by: `params`, `training`, the number of workers, and `labels`."""
    return {
        "params": spec.params,
        "training": spec.training.model_dump(mode="json"),
        "workers": spec.scaling.model_dump(mode="json")["workers"],
        "labels": dict(spec.labels),
    }


def flat_settings(spec: JobSpec) -> dict[str, Scalar]:
    """Return the settings under dotted names, such as `params.lr`; lists as JSON, what is null left out."""
    return dict(_flat("", settings_of(spec)))


def _flat(path: str, value: JsonValue) -> Iterator[tuple[str, Scalar]]:
    if isinstance(value, dict):
        for key, entry in value.items():
            yield from _flat(f"{path}.{key}" if path else key, entry)
    elif isinstance(value, list):
        yield path, json.dumps(value)
    elif value is not None:
        yield path, printable(value) if isinstance(value, str) else value
