"""The reconciler against a real store and a cluster that does what the test says."""

from __future__ import annotations

import stat
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from curvewatch_service.cluster import JobState, JobStatus
from curvewatch_service.planning import Resources
from curvewatch_service.reconcile import (
    LAST_WORDS_SECONDS,
    LATE_SPOOL_SECONDS,
    OUTAGE_SECONDS,
    ReconcilerLoop,
)
from curvewatch_service.runs import RunState
from curvewatch_service.store import CLUSTER_LOST_JOB
from curvewatch_workers.contract import (
    Control,
    EpochFinished,
    IngestMessage,
    Outcome,
    RunLayout,
    ScalingSpec,
    WorkerJob,
)
from curvewatch_workers.series import RECONCILE_ERRORS
from reconcile_support import World, finished
from store_support import attempt_message, between, epoch_message, new_run


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    built = World.build(tmp_path)
    yield built
    built.store.close()


def test_a_queued_run_is_submitted_once_and_follows_its_job_to_the_end(world: World) -> None:
    new_run(world.store)
    assert world.reconciler.step()
    assert world.run().state is RunState.STARTING
    assert [request.submission_id for request in world.cluster.requests] == ["digits-1-1"]

    world.cluster.start("digits-1-1")
    world.store.ingest("digits-1", [attempt_message(1), epoch_message(1)])
    world.reconciler.step()
    assert world.run().state is RunState.RUNNING

    world.store.ingest("digits-1", [finished(Outcome.SUCCEEDED, reason="all epochs are trained")])
    world.reconciler.step()
    assert world.run().state is RunState.RUNNING, "its job still runs: it may yet write"

    world.cluster.finish("digits-1-1")
    world.reconciler.step()
    run = world.run()
    assert (run.state, run.reason) == (RunState.SUCCEEDED, "all epochs are trained")
    assert len(world.cluster.requests) == 1


@pytest.mark.parametrize(
    ("outcome", "job", "state"),
    [
        (Outcome.SUCCEEDED, JobStatus.SUCCEEDED, RunState.SUCCEEDED),
        # The training was done; what broke as the driver ended does not take it away.
        (Outcome.SUCCEEDED, JobStatus.FAILED, RunState.SUCCEEDED),
        (Outcome.STOPPED, JobStatus.SUCCEEDED, RunState.STOPPED),
        (Outcome.FAILED, JobStatus.FAILED, RunState.FAILED),
        (Outcome.PAUSED, JobStatus.SUCCEEDED, RunState.QUEUED),
        (None, JobStatus.SUCCEEDED, RunState.FAILED),
        # Nothing says that it would die again.
        (None, JobStatus.FAILED, RunState.QUEUED),
        (None, JobStatus.STOPPED, RunState.STOPPED),
    ],
)
def test_what_the_program_told_decides_and_without_it_what_ray_says(
    world: World, outcome: Outcome | None, job: JobStatus, state: RunState
) -> None:
    submission = world.running()
    if outcome is not None:
        world.store.ingest("digits-1", [finished(outcome)])
    world.cluster.finish(submission, job)
    world.reconciler.admitting = False
    world.reconciler.step()
    if outcome is None:
        assert world.run().state is RunState.RUNNING, "its last words may be on their way"
        world.clock.now += LAST_WORDS_SECONDS
        world.reconciler.step()
    assert world.run().state is state


def test_a_job_that_fails_before_any_worker_starts_carries_what_ray_says(world: World) -> None:
    new_run(world.store)
    world.reconciler.step()
    message = "exit code 1, last logs:\nImportError: no torch"
    world.cluster.finish("digits-1-1", JobStatus.FAILED, message, exit_code=1)
    world.reconciler.step()
    world.clock.now += LAST_WORDS_SECONDS
    world.reconciler.step()
    run = world.run()
    assert run.state is RunState.FAILED
    assert "exit code 1, last logs:" in run.reason
    assert "ImportError" not in run.reason
    assert run.traceback == "exit code 1, last logs:\nImportError: no torch"


def test_the_spool_is_taken_before_a_run_ends(world: World) -> None:
    """The service was away from the first epoch to the last: the job is over, and only the spool knows."""
    new_run(world.store)
    world.reconciler.step()
    epochs = [epoch_message(epoch) for epoch in range(1, 11)]
    world.spool(attempt_message(1), *epochs)
    world.spool(finished(Outcome.SUCCEEDED), source="driver-1")
    world.cluster.finish("digits-1-1")
    world.restarted().reconciler.step()
    assert world.run().state is RunState.SUCCEEDED
    assert [record.epoch for record in world.store.epochs("digits-1")] == list(range(1, 11))


def test_what_is_spooled_while_the_job_ends_is_not_missed(world: World) -> None:
    """Between the first look at the spool and the end of the job, the driver writes its last lines."""
    submission = world.running()

    class EndsNow:
        def status(self, submission_id: str) -> JobState | None:
            world.spool(epoch_message(3), finished(Outcome.SUCCEEDED))
            world.cluster.finish(submission_id)
            return world.cluster.states[submission_id]

    world.cluster.status = EndsNow().status  # type: ignore[method-assign]
    world.reconciler.step()
    assert world.run().state is RunState.SUCCEEDED
    assert world.run().epoch == 3
    assert submission == "digits-1-1"


def test_last_words_that_arrive_after_the_job_has_ended_decide(world: World) -> None:
    submission = world.running()
    world.cluster.finish(submission, JobStatus.FAILED)
    world.reconciler.step()
    world.clock.now += LAST_WORDS_SECONDS / 2
    world.spool(epoch_message(3), finished(Outcome.SUCCEEDED))
    world.reconciler.step()
    assert (world.run().state, world.run().epoch) == (RunState.SUCCEEDED, 3)


def test_what_is_spooled_after_the_end_is_kept_and_changes_no_state(world: World) -> None:
    submission = world.running()
    world.store.ingest("digits-1", [finished(Outcome.SUCCEEDED)])
    world.cluster.finish(submission)
    world.reconciler.step()
    world.spool(epoch_message(3))
    world.clock.now += LATE_SPOOL_SECONDS
    world.reconciler.step()
    assert (world.run().state, world.run().epoch) == (RunState.SUCCEEDED, 3)

    world.spool(epoch_message(4))
    world.restarted().reconciler.step()
    assert (world.run().state, world.run().epoch) == (RunState.SUCCEEDED, 4)


def test_a_run_whose_submission_was_cut_off_is_submitted_under_the_same_name(world: World) -> None:
    new_run(world.store)
    assert world.store.begin_submission("digits-1") is not None  # and here the service was killed
    world.restarted().reconciler.step()
    assert [request.submission_id for request in world.cluster.requests] == ["digits-1-1"]
    assert world.run().submission == 1


def test_a_job_that_our_own_ray_forgot_goes_on_from_its_checkpoint(world: World) -> None:
    submission = world.running()
    world.cluster.forget(submission)
    world.reconciler.step()
    # The same step has admitted it again, as its second submission.
    assert world.run().state is RunState.RESTARTING
    assert [request.submission_id for request in world.cluster.requests] == ["digits-1-1", "digits-1-2"]
    assert "cluster_lost_job" in world.reasons()


def _lose(world: World) -> None:
    """Let our own Ray die under the run's latest job."""
    world.cluster.forget(world.run().submission_id or "")
    world.reconciler.step()


def test_a_run_under_which_our_own_ray_ends_again_and_again_fails(world: World) -> None:
    world.running()
    for submission in range(2, 5):
        _lose(world)
        assert world.run().submission == submission
        world.store.ingest("digits-1", [attempt_message(submission)])
    _lose(world)
    assert world.run().state is RunState.FAILED
    assert "ended under it 4 times without a new epoch" in world.run().reason
    assert "max_restarts" in world.run().reason
    assert len(world.cluster.requests) == 4


def test_a_run_that_ends_our_own_ray_before_its_first_attempt_fails_too(world: World) -> None:
    new_run(world.store, fault_tolerance={"max_restarts": 1})
    world.reconciler.step()
    _lose(world)
    assert (world.run().state, world.run().submission) == (RunState.RESTARTING, 2)
    _lose(world)
    assert world.run().state is RunState.FAILED


def test_a_new_epoch_forgives_losses_and_a_replayed_one_does_not(world: World) -> None:
    world.running()
    for attempt, epoch in ((2, 2), (3, 3), (4, 3), (5, 3)):
        _lose(world)
        replayed = epoch_message(epoch, attempt=attempt).record
        now = datetime.now(UTC)
        record = replayed.model_copy(update={"started_at": now, "finished_at": now})
        world.store.ingest("digits-1", [attempt_message(attempt), EpochFinished(record=record)])
    # Two of the four losses are older than the first record of epoch 3.
    assert world.store.setbacks("digits-1", CLUSTER_LOST_JOB).count == 2
    _lose(world)
    assert world.run().submission == 6
    _lose(world)
    assert world.run().state is RunState.FAILED


def test_a_job_that_a_foreign_cluster_forgot_is_lost(tmp_path: Path) -> None:
    world = World.build(tmp_path, ray_address="http://head:8265")
    submission = world.running()
    world.cluster.forget(submission)
    world.reconciler.step()
    assert world.run().state is RunState.LOST
    assert "digits-1-1" in world.run().reason
    world.store.close()


def test_a_forgotten_job_whose_end_is_told_is_not_lost(tmp_path: Path) -> None:
    world = World.build(tmp_path, ray_address="http://head:8265")
    submission = world.running()
    world.spool(finished(Outcome.SUCCEEDED))
    world.cluster.forget(submission)
    world.reconciler.step()
    assert world.run().state is RunState.SUCCEEDED
    world.store.close()


def test_a_refused_job_fails_with_the_reason(world: World) -> None:
    world.cluster.refuse = "the code bundle is too large for Ray"
    new_run(world.store)
    world.reconciler.step()
    assert (world.run().state, world.run().reason) == (
        RunState.FAILED,
        "the code bundle is too large for Ray",
    )


def test_the_queue_is_served_by_age_and_no_smaller_run_overtakes(world: World) -> None:
    new_run(world.store, "a", scaling=ScalingSpec(workers=3))
    new_run(world.store, "b", scaling=ScalingSpec(workers=2))
    new_run(world.store, "c", scaling=ScalingSpec(workers=1))
    world.reconciler.step()
    states = [world.run(run_id).state for run_id in "abc"]
    assert states == [RunState.STARTING, RunState.QUEUED, RunState.QUEUED]

    world.store.ingest("a", [finished(Outcome.SUCCEEDED)])
    world.cluster.finish("a-1")
    world.reconciler.step()
    states = [world.run(run_id).state for run_id in "abc"]
    assert states == [RunState.SUCCEEDED, RunState.STARTING, RunState.STARTING]


def test_a_range_of_workers_starts_with_the_fewest_and_holds_what_it_has(world: World) -> None:
    """Of 4 CPUs."""
    new_run(world.store, "a", scaling=between(1, 8))
    new_run(world.store, "b", scaling=ScalingSpec(workers=2))
    world.reconciler.step()
    states = [world.run(run_id).state for run_id in "ab"]
    assert states == [RunState.STARTING, RunState.STARTING]

    # Ray gave it one more than the fewest before `c` was there.
    world.cluster.start("a-1")
    world.store.ingest("a", [attempt_message(1, world_size=2)])
    new_run(world.store, "c", scaling=ScalingSpec(workers=1))
    world.reconciler.step()
    assert world.run("c").state is RunState.QUEUED

    world.store.ingest("a", [attempt_message(2, world_size=1)])
    world.reconciler.step()
    assert world.run("c").state is RunState.STARTING


def test_a_range_whose_fewest_do_not_fit_waits_for_the_others_to_end(world: World) -> None:
    new_run(world.store, "a", scaling=ScalingSpec(workers=2))
    new_run(world.store, "b", scaling=between(3, 4))
    world.reconciler.step()
    assert [world.run(run_id).state for run_id in "ab"] == [RunState.STARTING, RunState.QUEUED]

    world.store.ingest("a", [finished(Outcome.SUCCEEDED)])
    world.cluster.finish("a-1")
    world.reconciler.step()
    assert world.run("b").state is RunState.STARTING


def test_a_range_whose_fewest_never_fit_our_own_ray_fails(world: World) -> None:
    new_run(world.store, "a", scaling=between(5, 8))
    world.reconciler.step()
    assert world.run("a").state is RunState.FAILED
    assert "lower scaling.workers.min" in world.run("a").reason


def test_a_run_larger_than_our_own_ray_fails_without_holding_up_others(world: World) -> None:
    """It was taken before Ray had started, when nobody could tell."""
    new_run(world.store, "large", scaling=ScalingSpec(workers=5))
    new_run(world.store, "small", scaling=ScalingSpec(workers=1))
    world.reconciler.step()
    assert world.run("large").state is RunState.FAILED
    assert "the cluster has 4" in world.run("large").reason
    assert world.run("small").state is RunState.STARTING


def test_a_run_larger_than_a_foreign_cluster_waits_until_it_has_grown(tmp_path: Path) -> None:
    world = World.build(tmp_path, ray_address="http://head:8265")
    new_run(world.store, "large", scaling=ScalingSpec(workers=5))
    new_run(world.store, "small", scaling=ScalingSpec(workers=1))
    for _ in range(3):
        world.reconciler.step()
    assert world.run("large").state is RunState.QUEUED
    assert world.reasons("large").count("does_not_fit") == 1
    assert world.run("small").state is RunState.STARTING
    world.cluster.total = Resources(cpus=8)
    world.reconciler.step()
    assert world.run("large").state is RunState.STARTING
    world.store.close()


def test_the_log_of_a_job_is_kept_when_it_has_ended(world: World) -> None:
    submission = world.running()
    world.reconciler.step()
    assert world.cluster.kept == []
    world.cluster.finish(submission, JobStatus.FAILED)
    world.reconciler.step()
    world.clock.now += LAST_WORDS_SECONDS
    world.reconciler.step()
    assert world.cluster.kept == [submission]


def test_gpus_are_counted_too(world: World) -> None:
    world.cluster.total = Resources(cpus=64, gpus=1)
    for run_id in ("a", "b"):
        new_run(world.store, run_id, scaling=ScalingSpec(workers=1, gpus_per_worker=1))
    world.reconciler.step()
    assert [world.run(run_id).state for run_id in "ab"] == [RunState.STARTING, RunState.QUEUED]


def test_a_stop_is_left_to_the_workers_then_asked_of_ray(world: World) -> None:
    submission = world.running()
    world.store.stop("digits-1", actor="ada")
    world.reconciler.step()
    world.clock.now += 19
    world.reconciler.step()
    assert world.cluster.stopped == []
    world.clock.now += 2
    world.reconciler.step()
    world.reconciler.step()
    assert world.cluster.stopped == [submission]
    assert world.run().state is RunState.STOPPED


def test_the_grace_of_a_stop_grows_with_the_epochs(world: World) -> None:
    world.running(epochs=0)
    slow = epoch_message(1).record
    slow = slow.model_copy(update={"finished_at": slow.started_at.replace(hour=1)})
    world.store.ingest("digits-1", [epoch_message(1).model_copy(update={"record": slow})])
    world.store.stop("digits-1", actor="ada")
    world.reconciler.step()
    world.clock.now += 3600
    world.reconciler.step()
    assert world.cluster.stopped == []


def test_a_stopped_run_whose_workers_never_started_is_stopped_even_if_ray_says_failed(world: World) -> None:
    new_run(world.store)
    world.reconciler.step()
    world.store.stop("digits-1", actor="ada")
    world.cluster.finish("digits-1-1", JobStatus.FAILED, "the supervisor could not be started")
    world.reconciler.step()
    world.clock.now += 60
    world.reconciler.step()
    run = world.run()
    assert run.state is RunState.STOPPED
    assert "the supervisor could not be started" in run.reason


def test_the_workers_find_their_job_in_the_storage_before_ray_is_asked(world: World) -> None:
    new_run(world.store, params={"words": ["x" * 100] * 3000})
    world.cluster.refuse = "not now"
    world.reconciler.step()
    path = RunLayout(world.settings.storage_path, "digits-1").job(1)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    job = WorkerJob.model_validate_json(path.read_bytes())
    assert (job.run_id, job.submission, job.spec) == ("digits-1", 1, world.run().spec)


def test_a_job_that_has_not_begun_is_stopped_at_once(world: World) -> None:
    new_run(world.store)
    world.reconciler.step()
    world.store.stop("digits-1", actor="ada")
    world.reconciler.step()
    world.reconciler.step()
    assert world.run().state is RunState.STOPPED


def test_runs_are_paused_and_go_on_when_they_are_admitted_again(world: World) -> None:
    submission = world.running()
    world.reconciler.admitting = False
    world.reconciler.pause_all()
    assert world.run().control is Control.PAUSE
    assert not world.reconciler.idle()
    world.store.ingest("digits-1", [finished(Outcome.PAUSED)])
    world.cluster.finish(submission)
    world.reconciler.step()
    assert world.reconciler.idle()
    assert world.run().state is RunState.QUEUED
    assert "run_paused" in world.reasons()

    again = world.restarted()
    again.reconciler.step()
    assert world.run().state is RunState.RESTARTING
    assert world.run().control is Control.CONTINUE
    assert world.cluster.requests[-1].submission_id == "digits-1-2"

    # A submission that was cut off is made up for, and the new attempt runs.
    world.cluster.forget("digits-1-2")
    world.restarted().reconciler.step()
    assert world.cluster.requests[-1].submission_id == "digits-1-2"
    world.store.ingest("digits-1", [attempt_message(2, resumed_after_epoch=2, submission=2)])
    assert world.run().state is RunState.RUNNING


def test_a_job_that_has_not_begun_again_is_stopped_at_once(world: World) -> None:
    world.running()
    _lose(world)
    assert world.run().state is RunState.RESTARTING
    world.store.stop("digits-1", actor="ada")
    world.reconciler.step()
    world.reconciler.step()
    assert world.run().state is RunState.STOPPED


def test_a_run_that_does_not_pause_in_time_is_ended_and_goes_on_later(world: World) -> None:
    world.running()
    world.reconciler.admitting = False
    world.reconciler.pause_all()
    world.reconciler.stop_jobs()
    world.reconciler.step()
    assert world.run().state is RunState.QUEUED
    assert "run_paused" in world.reasons()


def test_a_stop_that_is_under_way_is_not_turned_into_a_pause(world: World) -> None:
    world.running()
    world.store.stop("digits-1", actor="ada")
    world.reconciler.pause_all()
    assert world.run().control is Control.STOP


def test_a_silent_cluster_changes_nothing_and_is_told_of_once(world: World) -> None:
    world.running()
    world.cluster.available = False
    assert not world.reconciler.step()
    assert "cluster_unavailable" not in world.reasons()
    for _ in range(3):
        world.clock.now += OUTAGE_SECONDS
        assert not world.reconciler.step()
    assert world.reasons().count("cluster_unavailable") == 1
    assert world.run().state is RunState.RUNNING

    world.spool(epoch_message(3))
    world.reconciler.step()
    assert world.run().epoch == 3, "the spool does not wait for the cluster"

    world.cluster.available = True
    assert world.reconciler.step()
    world.cluster.available = False
    world.reconciler.step()
    world.clock.now += OUTAGE_SECONDS
    world.reconciler.step()
    assert world.reasons().count("cluster_unavailable") == 2


def test_what_goes_wrong_with_one_run_does_not_cost_the_others_their_turn(world: World) -> None:
    world.running("a")
    submission = world.running("b")
    ingest = world.store.ingest

    def fails_for_a(run_id: str, messages: Sequence[IngestMessage]) -> Control:
        if run_id == "a":
            raise OSError("disk on fire")
        return ingest(run_id, messages)

    world.store.ingest = fails_for_a  # type: ignore[method-assign]
    world.spool(epoch_message(3, run_id="a"), run_id="a")
    world.spool(finished(Outcome.SUCCEEDED), run_id="b")
    world.cluster.finish(submission)
    assert world.reconciler.step()
    assert world.run("b").state is RunState.SUCCEEDED
    assert world.store.counters.value(RECONCILE_ERRORS) == 1


def test_a_spool_that_cannot_be_taken_does_not_keep_an_ended_run(world: World) -> None:
    submission = world.running()
    world.store.ingest("digits-1", [finished(Outcome.SUCCEEDED)])
    world.spool(epoch_message(3))
    ingest = world.store.ingest

    def fails(*_: object) -> Control:
        raise OSError("disk on fire")

    world.store.ingest = fails  # type: ignore[method-assign, assignment]
    world.cluster.finish(submission)
    world.reconciler.step()
    world.store.ingest = ingest  # type: ignore[method-assign]
    assert world.run().state is RunState.SUCCEEDED


def test_a_time_outside_the_calendar_does_not_keep_a_run_from_its_end(world: World) -> None:
    submission = world.running()
    strange = datetime.fromisoformat("0001-01-01T00:00:00+14:00")
    world.spool(attempt_message(2).model_copy(update={"time": strange}), finished(Outcome.SUCCEEDED))
    world.cluster.finish(submission)
    world.reconciler.step()
    assert world.run().state is RunState.SUCCEEDED


def test_a_run_that_somebody_else_moved_meanwhile_stays_where_it_is(world: World) -> None:
    submission = world.running()
    world.cluster.finish(submission, JobStatus.FAILED)
    status = world.cluster.status

    def moved_meanwhile(submission_id: str) -> JobState | None:
        world.store.transition(
            "digits-1", RunState.LOST, expected={RunState.RUNNING}, reason="elsewhere", message="elsewhere"
        )
        return status(submission_id)

    world.cluster.status = moved_meanwhile  # type: ignore[method-assign]
    world.reconciler.step()
    assert (world.run().state, world.run().reason) == (RunState.LOST, "elsewhere")


def test_the_loop_steps_when_woken_and_ends_when_asked(world: World) -> None:
    new_run(world.store)
    loop = ReconcilerLoop(world.reconciler, interval_seconds=3600)
    loop.start()
    _until(lambda: world.run().state is RunState.STARTING)
    world.store.ingest("digits-1", [finished(Outcome.SUCCEEDED)])
    world.cluster.finish("digits-1-1")
    loop.wake()
    _until(lambda: world.run().state is RunState.SUCCEEDED)
    loop.stop(seconds=5)
    assert not loop.alive


def _until(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.01)
