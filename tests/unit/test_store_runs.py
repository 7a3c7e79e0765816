"""The life of a run in the store: guarded moves, each with its event."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest

from curvewatch_service.errors import IllegalTransitionError, NotFoundError, RunEndedError
from curvewatch_service.runs import RunState
from curvewatch_service.store import Run, Store
from curvewatch_service.tables import AttemptRow
from curvewatch_workers.contract import Control
from store_support import attempt_message, database_url, new_run


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(database_url(tmp_path))
    yield opened
    opened.close()


def _reasons(store: Store) -> list[str]:
    return [event.reason for event in store.events("digits-1")]


def _end(store: Store, target: RunState, *, expected: set[RunState]) -> bool:
    return store.transition("digits-1", target, expected=expected, reason="it ended", message="its job ended")


def test_a_new_run_is_queued_and_read_back_as_it_was_written(store: Store) -> None:
    created = new_run(store, labels={"team": "vision"}, params={"width": 8, "rate": 1e-3})
    assert created == store.run("digits-1")
    assert (created.state, created.attempt, created.submission) == (RunState.QUEUED, 0, 0)
    assert created.submission_id is None
    assert created.spec.params == {"width": 8, "rate": 1e-3}
    assert created.created_at.tzinfo is UTC
    assert [(event.reason, event.actor) for event in store.events("digits-1")] == [("state_queued", "ada")]


def test_a_move_is_made_once_and_writes_its_event_with_it(store: Store) -> None:
    new_run(store)
    store.begin_submission("digits-1")
    before = store.run("digits-1")
    assert _end(store, RunState.FAILED, expected={RunState.STARTING})
    assert not _end(store, RunState.FAILED, expected={RunState.STARTING})
    run = store.run("digits-1")
    assert (run.state, run.reason) == (RunState.FAILED, "it ended")
    assert run.version > before.version
    assert run.finished_at is not None
    assert run.finished_at <= datetime.now(UTC)
    assert _reasons(store) == ["state_queued", "state_starting", "state_failed"]
    assert store.events("digits-1")[-1].message == "its job ended"


def test_a_move_sets_the_fields_that_come_with_it(store: Store) -> None:
    new_run(store)
    assert store.transition(
        "digits-1",
        RunState.FAILED,
        expected={RunState.QUEUED},
        reason="r",
        message="m",
        actor="ada",
        traceback="Traceback ...",
    )
    assert store.run("digits-1").traceback == "Traceback ..."
    assert store.events("digits-1")[-1].actor == "ada"
    with pytest.raises(TypeError, match=r"cannot set \['state'\]"):
        store.transition("digits-1", RunState.LOST, expected=set(), reason="r", message="m", state="RUNNING")


def test_a_move_that_is_not_in_the_life_of_a_run_is_refused_and_changes_nothing(store: Store) -> None:
    new_run(store)
    before = store.run("digits-1")
    with pytest.raises(IllegalTransitionError, match="QUEUED cannot become SUCCEEDED"):
        _end(store, RunState.SUCCEEDED, expected={RunState.QUEUED})
    assert store.run("digits-1") == before
    assert _reasons(store) == ["state_queued"]


def test_each_submission_is_counted_and_forgets_the_last_one(store: Store) -> None:
    new_run(store)
    first = store.begin_submission("digits-1")
    assert first is not None
    assert (first.state, first.submission_id) == (RunState.STARTING, "digits-1-1")
    assert store.begin_submission("digits-1") is None
    store.request_control("digits-1", Control.PAUSE, actor="service")
    store.transition(
        "digits-1",
        RunState.QUEUED,
        expected={RunState.STARTING},
        reason="paused",
        message="paused",
        traceback="old",
        outcome_reason="old",
    )
    second = store.begin_submission("digits-1")
    assert second is not None
    assert (second.submission_id, second.control, second.traceback, second.outcome_reason) == (
        "digits-1-2",
        Control.CONTINUE,
        None,
        "",
    )


def test_only_one_of_many_takes_a_run_from_the_queue(store: Store) -> None:
    new_run(store)
    with ThreadPoolExecutor(8) as threads:
        won = [run for run in threads.map(store.begin_submission, ["digits-1"] * 16) if run is not None]
    assert [run.submission for run in won] == [1]
    assert _reasons(store).count("state_starting") == 1


def test_a_control_word_is_noted_once(store: Store) -> None:
    new_run(store)
    for _ in range(2):
        assert store.request_control("digits-1", Control.PAUSE, actor="service")
    assert _reasons(store) == ["state_queued", "control_pause"]


@pytest.mark.parametrize("state", [RunState.STARTING, RunState.RUNNING])
def test_stop_tells_the_workers_of_a_run_that_holds_resources(store: Store, state: RunState) -> None:
    new_run(store)
    store.begin_submission("digits-1")
    if state is RunState.RUNNING:
        store.ingest("digits-1", [attempt_message(1)])
    assert store.run("digits-1").state is state
    for _ in range(2):
        run = store.stop("digits-1", actor="ada")
        assert (run.state, run.control, run.reason) == (
            RunState.STOPPING,
            Control.STOP,
            "ada asked it to stop",
        )
    assert _reasons(store).count("state_stopping") == 1
    assert _end(store, RunState.STOPPED, expected={RunState.STOPPING})
    assert store.stop("digits-1", actor="ada").state is RunState.STOPPED


def test_stop_ends_a_queued_run_at_once(store: Store) -> None:
    new_run(store)
    stopped = store.stop("digits-1", actor="ada")
    assert stopped.state is RunState.STOPPED
    assert stopped.finished_at is not None


@pytest.mark.parametrize("end", [RunState.FAILED, RunState.LOST, RunState.SUCCEEDED])
def test_stop_refuses_a_run_that_has_ended_otherwise(store: Store, end: RunState) -> None:
    new_run(store)
    store.begin_submission("digits-1")
    _end(store, end, expected={RunState.STARTING})
    with pytest.raises(RunEndedError, match=f"digits-1 has ended already, {end.label}: .*nothing to stop"):
        store.stop("digits-1", actor="ada")


def test_a_late_attempt_does_not_move_a_run_that_is_stopping(store: Store) -> None:
    new_run(store)
    store.begin_submission("digits-1")
    store.stop("digits-1", actor="ada")
    assert store.ingest("digits-1", [attempt_message(1)]) is Control.STOP
    run = store.run("digits-1")
    assert (run.state, run.attempt) == (RunState.STOPPING, 1)


def test_an_attempt_after_a_restart_makes_the_run_run_again(store: Store) -> None:
    new_run(store)
    store.begin_submission("digits-1")
    store.ingest("digits-1", [attempt_message(1)])
    store.transition(
        "digits-1", RunState.QUEUED, expected={RunState.RUNNING}, reason="Ray ended", message="Ray ended"
    )
    assert store.begin_submission("digits-1") is not None
    store.ingest("digits-1", [attempt_message(1)])
    assert store.run("digits-1").state is RunState.RESTARTING
    # A late word of the first job: a higher attempt, but not of the job that is being started now.
    store.ingest("digits-1", [attempt_message(2, resumed_after_epoch=1)])
    assert store.run("digits-1").state is RunState.RESTARTING
    store.ingest("digits-1", [attempt_message(3, resumed_after_epoch=1, world_size=1, submission=2)])
    run = store.run("digits-1")
    assert (run.state, run.world_size) == (RunState.RUNNING, 1)
    *_, restart = (event for event in store.events("digits-1") if event.reason == "worker_restart")
    assert restart.message == "attempt 3 started on 1 workers, after epoch 1"


def test_runs_are_found_by_state_age_and_page(store: Store) -> None:
    made = [new_run(store, f"digits-{number}") for number in range(4)]
    store.stop("digits-1", actor="ada")
    queued = {RunState.QUEUED}

    def ids(runs: list[Run]) -> list[str]:
        return [run.run_id for run in runs]

    assert ids(store.runs()) == [run.run_id for run in reversed(made)]
    assert ids(store.runs(states=queued)) == ["digits-3", "digits-2", "digits-0"]
    assert ids(store.runs(states=queued, limit=1, offset=1)) == ["digits-2"]
    assert ids(store.runs(offset=3)) == ["digits-0"]
    assert store.runs(states=set()) == []
    assert ids(store.active_runs()) == ["digits-0", "digits-2", "digits-3"]
    assert {state: number for state, number in store.count().items() if number} == {
        RunState.QUEUED: 3,
        RunState.STOPPED: 1,
    }


def test_an_unknown_run_is_named_by_every_method(store: Store) -> None:
    asks = (
        lambda: store.run("nobody"),
        lambda: store.epochs("nobody"),
        lambda: store.events("nobody"),
        lambda: store.snapshot("nobody"),
        lambda: store.begin_submission("nobody"),
        lambda: store.stop("nobody", actor="ada"),
        lambda: store.request_control("nobody", Control.STOP, actor="ada"),
        lambda: store.add_event("nobody", reason="r", message="m"),
        lambda: store.ingest_token_hash("nobody"),
    )
    for ask in asks:
        with pytest.raises(NotFoundError, match="there is no run 'nobody'"):
            ask()
    assert store.latest_epochs(["nobody"]) == {}


def test_a_time_without_a_zone_is_refused(store: Store) -> None:
    new_run(store)
    naive = datetime(2026, 1, 1)  # noqa: DTZ001
    with pytest.raises(Exception, match="needs a time zone"), store.write() as session:
        session.add(
            AttemptRow(run_id="digits-1", attempt=1, started_at=naive, world_size=1, resumed_after_epoch=0)
        )
