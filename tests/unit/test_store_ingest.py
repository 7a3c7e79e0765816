"""What workers tell: any order and any repetition leads to the same run."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curvewatch_service.errors import BadRequestError, NotFoundError
from curvewatch_service.runs import RunState
from curvewatch_service.store import Store
from curvewatch_workers.contract import (
    Control,
    EpochFinished,
    IngestMessage,
    Outcome,
    RunFinished,
    WorkerEvent,
)
from curvewatch_workers.series import INGESTED_MESSAGES
from store_support import START, attempt_message, database_url, epoch_message, new_run, record, split


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(database_url(tmp_path))
    yield opened
    opened.close()


def _started(store: Store) -> None:
    new_run(store)
    assert store.begin_submission("digits-1") is not None


def _finished(submission: int = 1, *, outcome: Outcome = Outcome.SUCCEEDED, second: int = 500) -> RunFinished:
    return RunFinished(
        submission=submission,
        time=START + timedelta(seconds=second),
        outcome=outcome,
        reason="all epochs are trained",
        checkpoint="/runs/last",
        best_checkpoint="/runs/best",
    )


# A run that was restarted after epoch 3, with epochs 4 and 5 replayed, epoch 6 of the first attempt not yet,
# one receipt that is wrong in both attempts, one event of a worker, and the end.
_INEXACT = split(loss=0.4, samples=40, seen=39)
_STORY: tuple[IngestMessage, ...] = (
    attempt_message(1),
    *(epoch_message(epoch) for epoch in (1, 2, 3, 4)),
    EpochFinished(record=record(5, validation=_INEXACT)),
    epoch_message(6),
    WorkerEvent(attempt=1, time=START, reason="data_slow", message="rank 1 waited for data"),
    attempt_message(2, resumed_after_epoch=3),
    epoch_message(4, attempt=2),
    EpochFinished(record=record(5, attempt=2, validation=_INEXACT)),
    _finished(),
)
_VISIBLE = [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2), (6, 1)]


@st.composite
def _deliveries(draw: st.DrawFn) -> list[list[IngestMessage]]:
    """The story in any order, some of it twice, cut into requests anywhere."""
    repeated = draw(st.lists(st.sampled_from(_STORY), max_size=6))
    messages = draw(st.permutations([*_STORY, *repeated]))
    cuts = sorted(draw(st.sets(st.integers(1, len(messages) - 1), max_size=5)))
    return [list(messages[start:end]) for start, end in zip([0, *cuts], [*cuts, None], strict=True)]


@settings(max_examples=40, deadline=None)
@given(deliveries=_deliveries())
def test_any_order_and_any_repetition_leads_to_the_same_run(
    deliveries: Sequence[list[IngestMessage]],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = Store(database_url(Path(folder)))
        _started(store)
        for messages in deliveries:
            assert store.ingest("digits-1", messages) is Control.CONTINUE
        run, totals = store.run("digits-1"), store.snapshot("digits-1").totals
        curve = [(found.epoch, found.attempt) for found in store.epochs("digits-1")]
        events = sorted(event.reason for event in store.events("digits-1"))
        counted = {
            kind: store.counters.value(INGESTED_MESSAGES, kind) for kind in ("epoch", "attempt_started")
        }
        store.close()
    assert curve == _VISIBLE
    assert events == [
        "data_slow",
        "receipt_not_exact",
        # The records of the story tell their attempt apart by their losses, in epochs 4 and 5.
        "resume_not_faithful",
        "resume_not_faithful",
        "state_queued",
        "state_running",
        "state_starting",
        "worker_restart",
    ]
    assert (run.state, run.attempt, run.epoch, run.world_size) == (RunState.RUNNING, 2, 6, 2)
    assert run.started_at == attempt_message(1).time
    assert (run.outcome, run.checkpoint) == (Outcome.SUCCEEDED, "/runs/last")
    assert (totals.train_samples, totals.worker_seconds) == (600, 24.0)
    assert totals.differing_epochs == {"resume_not_faithful": 2}
    assert counted == {"epoch": 8, "attempt_started": 2}
    assert run.diagnosis is not None
    assert run.diagnosis["best_epoch"] == 6


def _end(store: Store, state: RunState) -> None:
    assert store.transition("digits-1", state, expected={RunState.RUNNING}, reason="over", message="over")


@pytest.mark.parametrize(
    ("last", "state", "visible"),
    [
        # Attempt 2 went on from epoch 3 and came to epoch 5: nobody has the weights of the first one's 6.
        ([epoch_message(4, attempt=2), epoch_message(5, attempt=2)], RunState.STOPPED, [1, 2, 3, 4, 5]),
        ([epoch_message(4, attempt=2)], RunState.FAILED, [1, 2, 3, 4]),
        ([_finished(outcome=Outcome.STOPPED)], RunState.STOPPED, [1, 2, 3]),
        # It ended before it had trained anything: what there is, is the first attempt's.
        ([], RunState.LOST, [1, 2, 3, 4, 5, 6]),
        ([_finished(outcome=Outcome.FAILED)], RunState.FAILED, [1, 2, 3, 4, 5, 6]),
    ],
)
def test_the_curve_of_an_ended_run_ends_where_its_final_attempt_did(
    store: Store, last: list[IngestMessage], state: RunState, visible: list[int]
) -> None:
    _started(store)
    store.ingest("digits-1", [attempt_message(1), *(epoch_message(epoch) for epoch in range(1, 7))])
    store.ingest("digits-1", [attempt_message(2, resumed_after_epoch=3), *last])
    assert [found.epoch for found in store.epochs("digits-1")] == [1, 2, 3, 4, 5, 6]
    totals = store.snapshot("digits-1").totals
    _end(store, state)
    snapshot = store.snapshot("digits-1")
    assert [found.epoch for found in store.epochs("digits-1")] == visible
    assert snapshot.latest is not None
    assert (snapshot.run.epoch, snapshot.latest.epoch) == (visible[-1], visible[-1])
    assert snapshot.run.diagnosis is not None
    assert snapshot.run.diagnosis["best_epoch"] == visible[-1]
    assert snapshot.totals == totals


def test_an_outcome_that_comes_after_the_end_settles_the_curve(store: Store) -> None:
    _started(store)
    store.ingest("digits-1", [attempt_message(1), epoch_message(1), epoch_message(2)])
    store.ingest("digits-1", [attempt_message(2, resumed_after_epoch=1)])
    _end(store, RunState.STOPPED)
    assert store.run("digits-1").epoch == 2
    store.ingest("digits-1", [_finished(outcome=Outcome.STOPPED)])
    assert store.run("digits-1").epoch == 1
    assert [found.epoch for found in store.epochs("digits-1")] == [1]


def test_a_diagnosis_knows_the_learning_rates(store: Store) -> None:
    _started(store)
    rates = (0.1, 0.05, 0.02, 0.01, 0.01, 0.001, 0.1, 0.09)
    for epoch, rate in enumerate(rates, start=1):
        loss = 1.0 / epoch + (0.3 if epoch > 6 else 0.0)
        told = record(epoch, train=split(loss=loss), validation=split(loss=loss + 0.1, samples=40))
        message = EpochFinished(record=told.model_copy(update={"learning_rate": rate}))
        store.ingest("digits-1", [message])
    diagnosis = store.run("digits-1").diagnosis
    assert diagnosis is not None
    (raised,) = (entry for entry in diagnosis["evidence"] if entry["rule"] == "learning_rate_raised")
    assert (raised["epochs"], raised["values"]) == ([6, 8], [0.001, 0.09])


def test_a_diagnosis_stops_at_the_first_epoch_that_is_missing(store: Store) -> None:
    _started(store)
    store.ingest("digits-1", [epoch_message(1), epoch_message(2), epoch_message(4)])
    diagnosis = store.run("digits-1").diagnosis
    assert diagnosis is not None
    assert diagnosis["best_epoch"] == 2
    assert store.run("digits-1").epoch == 4
    store.ingest("digits-1", [epoch_message(3)])
    diagnosis = store.run("digits-1").diagnosis
    assert diagnosis is not None
    assert diagnosis["best_epoch"] == 4


def test_an_epoch_without_a_finite_loss_is_kept_and_diagnosed(store: Store) -> None:
    _started(store)
    lost = record(
        1, train=split(loss=0.0, nonfinite=100), validation=split(loss=0.0, samples=40, nonfinite=40)
    )
    store.ingest("digits-1", [EpochFinished(record=lost)])
    [kept] = store.epochs("digits-1")
    assert kept == lost
    assert math.isnan(kept.train.loss)
    snapshot = store.snapshot("digits-1")
    assert snapshot.run.diagnosis is not None
    assert snapshot.run.diagnosis["verdict"] == "not_finite"
    assert snapshot.run.diagnosis["best_validation_loss"] is None
    assert (snapshot.totals.train_nonfinite_samples, snapshot.totals.validation_nonfinite_samples) == (
        100,
        40,
    )


def test_totals_never_go_down_when_a_replayed_epoch_counts_less(store: Store) -> None:
    _started(store)
    store.ingest("digits-1", [EpochFinished(record=record(1, seconds=9.0))])
    before = store.snapshot("digits-1").totals
    replayed = record(1, seconds=3.0).model_copy(update={"attempt": 2})
    store.ingest("digits-1", [EpochFinished(record=replayed)])
    assert store.snapshot("digits-1").totals == before


def test_the_story_of_an_earlier_submission_changes_nothing(store: Store) -> None:
    _started(store)
    store.ingest("digits-1", [attempt_message(1), epoch_message(1), _finished(outcome=Outcome.PAUSED)])
    assert store.transition(
        "digits-1", RunState.QUEUED, expected={RunState.RUNNING}, reason="paused", message="paused"
    )
    assert store.begin_submission("digits-1") is not None
    store.ingest("digits-1", [attempt_message(1), epoch_message(1), _finished(outcome=Outcome.PAUSED)])
    run = store.run("digits-1")
    assert (run.state, run.outcome, run.outcome_reason) == (RunState.RESTARTING, None, "")
    assert run.checkpoint == "/runs/last"
    store.ingest("digits-1", [attempt_message(2, resumed_after_epoch=1, submission=2), _finished(2)])
    run = store.run("digits-1")
    assert (run.state, run.outcome, run.submission_id) == (RunState.RUNNING, Outcome.SUCCEEDED, "digits-1-2")


def test_the_answer_is_the_control_word_and_stop_once_the_run_has_ended(store: Store) -> None:
    _started(store)
    assert store.ingest("digits-1", [attempt_message(1)]) is Control.CONTINUE
    assert store.request_control("digits-1", Control.PAUSE, actor="service")
    assert store.ingest("digits-1", [epoch_message(1)]) is Control.PAUSE
    store.transition(
        "digits-1",
        RunState.LOST,
        expected={RunState.RUNNING},
        reason="its job is gone",
        message="its job is gone",
    )
    assert store.ingest("digits-1", [epoch_message(2)]) is Control.STOP
    assert store.run("digits-1").epoch == 2
    assert not store.request_control("digits-1", Control.CONTINUE, actor="service")


def test_a_request_with_one_bad_message_takes_none(store: Store) -> None:
    _started(store)
    with pytest.raises(BadRequestError, match="'digits-2' was sent to run 'digits-1'"):
        store.ingest("digits-1", [epoch_message(1), epoch_message(1, run_id="digits-2")])
    assert store.epochs("digits-1") == []
    assert store.counters.value(INGESTED_MESSAGES, "epoch") == 0


@pytest.mark.parametrize(
    ("message", "name"),
    [
        (attempt_message(2**53 + 1), "attempt"),
        (attempt_message(1, resumed_after_epoch=2**53 + 1), "epoch"),
        (attempt_message(1, world_size=2**53 + 1), "world_size"),
        (EpochFinished(record=record(2**53 + 1)), "epoch"),
        (EpochFinished(record=record(1, attempt=2**53 + 1)), "attempt"),
    ],
)
def test_a_number_that_no_database_keeps_is_refused_by_name(
    store: Store, message: IngestMessage, name: str
) -> None:
    _started(store)
    with pytest.raises(BadRequestError, match=rf"^{name} is 9007199254740993, more than"):
        store.ingest("digits-1", [message])


def test_the_largest_numbers_that_are_kept_can_be_summed(store: Store) -> None:
    _started(store)
    largest = [
        EpochFinished(record=record(epoch, train=split(loss=0.0, samples=2**53))) for epoch in range(1, 4)
    ]
    store.ingest("digits-1", largest)
    assert store.snapshot("digits-1").totals.train_samples == 3 * 2**53


_EARLY, _LATE = (
    datetime.fromisoformat(text) for text in ("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00")
)


@pytest.mark.parametrize(
    ("message", "name"),
    [
        (attempt_message(1).model_copy(update={"time": _EARLY}), "time"),
        (WorkerEvent(attempt=1, time=_LATE, reason="slow", message="slow"), "time"),
        (_finished().model_copy(update={"time": _LATE}), "time"),
        (EpochFinished(record=record(1).model_copy(update={"started_at": _EARLY})), "started_at"),
        (EpochFinished(record=record(1).model_copy(update={"finished_at": _LATE})), "finished_at"),
    ],
)
def test_a_time_without_a_date_in_utc_is_refused_by_name(
    store: Store, message: IngestMessage, name: str
) -> None:
    _started(store)
    with pytest.raises(BadRequestError, match=rf"^{name} is .* not in the years 1 to 9999"):
        store.ingest("digits-1", [message])


def test_an_unknown_run_takes_nothing(store: Store) -> None:
    with pytest.raises(NotFoundError, match="no run 'nobody'"):
        store.ingest("nobody", [attempt_message(1)])


def test_threads_that_tell_at_the_same_time_lose_nothing(store: Store) -> None:
    _started(store)
    epochs = range(1, 25)

    def tell(first: int) -> None:
        for epoch in epochs[first::4]:
            # Each epoch by two threads: the reporter and the spool.
            store.ingest("digits-1", [epoch_message(epoch)])
            store.ingest("digits-1", [epoch_message(epochs[-epoch])])

    with ThreadPoolExecutor(4) as threads:
        for told in [threads.submit(tell, first) for first in range(4)]:
            told.result(timeout=60)
    assert [found.epoch for found in store.epochs("digits-1")] == list(epochs)
    assert store.counters.value(INGESTED_MESSAGES, "epoch") == 24


def test_a_reopened_database_holds_everything(tmp_path: Path, store: Store) -> None:
    _started(store)
    store.ingest("digits-1", _STORY)
    before = (store.run("digits-1"), store.events("digits-1"), store.epochs("digits-1"))
    store.close()
    again = Store(database_url(tmp_path))
    assert (again.run("digits-1"), again.events("digits-1"), again.epochs("digits-1")) == before
    again.close()
