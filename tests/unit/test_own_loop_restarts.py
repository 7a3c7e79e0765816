"""A loop of one's own that starts again: service and trackers have the one curve, each epoch once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from curvewatch_service.runs import RunState
from curvewatch_service.spool import SpoolReader
from curvewatch_service.store import Store
from curvewatch_workers.checkpoint import NoCheckpoints
from curvewatch_workers.contract import (
    AttemptStarted,
    Outcome,
    RunFinished,
    RunLayout,
    WorkerEvent,
    WorkerJob,
    last_failure,
)
from curvewatch_workers.errors import SupersededError
from curvewatch_workers.group import SoloGroup
from curvewatch_workers.loop import utc_now
from curvewatch_workers.reporter import Reporter, reporter_for
from curvewatch_workers.testing import RecordingReporter
from curvewatch_workers.trackers import tracked
from curvewatch_workers.worker import WorkerEnding, run_worker
from engine_support import make_spec
from own_loop_support import store_of_run, write_loop
from tracker_support import plain_environment, read_curve

RUN = "digits-1"
USERS_FILE = """
import torch
from curvewatch_workers.meter import EpochMeter

def main(after=0, last=5, dies_in=0, needs_meter=True):
    if not needs_meter:
        return  # its checkpoint says that all is done
    meter = EpochMeter(train_samples=2, validation_samples=2, first_epoch=after + 1)
    for epoch in meter.epochs(last):
        if epoch == dies_in:
            raise OSError("the power is gone")
        for split in ("train", "validation"):
            meter.update(split, torch.tensor(1.0 / epoch), torch.zeros(2, 1), torch.zeros(2))
        meter.end_epoch(learning_rate=0.1)
"""


@pytest.fixture(autouse=True)
def users_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_loop(USERS_FILE, tmp_path, monkeypatch)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with store_of_run(tmp_path, RUN) as opened:
        yield opened


def job_of(folder: Path, **params: object) -> WorkerJob:
    spec = make_spec(code={"loop": "my_loop:main"}, params=params, epochs=5, track=["csv"])
    return WorkerJob(run_id=RUN, submission=1, spec=spec, storage_path=str(folder / "runs"), service_url=None)


def start(folder: Path, reporter: Reporter | None = None, **params: object) -> WorkerEnding:
    """Run one attempt."""
    job = job_of(folder, **params)

    def make_reporter(attempt: int) -> Reporter:
        told = reporter or reporter_for(job, f"attempt-{attempt:06d}")
        return tracked(job, attempt, told, plain_environment(folder))

    return run_worker(job, SoloGroup(), NoCheckpoints(), make_reporter)


def tracked_epochs(folder: Path) -> list[tuple[int, float]]:
    """Return each epoch that the tracker shows, with the attempt that trained it."""
    return [(epoch, values["attempt"]) for epoch, values in read_curve("csv", job_of(folder))]


def told_to(store: Store, folder: Path) -> list[tuple[int, int]]:
    """Let the service read what was spooled, and end the run; return each epoch of its curve, with its attempt."""
    SpoolReader(store, folder / "runs").ingest(RUN)
    store.ingest(RUN, [RunFinished(submission=1, time=utc_now(), outcome=Outcome.SUCCEEDED)])
    assert store.transition(
        RUN, RunState.SUCCEEDED, expected={RunState.RUNNING}, reason="over", message="over"
    )
    return [(epoch.epoch, epoch.attempt) for epoch in store.epochs(RUN)]


def test_a_loop_that_goes_on_from_its_own_checkpoint_says_from_where(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="power"):
        start(tmp_path, dies_in=5)
    reporter = RecordingReporter()

    start(tmp_path, reporter, after=3)

    (started,) = (message for message in reporter.messages if isinstance(message, AttemptStarted))
    assert (started.attempt, started.resumed_after_epoch) == (2, 3)
    assert tracked_epochs(tmp_path) == [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2)]


def test_a_restart_that_finds_everything_done_keeps_the_curve(tmp_path: Path, store: Store) -> None:
    start(tmp_path)

    start(tmp_path, after=5)

    curve = [(epoch, 1) for epoch in range(1, 6)]
    assert tracked_epochs(tmp_path) == curve
    assert told_to(store, tmp_path) == curve


def test_a_restart_that_needs_no_meter_keeps_the_curve(tmp_path: Path, store: Store) -> None:
    start(tmp_path)

    ending = start(tmp_path, needs_meter=False)

    curve = [(epoch, 1) for epoch in range(1, 6)]
    assert ending.outcome is Outcome.SUCCEEDED
    assert tracked_epochs(tmp_path) == curve
    assert told_to(store, tmp_path) == curve


def test_what_an_earlier_attempt_trained_beyond_the_end_is_no_part_of_the_curve(
    tmp_path: Path, store: Store
) -> None:
    with pytest.raises(OSError, match="power"):
        start(tmp_path, dies_in=5)

    start(tmp_path, after=2, last=2)

    assert tracked_epochs(tmp_path) == [(1, 1), (2, 1)]
    assert told_to(store, tmp_path) == [(1, 1), (2, 1)]


def test_a_torn_line_of_an_earlier_attempt_costs_that_epoch_only(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="power"):
        start(tmp_path, dies_in=4)
    spool = RunLayout(tmp_path / "runs", RUN).spool / "attempt-000001.jsonl"
    lines = spool.read_bytes().splitlines(keepends=True)
    spool.write_bytes(b"".join([*lines[:-1], lines[-1][:40]]))

    start(tmp_path, after=3)

    assert tracked_epochs(tmp_path) == [(1, 1), (2, 1), (4, 2), (5, 2)]


def test_a_loop_that_was_overtaken_has_not_failed(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path / "runs", RUN)

    class Overtaken(RecordingReporter):
        """Another group claims the next attempt while the first epoch is told."""

        def send(self, message: object) -> None:
            super().send(message)  # type: ignore[arg-type]
            (layout.attempts / "000002").touch()

    with pytest.raises(SupersededError):
        start(tmp_path, Overtaken())

    assert last_failure(layout, 1) is None


def test_what_a_loop_of_ones_own_does_not_use_is_told(tmp_path: Path) -> None:
    spec = make_spec(
        code={"loop": "my_loop:main"},
        epochs=1,
        seed=3,
        precision="bf16",
        policy={"max_seconds": 60, "on_alert": {"CurvewatchOverfitting": "stop"}},
        checkpoints={"keep": 5, "path": str(tmp_path / "kept"), "every_epochs": 2},
        fault_tolerance={"max_restarts": 1},
    )
    job = WorkerJob(
        run_id=RUN, submission=1, spec=spec, storage_path=str(tmp_path / "runs"), service_url=None
    )
    reporter = RecordingReporter()

    run_worker(job, SoloGroup(), NoCheckpoints(), lambda _attempt: reporter)

    (event,) = (message for message in reporter.messages if isinstance(message, WorkerEvent))
    assert event.reason == "settings_not_used"
    assert "checkpoints.every_epochs, policy.max_seconds, training.precision, which" in event.message


def test_a_loop_whose_job_sets_nothing_more_is_told_nothing(tmp_path: Path) -> None:
    reporter = RecordingReporter()

    start(tmp_path, reporter)

    assert not [message for message in reporter.messages if isinstance(message, WorkerEvent)]
