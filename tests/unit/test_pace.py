"""How a run gets on in time: slow ranks, the wait for an epoch, and for how long a verdict has stood."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curvewatch_service.curves import read_further
from curvewatch_service.pace import epoch_wait_limit, rank_slowness
from curvewatch_service.runs import RunState
from curvewatch_service.scrape import scraping
from curvewatch_service.store import Store
from curvewatch_workers.contract import EpochFinished, EpochRecord
from curvewatch_workers.diagnosis import Curve, diagnoses
from store_support import START, attempt_message, database_url, epoch_message, job, new_run, record, split


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(database_url(tmp_path))
    yield opened
    opened.close()


def taking(*seconds: float, epochs: int = 1) -> list[EpochRecord]:
    """Epochs whose two ranks took so long for 20 validation samples each."""
    return [
        record(epoch).model_copy(update={"rank_validation_seconds": seconds})
        for epoch in range(1, epochs + 1)
    ]


def test_the_slow_rank_is_told_by_its_time_a_sample() -> None:
    assert rank_slowness(taking(1.0, 4.0, epochs=2)) == [1, 4]


def test_a_rank_with_more_samples_is_not_slow() -> None:
    (one,) = taking(1.0, 2.0)
    shares = tuple(
        share.model_copy(update={"samples": samples})
        for share, samples in zip(one.validation.ranks, (10, 20), strict=True)
    )
    fair = one.model_copy(update={"validation": one.validation.model_copy(update={"ranks": shares})})
    assert rank_slowness([fair]) == [1, 1]


@pytest.mark.parametrize(
    "records",
    [
        [],
        taking(0.1, 0.3),
        [record(1).model_copy(update={"rank_validation_seconds": None})],
        [
            record(1, validation=split(loss=1.0, samples=1)).model_copy(
                update={"rank_validation_seconds": (1.0, 1.0)}
            )
        ],
    ],
    ids=["no epoch", "too short to say", "not known", "a rank without samples"],
)
def test_nothing_is_said_of_ranks_that_cannot_be_compared(records: list[EpochRecord]) -> None:
    assert rank_slowness(records) is None


def test_epochs_of_another_world_size_are_left_out() -> None:
    alone = record(1).model_copy(update={"world_size": 1, "rank_validation_seconds": (9.0,)})
    assert rank_slowness([alone, *taking(1.0, 2.0)]) == [1, 2]


def test_the_wait_for_an_epoch_is_the_runs_own() -> None:
    assert epoch_wait_limit(job(), None) == 3600
    assert epoch_wait_limit(job(), 0.2) == 600
    assert epoch_wait_limit(job(), 6 * 3600.0) == 60 * 3600
    assert epoch_wait_limit(job(monitoring={"stalled_after_seconds": 90}), 6 * 3600.0) == 90


LOSSES = st.lists(st.sampled_from([0.1, 0.5, 0.9, 1.0, 2.0, 40.0]), min_size=1, max_size=25)


@given(losses=LOSSES, pieces=st.lists(st.integers(1, 6), min_size=1, max_size=25))
def test_a_verdict_is_counted_as_if_the_curve_were_read_epoch_by_epoch(
    losses: list[float], pieces: list[int]
) -> None:
    before, length = None, 0
    for piece in pieces:
        if length == len(losses):
            break
        unchanged, length = length, min(length + piece, len(losses))
        curve = curve_of(losses[:length])
        said, counted = read_further(curve, before, unchanged=unchanged)
        before = {"verdict": said.verdict, **counted}
        verdicts = [one.verdict for one in diagnoses(curve)]
        same = next((n for n, one in enumerate(reversed(verdicts)) if one != verdicts[-1]), length)
        assert (said.verdict, counted) == (verdicts[-1], {"read_epochs": length, "verdict_epochs": same})


def test_an_epoch_that_is_replayed_goes_on_with_a_verdict_from_before_it() -> None:
    losses = [1.0 / epoch for epoch in range(1, 13)]
    said, counted = read_further(curve_of(losses), None, unchanged=0)
    before = {"verdict": said.verdict, **counted}
    again, counted_again = read_further(curve_of(losses), before, unchanged=10)
    assert (again, counted_again) == (said, counted)
    _, shorter = read_further(curve_of(losses[:11]), before, unchanged=20)
    assert shorter == {"read_epochs": 11, "verdict_epochs": counted["verdict_epochs"] - 1}


def test_an_empty_curve_has_no_epochs_of_a_verdict() -> None:
    assert read_further(curve_of([]), None, unchanged=0)[1] == {"read_epochs": 0, "verdict_epochs": 0}


def test_the_store_counts_a_verdict_over_replays_and_late_epochs(store: Store) -> None:
    new_run(store)
    store.begin_submission("digits-1")
    store.ingest("digits-1", [attempt_message(1), *(epoch_message(epoch) for epoch in (1, 2, 4))])
    assert counted(store) == 2
    store.ingest("digits-1", [epoch_message(3)])
    assert counted(store) == 4
    store.ingest("digits-1", [attempt_message(2, resumed_after_epoch=2), epoch_message(3, attempt=2)])
    assert counted(store) == 4


def test_the_next_epoch_is_awaited_since_the_latest_or_a_later_start(store: Store) -> None:
    new_run(store)
    assert awaited_since(store) is None
    before = datetime.now(UTC)
    store.begin_submission("digits-1")
    given = awaited_since(store)
    assert given is not None
    assert before <= given <= datetime.now(UTC)
    late = record(1).model_copy(update={"finished_at": given + timedelta(hours=1)})
    store.ingest("digits-1", [attempt_message(1), EpochFinished(record=late)])
    assert awaited_since(store) == late.finished_at
    again = attempt_message(2, resumed_after_epoch=1).model_copy(update={"time": given + timedelta(hours=2)})
    store.ingest("digits-1", [again])
    assert awaited_since(store) == given + timedelta(hours=2)
    store.transition(
        "digits-1", RunState.FAILED, expected=[RunState.RUNNING], reason="worker died", message="worker died"
    )
    assert awaited_since(store) is None


def test_the_longest_epoch_is_kept(store: Store) -> None:
    new_run(store)
    for epoch, seconds in ((1, 2.0), (2, 50.0), (3, 1.0)):
        store.ingest("digits-1", [EpochFinished(record=record(epoch, seconds=seconds))])
    diagnosis = store.run("digits-1").diagnosis
    assert diagnosis is not None
    assert diagnosis["longest_epoch_seconds"] == 50


def test_a_scrape_sees_one_moment(store: Store) -> None:
    for run_id in ("digits-1", "digits-2"):
        new_run(store, run_id)
    with scraping(store) as scrape:
        assert scrape.shown_since(START) == ["digits-1", "digits-2"]
        for run_id in ("digits-1", "digits-2"):
            store.ingest(run_id, [epoch_message(1, run_id=run_id)])
        assert [scrape.run(run_id).snapshot.run.epoch for run_id in ("digits-1", "digits-2")] == [0, 0]
    with scraping(store) as scrape:
        assert scrape.run("digits-2").snapshot.run.epoch == 1


def curve_of(losses: Sequence[float]) -> Curve:
    return Curve(train=tuple(losses), validation=tuple(losses))


def counted(store: Store) -> int:
    diagnosis = store.run("digits-1").diagnosis
    assert diagnosis is not None
    epochs: int = diagnosis["verdict_epochs"]
    return epochs


def awaited_since(store: Store) -> datetime | None:
    with scraping(store) as scrape:
        return scrape.run("digits-1").awaited_since
