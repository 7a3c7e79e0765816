"""Epoch records made by hand."""

from __future__ import annotations

import datetime as dt

from curvewatch_workers.contract import EpochRecord, MetricTotals, RankShare, SplitRecord

START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


def make_split(loss: float, *, samples: int = 100, accuracy: float = 0.5, world_size: int = 1) -> SplitRecord:
    """Return a split whose mean loss is the given one; NaN makes every sample non-finite."""
    finite = loss == loss
    weight = float(samples) if finite else 0.0
    total = loss * samples if finite else 0.0
    shares = [samples * (rank + 1) // world_size - samples * rank // world_size for rank in range(world_size)]
    return SplitRecord(
        loss_sum=total,
        loss_square_sum=total * loss if finite else 0.0,
        weight_sum=weight,
        samples_expected=samples,
        samples_seen=samples,
        checksum_expected=7,
        checksum_seen=7,
        nonfinite_samples=0 if finite else samples,
        metrics={"accuracy": MetricTotals(total=accuracy * samples, count=samples)},
        ranks=tuple(
            RankShare(loss_sum=total * share / samples, weight_sum=weight * share / samples, samples=share)
            for share in shares
        ),
    )


def make_record(
    *,
    epoch: int = 1,
    train_loss: float = 1.0,
    validation_loss: float = 1.0,
    accuracy: float = 0.5,
    attempt: int = 1,
    run_id: str = "toy",
    world_size: int = 1,
    seconds: float = 2.0,
) -> EpochRecord:
    """Return the record of an epoch that took `seconds`, the epochs following each other."""
    started_at = START + dt.timedelta(seconds=seconds * (epoch - 1))
    return EpochRecord(
        run_id=run_id,
        attempt=attempt,
        epoch=epoch,
        world_size=world_size,
        started_at=started_at,
        finished_at=started_at + dt.timedelta(seconds=seconds),
        learning_rate=0.1,
        gradient_norm=1.0,
        rank_seconds=(seconds,) * world_size,
        train=make_split(train_loss, samples=200, accuracy=accuracy, world_size=world_size),
        validation=make_split(validation_loss, accuracy=accuracy, world_size=world_size),
    )
