"""Names of the alerts on runs: a job may say what follows from each."""

from __future__ import annotations

from typing import Final

ALERT_PREFIX: Final = "Curvewatch"
ALERT_PATTERN: Final = r"^[A-Za-z_][A-Za-z0-9_]{0,99}$"
ALERTS_ON_RUNS: Final = (
    "CurvewatchLossNotFinite",
    "CurvewatchValidationLossDiverging",
    "CurvewatchTrainLossDiverging",
    "CurvewatchOverfitting",
    "CurvewatchOverconfident",
    "CurvewatchPlateau",
    "CurvewatchUnderfitting",
    "CurvewatchSlowConvergence",
    "CurvewatchUnstable",
    "CurvewatchRunStalled",
    "CurvewatchNoFirstEpoch",
    "CurvewatchWorkerRestarts",
    "CurvewatchRunFailed",
    "CurvewatchStraggler",
    "CurvewatchReceiptNotExact",
    "CurvewatchResumeNotFaithful",
    "CurvewatchShardsUnbalanced",
)
"""Those that come with Curvewatch; a site may have others, of names of its own."""
