"""The reconciler and runs that are trained elsewhere: it hears or does not hear of them, and that is all."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from curvewatch_service.elsewhere import put_reported_run
from curvewatch_service.planning import Resources
from curvewatch_service.runs import RunState
from curvewatch_workers.contract import Outcome, ReportedRun
from reconcile_support import World, finished
from store_support import attempt_message, epoch_message, new_run

RUN = "net-abcdefgh"


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World.build(tmp_path)


def report(world: World, *, epochs: int = 1) -> None:
    spec = ReportedRun(name="net", trained_by="keras", epochs=9).spec()
    assert put_reported_run(world.store, run_id=RUN, spec=spec, owner="ada", ingest_token_hash="x")
    world.store.ingest(
        RUN, [attempt_message(1), *(epoch_message(n, run_id=RUN) for n in range(1, epochs + 1))]
    )


def test_it_takes_nothing_from_the_cluster(world: World) -> None:
    world.cluster.total = Resources(cpus=2)
    report(world)
    new_run(world.store, "digits-1")  # two workers of one CPU each
    world.reconciler.step()
    assert [request.submission_id for request in world.cluster.requests] == ["digits-1-1"]
    assert world.run(RUN).state is RunState.RUNNING


def test_its_trainers_last_word_ends_it_even_while_the_cluster_is_away(world: World) -> None:
    report(world)
    world.cluster.available = False
    new_run(world.store, "digits-1")
    world.store.ingest(RUN, [finished(Outcome.SUCCEEDED, reason="all done")])
    assert not world.reconciler.step()
    run = world.run(RUN)
    assert (run.state, run.reason) == (RunState.SUCCEEDED, "all done")


def test_silence_is_borne_for_a_while_and_then_it_is_lost(world: World) -> None:
    report(world)
    world.reconciler.step()
    world.clock.now += world.settings.silence_seconds - 5
    world.reconciler.step()
    assert world.run(RUN).state is RunState.RUNNING
    world.clock.now += 10
    world.reconciler.step()
    run = world.run(RUN)
    assert run.state is RunState.LOST
    assert "silent for 3600 s" in run.reason
    assert "curvewatch send" in run.reason


def test_a_machine_that_has_slept_waits_for_the_trainer_that_slept_beside_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    report(world)
    world.reconciler.step()
    monkeypatch.setattr(world.reconciler, "_now", lambda: datetime.now(UTC) + timedelta(days=1))
    world.reconciler.step()
    assert world.run(RUN).state is RunState.RUNNING


def test_a_word_of_the_trainer_ends_the_silence(world: World) -> None:
    report(world)
    for _ in range(3):
        world.reconciler.step()
        world.clock.now += world.settings.silence_seconds - 5
        world.store.ingest(RUN, [])
    world.reconciler.step()
    assert world.run(RUN).state is RunState.RUNNING


def test_a_service_that_was_away_itself_waits_from_its_start_on(world: World) -> None:
    report(world)
    world.clock.now += world.settings.silence_seconds + 100
    later = world.restarted()
    later.reconciler.step()
    assert later.run(RUN).state is RunState.RUNNING


def test_a_silent_run_that_was_asked_to_stop_has_stopped(world: World) -> None:
    report(world)
    world.store.stop(RUN, actor="ada")
    world.reconciler.step()
    assert world.run(RUN).state is RunState.STOPPING
    world.clock.now += world.settings.silence_seconds + 1
    world.reconciler.step()
    assert world.run(RUN).state is RunState.STOPPED


def test_a_service_that_ends_neither_pauses_nor_waits_for_it(world: World) -> None:
    report(world)
    world.reconciler.pause_all()
    assert world.reconciler.idle()
    assert world.run(RUN).control.value == "continue"
