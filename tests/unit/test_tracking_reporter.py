"""A tracker that is broken, slow or absent costs the run nothing but one event."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from curvewatch_workers.contract import AttemptStarted, Control, EpochFinished, RunLayout
from curvewatch_workers.testing import RecordingReporter
from curvewatch_workers.trackers import TrackingReporter, tracked
from curvewatch_workers.trackers.points import Point
from record_support import START, make_record
from tracker_support import (
    OTHERS_WARNINGS,
    TRACKERS,
    events,
    make_job,
    plain_environment,
    read_curve,
    run_attempt,
)

pytestmark = OTHERS_WARNINGS


class ListTracker:
    """Keeps the epochs that it shows; does what the test says before each."""

    def __init__(self, before: Callable[[int], None] = lambda _epoch: None) -> None:
        self.before = before
        self.shown: list[int] = []
        self.rewritten = 0
        self.closed = False

    def rewrite(self, curve: Sequence[Point]) -> None:
        self.rewritten += 1
        self.shown = []
        for point in curve:
            self.append(point)

    def append(self, point: Point) -> None:
        self.before(point.epoch)
        self.shown.append(point.epoch)

    def close(self) -> None:
        self.closed = True


def start(
    *trackers: ListTracker,
    flush_seconds: float = 10.0,
    superseded: Callable[[], bool] = lambda: False,
    checkpoint: int = 0,
) -> tuple[TrackingReporter, RecordingReporter]:
    """Start an attempt whose checkpoint has so many epochs."""
    inner = RecordingReporter()
    reporter = TrackingReporter(inner, 1, flush_seconds=flush_seconds)
    for number, tracker in enumerate(trackers):
        reporter.add(f"list{number}", lambda tracker=tracker: tracker, superseded)  # type: ignore[misc]
    train(reporter, *range(1, checkpoint + 1))
    reporter.send(AttemptStarted(attempt=1, world_size=1, time=START))
    return reporter, inner


def train(reporter: TrackingReporter, *epochs: int) -> None:
    for epoch in epochs:
        reporter.send(EpochFinished(record=make_record(epoch=epoch)))


def raise_at(*bad: int) -> Callable[[int], None]:
    left = list(bad)

    def before(epoch: int) -> None:
        if epoch in left:
            left.remove(epoch)
            raise OSError(f"epoch {epoch}\ncannot be written")

    return before


def test_the_checkpoints_epochs_are_written_at_once_and_each_new_one_after() -> None:
    tracker = ListTracker()

    reporter, inner = start(tracker, checkpoint=2)
    train(reporter, 3, 4)
    reporter.close()

    assert (tracker.shown, tracker.rewritten, tracker.closed) == ([1, 2, 3, 4], 1, True)
    assert [record.epoch for record in inner.records] == [1, 2, 3, 4]
    assert inner.closed


def test_the_service_gets_everything_and_its_word_comes_back() -> None:
    reporter, inner = start(ListTracker())
    inner.next_control = Control.STOP

    assert reporter.control() is Control.STOP
    reporter.close()
    assert len(inner.messages) == 1


def test_a_tracker_that_fails_is_told_once_and_is_given_the_whole_curve_at_the_end() -> None:
    broken, whole = ListTracker(raise_at(2)), ListTracker()

    reporter, inner = start(broken, whole)
    train(reporter, 1, 2, 3, 4)
    reporter.close()

    assert events(inner) == [
        "tracker list0 failed with OSError: epoch 2 cannot be written; the run goes on without it"
    ]
    assert broken.shown == whole.shown == [1, 2, 3, 4]
    assert (broken.rewritten, whole.rewritten) == (2, 1)


def test_a_tracker_that_fails_for_ever_is_told_once() -> None:
    broken, whole = ListTracker(raise_at(*[1] * 9)), ListTracker()

    reporter, inner = start(broken, whole)
    train(reporter, 1, 2, 3)
    reporter.close()

    assert len(events(inner)) == 1
    assert whole.shown == [1, 2, 3]
    assert inner.closed


def test_a_tracker_that_hangs_delays_neither_training_nor_the_others() -> None:
    released = threading.Event()
    stuck, whole = ListTracker(lambda _epoch: require(released.wait(60))), ListTracker()
    try:
        reporter, inner = start(stuck, whole, flush_seconds=0.2)
        began = time.monotonic()
        train(reporter, *range(1, 101))
        sent = time.monotonic() - began
        reporter.close()

        assert sent < 5
        assert time.monotonic() - began < 30
        assert whole.shown == list(range(1, 101))
        assert inner.closed
        assert events(inner) == [
            "tracker list0 had not taken everything 0.2 s after the last epoch; the run goes on without it"
        ]
    finally:
        released.set()


def require(condition: bool) -> None:
    assert condition


def test_a_worker_that_was_taken_for_dead_does_not_write_over_its_successor(
    tmp_path: Path,
) -> None:
    job, environment = make_job(tmp_path, "csv"), plain_environment(tmp_path)
    attempts = RunLayout(job.storage_path, job.run_id).attempts
    attempts.mkdir(parents=True)
    first = tracked(job, 1, RecordingReporter(), environment)
    first.send(AttemptStarted(attempt=1, world_size=1, time=START))
    first.send(EpochFinished(record=make_record(epoch=1)))
    (attempts / "000002").touch()
    run_attempt(job, 2, environment, trained=[make_record(epoch=1, attempt=2)])

    first.send(EpochFinished(record=make_record(epoch=2)))
    first.close()

    assert [(epoch, values["attempt"]) for epoch, values in read_curve("csv", job)] == [(1, 2)]


@pytest.mark.parametrize("tracker", TRACKERS)
def test_a_place_that_cannot_be_written_costs_one_event(tracker: str, tmp_path: Path) -> None:
    job = make_job(tmp_path, tracker, "jsonl" if tracker == "csv" else "csv")
    folder = RunLayout(job.storage_path, job.run_id).tracking
    folder.mkdir(parents=True)
    if tracker in ("csv", "jsonl"):
        (folder / f"epochs.{tracker}").mkdir()
    else:
        (folder / tracker).write_text("a file where the tracker wants its folder")

    reporter = run_attempt(
        job, 1, plain_environment(tmp_path), trained=[make_record(epoch=epoch) for epoch in (1, 2, 3)]
    )

    (event,) = events(reporter)
    assert event.startswith(f"tracker {tracker} failed with ")
    assert [epoch for epoch, _ in read_curve(job.spec.track[1], job)] == [1, 2, 3]


def test_a_server_that_is_away_costs_one_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    job = make_job(tmp_path, "mlflow", "csv")
    environment = {**plain_environment(tmp_path), "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}

    reporter = run_attempt(job, 1, environment, trained=[make_record()])

    (event,) = events(reporter)
    assert "tracker mlflow failed with MlflowException" in event
    assert "127.0.0.1" in event
    assert len(read_curve("csv", job)) == 1


@pytest.mark.parametrize(
    ("tracker", "library"),
    [("wandb", "wandb"), ("mlflow", "mlflow.entities"), ("tensorboard", "tensorboard")],
)
def test_a_library_that_is_not_there_is_named_with_its_extra(
    tracker: str, library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(sys.modules):
        if name.startswith(("torch.utils.tensorboard", f"curvewatch_workers.trackers.{tracker}_tracker")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    job = make_job(tmp_path, tracker, "csv")

    reporter = run_attempt(job, 1, plain_environment(tmp_path), trained=[make_record()])

    assert events(reporter) == [
        f"tracker {tracker} cannot be used: it needs the Python package '{library}', which the workers do not have; "
        f"install curvewatch[{tracker}] where they run; the run goes on without it"
    ]
    assert len(read_curve("csv", job)) == 1


def test_a_job_without_trackers_has_no_thread_and_no_folder(tmp_path: Path) -> None:
    job, inner = make_job(tmp_path), RecordingReporter()

    assert tracked(job, 1, inner, plain_environment(tmp_path)) is inner
    assert list(tmp_path.iterdir()) == []


def test_libraries_are_imported_only_when_they_are_chosen() -> None:
    program = (
        "import sys, curvewatch_workers.torchrun; "
        "print(sorted({'wandb', 'mlflow', 'tensorboard'} & set(sys.modules)))"
    )

    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout

    assert loaded.strip() == "[]"
