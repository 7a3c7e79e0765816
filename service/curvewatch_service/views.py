"""From what is stored to what the API answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from curvewatch_service.alerts import Alert
from curvewatch_service.schemas import (
    AlertView,
    DiagnosisView,
    EpochView,
    EventView,
    EvidenceView,
    ReceiptView,
    RunSummary,
    RunView,
    SavingsView,
    SplitView,
)
from curvewatch_service.store import Event, Run
from curvewatch_workers.contract import EpochRecord, SplitRecord
from curvewatch_workers.diagnosis import Savings


def run_summary(run: Run, latest: EpochRecord | None) -> RunSummary:
    """Return a run as a list shows it."""
    return RunSummary(**_summary(run, latest))


def run_view(run: Run, latest: EpochRecord | None, alerts: Sequence[Alert] = ()) -> RunView:
    """Return a run, whole, with its latest epoch and the alerts on it."""
    return RunView(
        **_summary(run, latest),
        spec=run.spec,
        code_hash=run.code_hash,
        submission_id=run.submission_id,
        traceback=run.traceback,
        checkpoint=run.checkpoint,
        best_checkpoint=run.best_checkpoint,
        diagnosis=diagnosis_view(run.diagnosis),
        latest=None if latest is None else epoch_view(latest),
        alerts=[AlertView(**asdict(alert)) for alert in alerts],
    )


def _summary(run: Run, latest: EpochRecord | None) -> dict[str, Any]:
    return {
        "run_id": run.run_id,
        "name": run.name,
        "owner": run.owner,
        "state": run.state.label,
        "reason": run.reason,
        "created_at": run.created_at,
        "started_at": run.started_at,
        "finished_at": run.finished_at,
        "attempt": run.attempt,
        "epoch": run.epoch,
        "epochs_planned": run.epochs_planned,
        "world_size": run.world_size,
        "verdict": None if run.diagnosis is None else run.diagnosis["verdict"],
        "train_loss": None if latest is None else latest.train.loss,
        "validation_loss": None if latest is None else latest.validation.loss,
        "labels": run.spec.labels,
    }


def epoch_view(record: EpochRecord) -> EpochView:
    """Return the global numbers of an epoch."""
    return EpochView(
        epoch=record.epoch,
        attempt=record.attempt,
        world_size=record.world_size,
        started_at=record.started_at,
        finished_at=record.finished_at,
        duration_seconds=record.duration_seconds,
        learning_rate=record.learning_rate,
        gradient_norm=record.gradient_norm,
        rolled_back_to=record.rolled_back_to,
        train=_split_view(record.train),
        validation=_split_view(record.validation),
    )


def _split_view(split: SplitRecord) -> SplitView:
    return SplitView(
        loss=split.loss,
        standard_error=split.standard_error,
        metrics=dict(split.metric_values),
        rank_loss_spread=split.rank_loss_spread,
        receipt=ReceiptView(
            samples_expected=split.samples_expected,
            samples_seen=split.samples_seen,
            nonfinite_samples=split.nonfinite_samples,
            ranks=len(split.ranks),
            exact=split.exact,
            reported_by=split.reported_by,
        ),
    )


def diagnosis_view(diagnosis: dict[str, Any] | None) -> DiagnosisView | None:
    """Return what the curve says, None before the first epoch."""
    if diagnosis is None:
        return None
    known = {
        name: value
        for name, value in diagnosis.items()
        if name in DiagnosisView.model_fields and name != "evidence"
    }
    return DiagnosisView(**known, evidence=[EvidenceView(**entry) for entry in diagnosis["evidence"]])


def savings_view(saved: Savings, stop_epoch: int) -> SavingsView:
    """Return what a stop after an epoch saves and costs."""
    return SavingsView(
        stop_epoch=stop_epoch,
        epochs=saved.epochs,
        seconds=saved.seconds,
        gpu_hours=saved.gpu_hours,
        loss=saved.loss,
    )


def event_view(event: Event) -> EventView:
    """Return one thing that happened to a run."""
    return EventView(time=event.time, reason=event.reason, message=event.message, actor=event.actor)
