"""Views as the API answers them, for tests of what shows them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from curvewatch_service.schemas import (
    DiagnosisView,
    EpochView,
    EvidenceView,
    ReceiptView,
    RunView,
    SplitView,
)
from curvewatch_workers.contract import JobSpec

BEGIN = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
OVERFIT = tuple(
    (2.3 * math.exp(-i / 3) + 0.05, 2.3 * math.exp(-i / 3) + 0.2 + 0.005 * i * i) for i in range(1, 13)
)
"""Train and validation loss by epoch; the best validation loss is that of epoch 7."""


def split_view(loss: float | None, *, samples: int = 361, exact: bool = True) -> SplitView:
    receipt = ReceiptView(
        samples_expected=samples, samples_seen=samples, nonfinite_samples=0, ranks=2, exact=exact
    )
    metrics = {"accuracy": None if loss is None else 1 - loss / 3}
    return SplitView(loss=loss, standard_error=0.01, metrics=metrics, rank_loss_spread=0.0, receipt=receipt)


def epoch_view(
    epoch: int, train: float | None, validation: float | None, *, attempt: int = 1, exact: bool = True
) -> EpochView:
    return EpochView(
        epoch=epoch,
        attempt=attempt,
        world_size=2,
        started_at=BEGIN + timedelta(seconds=2 * epoch),
        finished_at=BEGIN + timedelta(seconds=2 * epoch + 2),
        duration_seconds=2.0,
        learning_rate=0.01,
        gradient_norm=1.0,
        train=split_view(train, samples=1436, exact=exact),
        validation=split_view(validation),
    )


def curve(losses: Sequence[tuple[float | None, float | None]] = OVERFIT) -> list[EpochView]:
    return [epoch_view(number, train, validation) for number, (train, validation) in enumerate(losses, 1)]


def diagnosis_view(verdict: str = "overfitting") -> DiagnosisView:
    evidence = EvidenceView(
        rule="validation_rises",
        message="validation loss rose from 0.67 to 0.96",
        epochs=[7, 12],
        values=[0.67, 0.96],
    )
    return DiagnosisView(
        verdict=verdict,
        summary="Validation loss rises while train loss falls.",
        advice="Stop at epoch 7.",
        evidence=[evidence],
        best_epoch=7,
        best_validation_loss=0.67,
        epochs_since_best=5,
    )


def run_view(
    *,
    run_id: str = "digits-1a2b3c",
    state: str = "RUNNING",
    reason: str = "attempt 1 trains on 2 workers",
    epochs: Sequence[EpochView] = (),
    planned: int = 12,
    traceback: str | None = None,
    diagnosis: DiagnosisView | None = None,
) -> RunView:
    latest = epochs[-1] if epochs else None
    job = {
        "name": "digits",
        "code": {"task": "digits:build"},
        "training": {"epochs": planned, "global_batch_size": 64},
        "scaling": {"workers": 2},
        "labels": {"team": "vision"},
    }
    return RunView(
        run_id=run_id,
        name="digits",
        owner="anna",
        state=state,
        reason=reason,
        created_at=BEGIN,
        started_at=BEGIN if epochs else None,
        finished_at=None,
        attempt=latest.attempt if latest else 0,
        epoch=latest.epoch if latest else 0,
        epochs_planned=planned,
        world_size=2 if epochs else None,
        verdict=diagnosis.verdict if diagnosis else None,
        train_loss=latest.train.loss if latest else None,
        validation_loss=latest.validation.loss if latest else None,
        labels={"team": "vision"},
        spec=JobSpec.model_validate(job),
        code_hash="ab" * 32,
        submission_id=f"{run_id}-1",
        traceback=traceback,
        checkpoint=None,
        best_checkpoint=None,
        diagnosis=diagnosis,
        latest=latest,
    )
