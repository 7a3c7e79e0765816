"""What a curve says, as JSON can hold it."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from curvewatch_workers import diagnosis
from curvewatch_workers.diagnosis import Curve, summarize


def describe_curve(curve: Curve, *, window: int) -> dict[str, Any]:
    """Return the fields of a curve's `Diagnosis` and `CurveSummary` as JSON, null where not finite.

    Args:
        curve: The run so far.
        window: Latest epochs that slopes are fitted over.
    """
    fields = {**asdict(diagnosis.diagnose(curve)), **asdict(summarize(curve, window=window))}
    known: dict[str, Any] = finite(fields)
    return known


def finite(value: Any) -> Any:
    """Return the value with null for each number in it that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return value
