"""Whether an epoch that was trained again, after a restart, gave the numbers of the first time. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator

from curvewatch_workers.contract import SPLITS, EpochRecord, JobSpec, SplitRecord

TOLERANCE = 1e-5
"""Largest relative difference of a mean that another order of the same float32 sums may make."""
NOT_FAITHFUL = "resume_not_faithful"
"""Reason of the event that a replay differs which should not."""
DIFFERS = "replay_differs"
"""Reason of the event that a replay differs which may."""


def reason_for(spec: JobSpec) -> str:
    """Return what a difference is called in runs of this job.

    On CPUs in float32 an epoch depends on the seed and on the weights that it starts from, up to the order of sums;
    the number of workers changes that order only. In half precision rounding is as large as what one looks for, and
    CUDA kernels add in an order of their own each time.
    """
    exact = spec.training.precision == "fp32" and not spec.scaling.gpus_per_worker
    return NOT_FAITHFUL if exact else DIFFERS


def difference(one: EpochRecord, other: EpochRecord) -> str | None:
    """Return in which numbers two records of the same epoch differ, each with both values; None when in none.

    Losses and metrics may differ by `TOLERANCE` relative, counts not at all. How the samples were spread over the
    ranks does not matter.
    """
    parts = [
        f"{split} {name} {_text(first)} and {_text(second)}"
        for split in SPLITS
        for name, first, second in _differing(one.split(split), other.split(split))
    ]
    return "; ".join(parts) or None


def _text(number: float) -> str:
    return str(int(number)) if float(number).is_integer() else repr(number)


def describe(one: EpochRecord, other: EpochRecord, numbers: str) -> str:
    """Return one sentence for a person, the earlier attempt first."""
    return (
        f"epoch {one.epoch} was trained again and differs: attempt {one.attempt} (on {one.world_size} workers) and "
        f"attempt {other.attempt} (on {other.world_size}) have {numbers}"
    )


def _differing(one: SplitRecord, other: SplitRecord) -> Iterator[tuple[str, float, float]]:
    means = {"loss": (one.loss, other.loss)}
    of_other = _counts(other)
    counts: dict[str, tuple[float, float]] = {
        name: (count, of_other[name]) for name, count in _counts(one).items()
    }
    for name in sorted(one.metrics.keys() & other.metrics.keys()):
        first, second = one.metrics[name], other.metrics[name]
        means[name] = (first.value, second.value)
        counts[f"{name} count"] = (first.count, second.count)
    yield from ((name, *pair) for name, pair in means.items() if not _close(*pair))
    yield from ((name, *pair) for name, pair in counts.items() if pair[0] != pair[1])


def _counts(split: SplitRecord) -> dict[str, int]:
    """Return every whole number of a split by its name."""
    return {name: value for name, value in split if isinstance(value, int)}


def _close(one: float, other: float) -> bool:
    if math.isnan(one) or math.isnan(other):
        return math.isnan(one) and math.isnan(other)
    return math.isclose(one, other, rel_tol=TOLERANCE)
