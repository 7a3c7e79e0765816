"""Jobs, records and messages for tests of the store."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from curvewatch_service.store import Run, Store
from curvewatch_workers.contract import (
    AttemptStarted,
    CodeSpec,
    EpochFinished,
    EpochRecord,
    JobSpec,
    MetricTotals,
    RankShare,
    ScalingSpec,
    SplitRecord,
    TrainingSpec,
)

START = datetime(2026, 1, 1, tzinfo=UTC)


def job(**changes: object) -> JobSpec:
    """A job of 10 epochs on two workers."""
    fields: dict[str, object] = {
        "name": "digits",
        "code": CodeSpec(task="digits:build"),
        "training": TrainingSpec(epochs=10, global_batch_size=32),
        "scaling": ScalingSpec(workers=2),
    }
    return JobSpec.model_validate({**fields, **changes})


def between(fewest: int, most: int, **changes: object) -> ScalingSpec:
    """A range of workers."""
    return ScalingSpec.model_validate({"workers": {"min": fewest, "max": most}, **changes})


def database_url(folder: Path) -> str:
    """The URL of a SQLite file in a folder."""
    return f"sqlite:///{folder / 'curvewatch.db'}"


def new_run(store: Store, run_id: str = "digits-1", **changes: object) -> Run:
    """Add a run to a store."""
    return store.create_run(
        run_id=run_id, spec=job(**changes), owner="ada", code_hash="c" * 64, ingest_token_hash="t" * 64
    )


def split(*, loss: float, samples: int = 100, nonfinite: int = 0, seen: int | None = None) -> SplitRecord:
    """Totals of a split over two ranks, with an accuracy of 0.75."""
    seen = samples if seen is None else seen
    finite = seen - nonfinite
    first, second = finite - finite // 2, finite // 2
    return SplitRecord(
        loss_sum=loss * finite,
        loss_square_sum=loss * loss * finite,
        weight_sum=finite,
        samples_expected=samples,
        samples_seen=seen,
        checksum_expected=samples,
        checksum_seen=seen,
        nonfinite_samples=nonfinite,
        metrics={"accuracy": MetricTotals(total=0.75 * seen, count=seen)},
        ranks=(
            RankShare(loss_sum=loss * first, weight_sum=first, samples=first + nonfinite),
            RankShare(loss_sum=loss * second, weight_sum=second, samples=second),
        ),
    )


def record(
    epoch: int,
    *,
    run_id: str = "digits-1",
    attempt: int = 1,
    train: SplitRecord | None = None,
    validation: SplitRecord | None = None,
    seconds: float = 2.0,
    gpu_memory: tuple[int, ...] | None = None,
    gradient_norm: float | None = 0.5,
) -> EpochRecord:
    """One epoch of two ranks; losses fall with the epoch and tell the attempt apart."""
    loss = 1.0 / epoch + attempt / 1000
    start = START + timedelta(seconds=10 * min(epoch, 1000))
    return EpochRecord(
        run_id=run_id,
        attempt=attempt,
        epoch=epoch,
        world_size=2,
        started_at=start,
        finished_at=start + timedelta(seconds=seconds),
        learning_rate=0.1,
        gradient_norm=gradient_norm,
        rank_seconds=(seconds, seconds - 0.5),
        rank_validation_seconds=(seconds / 4, seconds / 8),
        gpu_memory_peak_bytes=gpu_memory,
        train=train or split(loss=loss),
        validation=validation or split(loss=loss + 0.1, samples=40),
    )


def epoch_message(epoch: int, *, attempt: int = 1, run_id: str = "digits-1") -> EpochFinished:
    """The message of one epoch."""
    return EpochFinished(record=record(epoch, attempt=attempt, run_id=run_id))


def run_with_everything(store: Store, run_id: str = "digits-1") -> None:
    """A run on GPUs with enough epochs for slopes."""
    new_run(
        store,
        run_id,
        scaling={"workers": 2, "gpus_per_worker": 1},
        labels={"team": "vision", "zone": 'é"\\\n'[:3]},
    )
    store.begin_submission(run_id)
    epochs = [record(epoch, run_id=run_id, gpu_memory=(10**9, 2 * 10**9)) for epoch in (1, 2, 3)]
    store.ingest(run_id, [attempt_message(1), *(EpochFinished(record=epoch) for epoch in epochs)])


def attempt_message(
    attempt: int, *, resumed_after_epoch: int = 0, world_size: int = 2, submission: int = 1
) -> AttemptStarted:
    """The message of one start of the worker group."""
    return AttemptStarted(
        attempt=attempt,
        submission=submission,
        world_size=world_size,
        time=START + timedelta(seconds=min(attempt, 100)),
        resumed_after_epoch=resumed_after_epoch,
    )
