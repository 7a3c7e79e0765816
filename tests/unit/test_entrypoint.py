"""The job's driver when Ray Train's controller dies. With Ray itself: `tests/integration/test_failures.py`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import TypeAdapter
from ray.exceptions import ActorDiedError, RayTaskError

from curvewatch_workers import entrypoint
from curvewatch_workers.contract import IngestMessage, Outcome, RunFinished, RunLayout, WorkerEvent, WorkerJob
from curvewatch_workers.worker import WorkerEnding
from engine_support import make_spec

MESSAGE: TypeAdapter[IngestMessage] = TypeAdapter(IngestMessage)


def _job(folder: Path, *, max_restarts: int = 3) -> WorkerJob:
    spec = make_spec(fault_tolerance={"max_restarts": max_restarts})
    return WorkerJob(run_id="toy-1", submission=2, spec=spec, storage_path=str(folder), service_url=None)


class Controllers:
    """Each entry is one controller: how many attempts it starts, and whether it then dies."""

    def __init__(self, job: WorkerJob, *lives: tuple[int, bool]) -> None:
        self.attempts = RunLayout(job.storage_path, job.run_id).attempts
        self.attempts.mkdir(parents=True)
        self.lives = iter(lives)
        self.budgets: list[int] = []
        self.waits = 0
        self.error = ActorDiedError()

    def fit_once(self, job: WorkerJob, *, max_failures: int) -> RunFinished:
        self.budgets.append(max_failures)
        started, dies = next(self.lives)
        number = len(list(self.attempts.iterdir()))
        for attempt in range(number + 1, number + started + 1):
            (self.attempts / f"{attempt:06d}").touch()
        if dies:
            raise self.error
        return entrypoint._finished(job, WorkerEnding(outcome=Outcome.SUCCEEDED, reason="done"), None, None)

    def wait(self) -> None:
        self.waits += 1


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[[WorkerJob, Controllers], RunFinished]:
    """Return `fit` with these controllers for Ray's."""

    def fit(job: WorkerJob, controllers: Controllers) -> RunFinished:
        monkeypatch.setattr(entrypoint, "_fit_once", controllers.fit_once)
        monkeypatch.setattr(entrypoint, "_wait_until_workers_are_gone", controllers.wait)
        return entrypoint.fit(job)

    return fit


def test_a_dead_controller_is_followed_by_another_and_told_of(
    tmp_path: Path, run: Callable[[WorkerJob, Controllers], RunFinished]
) -> None:
    job = _job(tmp_path)
    controllers = Controllers(job, (1, True), (1, False))

    assert run(job, controllers).outcome is Outcome.SUCCEEDED

    assert controllers.budgets == [3, 2]
    assert controllers.waits == 1
    spool = RunLayout(job.storage_path, job.run_id).spool / "driver-000002.jsonl"
    (told,) = [MESSAGE.validate_json(line) for line in spool.read_bytes().splitlines()]
    assert isinstance(told, WorkerEvent)
    assert (told.reason, told.attempt) == ("controller_died", 1)
    assert "restart 1 of 3" in told.message


@pytest.mark.parametrize(
    ("lives", "budgets"),
    [
        # Ray Train restarted twice under the first controller: one more group, and no restart of it.
        ([(3, True), (1, True)], [3, 0]),
        ([(1, True), (1, True), (1, True), (1, True)], [3, 2, 1, 0]),
        # Controllers that die before any group has started.
        ([(0, True), (0, True), (0, True), (0, True)], [3, 2, 1, 0]),
    ],
)
def test_restarts_are_bounded_over_all_controllers(
    tmp_path: Path,
    run: Callable[[WorkerJob, Controllers], RunFinished],
    lives: list[tuple[int, bool]],
    budgets: list[int],
) -> None:
    job = _job(tmp_path)
    controllers = Controllers(job, *lives)

    finished = run(job, controllers)

    assert finished.outcome is Outcome.FAILED
    assert "has no restarts left (max_restarts is 3)" in finished.reason
    assert controllers.budgets == budgets


def test_a_controller_that_cannot_be_started_ends_the_run_with_its_reason(
    tmp_path: Path, run: Callable[[WorkerJob, Controllers], RunFinished]
) -> None:
    job = _job(tmp_path)
    controllers = Controllers(job, (0, True), (1, False))
    text = "Traceback (most recent call last):\n  ...\nOSError: no such bucket\n"
    controllers.error = ActorDiedError(RayTaskError("__init__", text, OSError("no such bucket")))

    finished = run(job, controllers)

    assert finished.outcome is Outcome.FAILED
    assert finished.reason == "Ray Train's controller cannot be started: OSError: no such bucket"
    assert controllers.budgets == [3]


def test_attempts_of_earlier_submissions_are_not_counted(
    tmp_path: Path, run: Callable[[WorkerJob, Controllers], RunFinished]
) -> None:
    job = _job(tmp_path, max_restarts=1)
    controllers = Controllers(job, (1, True), (1, False))
    for attempt in range(1, 8):
        (controllers.attempts / f"{attempt:06d}").touch()

    assert run(job, controllers).outcome is Outcome.SUCCEEDED
    assert controllers.budgets == [1, 0]


def test_a_torn_list_of_checkpoints_is_set_aside_and_a_whole_one_stays(
    tmp_path: Path, run: Callable[[WorkerJob, Controllers], RunFinished]
) -> None:
    job = _job(tmp_path)
    root = RunLayout(job.storage_path, job.run_id).root
    controllers = Controllers(job, (1, False), (1, False))
    registry = root / "checkpoint_manager_snapshot.json"
    registry.write_text('{"checkpoint_results": []}')
    run(job, controllers)
    assert registry.exists()

    registry.write_text('{"checkpoint_resu')
    run(job, controllers)
    assert not registry.exists()
    assert (root / f"{registry.name}.torn").read_text() == '{"checkpoint_resu'
