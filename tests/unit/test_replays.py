"""An epoch that is trained again: when it counts as another one, and what is told of it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from curvewatch_service.replays import DIFFERS, NOT_FAITHFUL, difference, reason_for
from curvewatch_service.store import Store
from curvewatch_workers.contract import EpochFinished, EpochRecord, MetricTotals, SplitRecord
from store_support import attempt_message, database_url, job, new_run, record, split


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(database_url(tmp_path))
    yield opened
    opened.close()


def _record(
    attempt: int,
    *,
    loss: float = 0.5,
    epoch: int = 3,
    train: SplitRecord | None = None,
    validation_loss: float = 0.6,
) -> EpochRecord:
    """An epoch whose losses do not tell its attempt."""
    return record(
        epoch,
        attempt=attempt,
        train=train or split(loss=loss),
        validation=split(loss=validation_loss, samples=40),
    )


def _changed(**changes: Any) -> SplitRecord:
    return split(loss=0.5).model_copy(update=changes)


@pytest.mark.parametrize("relative", [0.0, 2e-7, -9e-6])
def test_another_order_of_sums_is_no_difference(relative: float) -> None:
    assert difference(_record(1), _record(2, loss=0.5 * (1 + relative))) is None


def test_a_loss_beyond_the_tolerance_is_told_with_both_values() -> None:
    assert difference(_record(1), _record(2, loss=0.75)) == "train loss 0.5 and 0.75"
    one, other = _record(1, validation_loss=0.5), _record(2, validation_loss=0.75)
    assert difference(one, other) == "validation loss 0.5 and 0.75"
    numbers = difference(one, _record(2, loss=0.25, validation_loss=0.75))
    assert numbers == "train loss 0.5 and 0.25; validation loss 0.5 and 0.75"


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (_changed(samples_seen=99), "train samples_seen 100 and 99"),
        (_changed(samples_expected=99), "train samples_expected 100 and 99"),
        (_changed(checksum_seen=7), "train checksum_seen 100 and 7"),
        (_changed(nonfinite_samples=1), "train nonfinite_samples 0 and 1"),
        (
            _changed(metrics={"accuracy": MetricTotals(total=74, count=100)}),
            "train accuracy 0.75 and 0.74",
        ),
        (
            _changed(metrics={"accuracy": MetricTotals(total=150, count=200)}),
            "train accuracy count 100 and 200",
        ),
    ],
)
def test_counts_must_be_equal(changed: SplitRecord, told: str) -> None:
    assert difference(_record(1), _record(2, train=changed)) == told


def test_a_loss_that_is_no_number_equals_itself_only() -> None:
    lost = split(loss=0.0, nonfinite=100)
    assert math.isnan(lost.loss)
    assert difference(_record(1, train=lost), _record(2, train=lost)) is None
    numbers = difference(_record(1, train=lost), _record(2))
    assert numbers is not None
    assert "train loss nan and 0.5" in numbers


def test_the_number_of_workers_does_not_matter() -> None:
    four = split(loss=0.5).model_copy(update={"ranks": split(loss=0.5).ranks * 2})
    wider = _record(2).model_copy(update={"world_size": 4, "train": four})
    assert difference(_record(1), wider) is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, NOT_FAITHFUL),
        ({"scaling": {"workers": 7}}, NOT_FAITHFUL),
        ({"training": {"epochs": 3, "global_batch_size": 8, "precision": "bf16"}}, DIFFERS),
        ({"scaling": {"workers": 1, "gpus_per_worker": 1}}, DIFFERS),
    ],
)
def test_only_float32_on_cpus_must_be_faithful(changes: dict[str, Any], reason: str) -> None:
    assert reason_for(job(**changes)) == reason


def _differences(store: Store) -> list[str]:
    return [event.message for event in store.events("digits-1") if event.reason in (NOT_FAITHFUL, DIFFERS)]


def test_a_faithful_replay_is_not_told_of(store: Store) -> None:
    new_run(store)
    records = [_record(attempt, epoch=epoch) for epoch in (1, 2, 3) for attempt in (1, 2)]
    store.ingest("digits-1", [EpochFinished(record=one) for one in records])
    assert _differences(store) == []
    assert store.snapshot("digits-1").totals.differing_epochs == {}


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_a_difference_is_told_once_whichever_attempt_comes_first(
    store: Store, order: tuple[int, int]
) -> None:
    new_run(store)
    records = {1: _record(1), 2: _record(2, loss=0.55)}
    for attempt in (*order, *order):
        store.ingest("digits-1", [EpochFinished(record=records[attempt])])
    assert _differences(store) == [
        "epoch 3 was trained again and differs: attempt 1 (on 2 workers) and attempt 2 (on 2) have "
        f"train loss {records[1].train.loss!r} and {records[2].train.loss!r}"
    ]


def test_an_epoch_counts_once_in_whatever_order_its_attempts_arrive(tmp_path: Path) -> None:
    """The second of three attempts is the odd one."""
    records = [_record(1), _record(2, loss=0.55), _record(3)]
    for number, order in enumerate(itertools.permutations(records)):
        folder = tmp_path / str(number)
        folder.mkdir()
        store = Store(database_url(folder))
        new_run(store)
        for one in order:
            store.ingest("digits-1", [EpochFinished(record=one)])
        assert store.snapshot("digits-1").totals.differing_epochs == {NOT_FAITHFUL: 1}
        assert [found.attempt for found in store.epochs("digits-1")] == [3]
        store.close()


def test_half_precision_is_recorded_under_another_name(store: Store) -> None:
    new_run(store, training={"epochs": 10, "global_batch_size": 32, "precision": "bf16"})
    store.ingest("digits-1", [attempt_message(1), EpochFinished(record=_record(1))])
    store.ingest("digits-1", [attempt_message(2), EpochFinished(record=_record(2, loss=0.55))])
    assert store.snapshot("digits-1").totals.differing_epochs == {DIFFERS: 1}
    assert len(_differences(store)) == 1


def test_a_workers_event_of_the_same_name_is_not_counted(store: Store) -> None:
    new_run(store)
    store.add_event("digits-1", reason=NOT_FAITHFUL, message="somebody says so")
    assert store.snapshot("digits-1").totals.differing_epochs == {}
