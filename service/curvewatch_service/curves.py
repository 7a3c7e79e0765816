"""What a curve says, as JSON can hold it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from curvewatch_workers import diagnosis
from curvewatch_workers.contract import EpochRecord, JobSpec
from curvewatch_workers.diagnosis import Curve, Diagnosis, Verdict, summarize
from curvewatch_workers.replay import savings_of_run


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A curve that was read epoch by epoch, without looking ahead."""

    diagnosis: Diagnosis
    """What it says in the end."""
    stop_epoch: int | None
    """The epoch after which a stop was first advised."""
    first: dict[str, int | None]
    """The epoch at which each verdict was first raised."""


def read_curve(curve: Curve) -> Reading:
    """Read a curve as it would have been read while it grew."""
    first: dict[str, int | None] = {str(verdict): None for verdict in Verdict}
    stop, said = None, diagnosis.OnlineDiagnosis().diagnosis()
    for epoch, said in enumerate(diagnosis.diagnoses(curve), start=1):
        first[said.verdict] = first[said.verdict] or epoch
        if stop is None and said.stop:
            stop = epoch
    return Reading(diagnosis=said, stop_epoch=stop, first=first)


def read_further(
    curve: Curve, before: dict[str, Any] | None, *, unchanged: int
) -> tuple[Diagnosis, dict[str, int]]:
    """Read a curve that was read before, and count the epochs for which its verdict has stood.

    Args:
        curve: The run so far.
        before: What was said of it then, with the count; None for not yet.
        unchanged: First epochs of the curve that are as they were then.

    Returns:
        The diagnosis; and as JSON how many epochs have been read and, of them, for how many in a row the verdict has
        been this. Where epochs have changed since which the verdict stood, it counts from the first of those.
    """
    verdict, since, known = None, 1, 0
    if before is not None and "verdict_epochs" in before:
        read = before["read_epochs"]
        known, since = min(read, unchanged, len(curve)), read - before["verdict_epochs"] + 1
        verdict = before["verdict"] if since <= known else None
    said = None
    # The latest is always read: its evidence is wanted.
    for epoch, said in enumerate(
        diagnosis.diagnoses(curve, after=min(known, len(curve) - 1)), start=known + 1
    ):
        if said.verdict != verdict:
            verdict, since = said.verdict, min(epoch, len(curve))
    said = said or diagnosis.diagnose(curve)
    return said, {"read_epochs": len(curve), "verdict_epochs": len(curve) - since + 1 if len(curve) else 0}


def describe_curve(curve: Curve, *, window: int, said: Diagnosis | None = None) -> dict[str, Any]:
    """Return the fields of a curve's `Diagnosis` and `CurveSummary` as JSON, null where not finite.

    Args:
        curve: The run so far.
        window: Latest epochs that slopes are fitted over.
        said: Its diagnosis, where that is known already.
    """
    fields = {**asdict(said or diagnosis.diagnose(curve)), **asdict(summarize(curve, window=window))}
    known: dict[str, Any] = finite(fields)
    return known


def describe_savings(records: Sequence[EpochRecord], spec: JobSpec) -> dict[str, Any] | None:
    """Return as JSON what stopping a run at its best epoch would have saved; None while that is its latest.

    Args:
        records: From its best epoch on, without a gap.
        spec: Its job.
    """
    if len(records) < 2:
        return None
    best = records[0].epoch
    # An epoch that a rescue undid may have had a lower loss, but its weights are gone: the best epoch costs nothing.
    return {"stop_epoch": best, **finite(asdict(savings_of_run(records, spec, best))), "loss": 0.0}


def finite(value: Any) -> Any:
    """Return the value with null for each number in it that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return value
