"""The job's driver dies without a word: the run goes on, within bounds, unless somebody wanted its end."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from curvewatch_service.cluster import JobState, JobStatus
from curvewatch_service.decisions import LONGEST_PAUSE_SECONDS, Move, decide, pause_after
from curvewatch_service.reconcile import LAST_WORDS_SECONDS
from curvewatch_service.runs import RunState
from curvewatch_service.store import DRIVER_DIED
from curvewatch_workers.contract import (
    Control,
    EpochFinished,
    KeptFailure,
    Outcome,
    RunLayout,
    ScalingSpec,
)
from reconcile_support import World, finished
from store_support import START, attempt_message, epoch_message, new_run

KILLED = "Job entrypoint command failed with exit code -9"
FAILURE = KeptFailure(
    submission=1,
    time=START,
    error="OSError: sample 7 cannot be read",
    position=(3, "train", 4),
    traceback="Traceback (most recent call last): ...",
)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    built = World.build(tmp_path)
    yield built
    built.store.close()


def _die(world: World, *, exit_code: int | None = -9) -> None:
    """Let the driver of the run's latest job die, and wait until nobody expects a word of it any more."""
    world.cluster.finish(
        world.run().submission_id or "", JobStatus.FAILED, f"{KILLED}\nlast lines", exit_code=exit_code
    )
    world.reconciler.step()
    assert world.run().state is not RunState.QUEUED, "its last words may be on their way"
    world.clock.now += LAST_WORDS_SECONDS
    world.reconciler.step()


def _come_back(world: World, attempt: int, *, epoch: int | None = None) -> None:
    """Let the pause pass, and the run's next submission train."""
    world.clock.now += pause_after(world.store.setbacks("digits-1", DRIVER_DIED).count)
    world.reconciler.step()
    run = world.run()
    assert run.state is RunState.RESTARTING
    world.cluster.start(run.submission_id or "")
    world.store.ingest("digits-1", [attempt_message(attempt, submission=run.submission)])
    if epoch is not None:
        now = world.clock.time_of_day()
        record = epoch_message(epoch, attempt=attempt).record
        record = record.model_copy(update={"started_at": now, "finished_at": now})
        world.store.ingest("digits-1", [EpochFinished(record=record)])
    assert world.run().state is RunState.RUNNING


def test_the_run_is_given_to_the_cluster_again_after_a_pause(world: World) -> None:
    world.running()
    _die(world)
    run = world.run()
    assert (run.state, run.submission) == (RunState.QUEUED, 1)
    assert "its driver died without a word" in run.reason
    assert KILLED in run.reason
    assert "last lines" not in run.reason
    assert world.reasons().count(DRIVER_DIED) == 1

    world.clock.now += pause_after(1) - 1
    world.reconciler.step()
    assert world.run().state is RunState.QUEUED, "the pause is not over"
    world.clock.now += 1
    world.reconciler.step()
    assert world.run().state is RunState.RESTARTING
    assert [request.submission_id for request in world.cluster.requests] == ["digits-1-1", "digits-1-2"]


def test_the_pause_outlives_the_service(world: World) -> None:
    world.running()
    _die(world)
    again = world.restarted()
    again.reconciler.step()
    assert world.run().state is RunState.QUEUED
    world.clock.now += pause_after(1)
    again.reconciler.step()
    assert world.run().state is RunState.RESTARTING


def test_the_place_of_a_run_that_pauses_is_kept(world: World) -> None:
    world.running()
    _die(world)
    new_run(world.store, "younger", scaling=ScalingSpec(workers=3))
    new_run(world.store, "small", scaling=ScalingSpec(workers=2))
    world.reconciler.step()
    assert [world.run(run_id).state for run_id in ("digits-1", "younger", "small")] == [RunState.QUEUED] * 3
    world.clock.now += pause_after(1)
    world.reconciler.step()
    assert world.run().state is RunState.RESTARTING


def test_a_driver_that_dies_again_and_again_without_a_new_epoch_ends_the_run(world: World) -> None:
    world.running()
    for attempt in (2, 3, 4):
        _die(world)
        _come_back(world, attempt)
    _die(world)
    run = world.run()
    assert run.state is RunState.FAILED
    assert "died 4 times without a new epoch, and max_restarts is 3" in run.reason
    assert run.traceback == f"{KILLED}\nlast lines"
    assert world.reasons().count(DRIVER_DIED) == 4
    assert run.submission == 4


def test_a_new_epoch_forgives_deaths_and_a_replayed_one_does_not(world: World) -> None:
    world.running()
    for attempt, epoch, counted in ((2, 2, 1), (3, 3, 0), (4, 3, 1), (5, 3, 2), (6, 3, 3)):
        _die(world)
        world.clock.now += 1
        _come_back(world, attempt, epoch=epoch)
        assert world.store.setbacks("digits-1", DRIVER_DIED).count == counted
    _die(world)
    assert world.run().state is RunState.FAILED


def test_deaths_of_the_driver_and_losses_of_the_cluster_are_counted_apart(world: World) -> None:
    world.running()
    for attempt in (2, 3, 4):
        _die(world)
        _come_back(world, attempt)
    world.cluster.forget("digits-1-4")
    world.reconciler.step()
    assert (world.run().state, world.run().submission) == (RunState.RESTARTING, 5)


def test_a_word_that_comes_late_decides(world: World) -> None:
    submission = world.running()
    world.cluster.finish(submission, JobStatus.FAILED, KILLED, exit_code=-9)
    world.reconciler.step()
    world.spool(finished(Outcome.SUCCEEDED), source="driver-1")
    world.clock.now += LAST_WORDS_SECONDS
    world.reconciler.step()
    assert world.run().state is RunState.SUCCEEDED
    assert DRIVER_DIED not in world.reasons()


def test_what_the_users_code_failed_with_twice_ends_the_run_though_its_driver_died(world: World) -> None:
    world.running()
    attempts = RunLayout(world.settings.storage_path, "digits-1").attempts
    attempts.mkdir(parents=True)
    for attempt in (1, 2):
        (attempts / f"{attempt:06d}-failure-0000.json").write_text(FAILURE.model_dump_json())
    _die(world)
    run = world.run()
    assert run.state is RunState.FAILED
    assert run.reason == "failed twice at epoch 3, train step 5: OSError: sample 7 cannot be read"
    assert run.traceback == FAILURE.traceback
    assert len(world.cluster.requests) == 1


def test_one_failure_of_the_users_code_is_no_reason_to_end(world: World) -> None:
    """A rank whose peer was killed fails too, and so may one whose controller went away."""
    world.running()
    attempts = RunLayout(world.settings.storage_path, "digits-1").attempts
    attempts.mkdir(parents=True)
    (attempts / "000001-failure-0000.json").write_text(FAILURE.model_dump_json())
    _die(world)
    assert world.run().state is RunState.QUEUED


def test_a_run_that_is_stopping_is_not_started_again(world: World) -> None:
    world.running()
    world.store.stop("digits-1", actor="ada")
    _die(world)
    assert (world.run().state, world.run().reason) == (
        RunState.STOPPED,
        "stopped before the end of its epoch",
    )


def test_a_run_that_pauses_waits_for_the_next_start_of_the_service(world: World) -> None:
    world.running()
    world.reconciler.admitting = False
    world.reconciler.pause_all()
    _die(world)
    assert world.run().state is RunState.QUEUED
    assert "run_paused" in world.reasons()
    assert DRIVER_DIED not in world.reasons()


def test_a_run_that_is_stopped_while_it_pauses_after_a_death_ends(world: World) -> None:
    world.running()
    _die(world)
    world.store.stop("digits-1", actor="ada")
    world.clock.now += pause_after(1)
    world.reconciler.step()
    assert world.run().state is RunState.STOPPED
    assert len(world.cluster.requests) == 1


@pytest.mark.parametrize(
    ("attempt", "exit_code", "target"),
    [
        (0, 1, RunState.FAILED),  # it never worked: an import that fails, a disk that cannot be written
        (0, 128, RunState.FAILED),
        (0, -9, RunState.QUEUED),  # killed
        (0, 137, RunState.QUEUED),  # killed, as a shell tells it
        (0, None, RunState.QUEUED),  # Ray does not know: its supervisor or its node died
        (1, 1, RunState.QUEUED),  # it has worked
    ],
)
def test_only_a_program_that_has_never_worked_and_ended_itself_is_given_up_at_once(
    world: World, attempt: int, exit_code: int | None, target: RunState
) -> None:
    new_run(world.store)
    world.reconciler.step()
    if attempt:
        world.store.ingest("digits-1", [attempt_message(attempt)])
    job = JobState(state=JobStatus.FAILED, message=KILLED, exit_code=exit_code)

    action = decide(world.run(), job, embedded=True)

    assert isinstance(action, Move)
    assert action.target is target
    assert (action.event == DRIVER_DIED) is (target is RunState.QUEUED)


@pytest.mark.parametrize("max_restarts", [0, 1, 3])
def test_max_restarts_bounds_the_deaths(world: World, max_restarts: int) -> None:
    new_run(world.store, fault_tolerance={"max_restarts": max_restarts})
    world.reconciler.step()
    job = JobState(state=JobStatus.FAILED, message=KILLED, exit_code=-9)

    targets = [decide(world.run(), job, embedded=False, deaths=deaths) for deaths in range(max_restarts + 1)]

    assert [move.target for move in targets if isinstance(move, Move)] == [
        *[RunState.QUEUED] * max_restarts,
        RunState.FAILED,
    ]


@pytest.mark.parametrize("control", [Control.CONTINUE, Control.PAUSE])
def test_a_failure_that_repeats_ends_a_run_that_pauses_too(world: World, control: Control) -> None:
    world.running()
    world.store.request_control("digits-1", control, actor="service")
    job = JobState(state=JobStatus.FAILED, message=KILLED, exit_code=-9)

    action = decide(world.run(), job, embedded=True, failure=FAILURE)

    assert isinstance(action, Move)
    assert action.target is RunState.FAILED


def test_pauses_double_up_to_a_limit() -> None:
    assert [pause_after(deaths) for deaths in range(5)] == [0.0, 2.0, 4.0, 8.0, 16.0]
    assert pause_after(1000) == LONGEST_PAUSE_SECONDS
    assert timedelta(seconds=pause_after(10**6)) == timedelta(minutes=5)
