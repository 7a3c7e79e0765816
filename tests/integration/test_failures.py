"""A worker, Ray Train's controller and the job's driver are killed: the run resumes, and its curve is the same."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from curvewatch_workers.contract import RunLayout
from failure_support import EPOCHS, SAMPLES, Finished, Moment, Part, Range, require_same_curve
from ray_support import ServiceProcess
from tracker_support import read_tracking

pytestmark = pytest.mark.long

SEED = 7
"""Draws moments in the middle; `benchmarks/failures.py` goes through many."""
LANES = 2
"""Jobs at a time: the service's own Ray has room for two of two workers."""
PARTS = (Part.DRIVER, Part.CONTROLLER, Part.WORKER)
"""The slowest first."""

Runs = dict[Part | None, Future[Finished]]


@pytest.fixture(scope="module")
def runs(
    service: ServiceProcess,
    project_root: Path,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Iterator[Runs]:
    """A run for each part that is killed, and one (None) in which nothing is; each test waits for its own."""
    chosen = {item.callspec.params.get("part") for item in request.session.items if hasattr(item, "callspec")}
    line = Range(service, project_root / "examples" / "digits", tmp_path_factory.mktemp("failures"))
    with ThreadPoolExecutor(LANES) as lanes:
        started: Runs = {None: lanes.submit(line.undisturbed)}
        for part in (part for part in PARTS if part in chosen):
            moment = Moment(part=part, seed=SEED)
            sys.stdout.write(f"{part}: seed {moment.seed}, after {moment.samples} train samples\n")
            started[part] = lanes.submit(line.disturbed, moment)
        yield started


def test_an_undisturbed_run_trains_each_epoch_once(runs: Runs) -> None:
    alone = runs[None].result()

    assert alone.run.attempt == 1
    assert alone.kept == {(epoch, 1) for epoch in range(1, EPOCHS + 1)}


@pytest.mark.parametrize("part", PARTS)
def test_the_death_of_a_part_changes_no_number(runs: Runs, part: Part, service: ServiceProcess) -> None:
    disturbed = runs[part].result()

    require_same_curve(runs[None].result(), disturbed)

    assert disturbed.count(part.told_as) == 1
    assert disturbed.run.attempt == 2
    assert disturbed.value("curvewatch_samples_total") == EPOCHS * SAMPLES, "no epoch counts twice"
    assert disturbed.value("curvewatch_worker_restarts_total") == 1
    assert disturbed.value("curvewatch_replay_mismatches_total", reason="resume_not_faithful") == 0
    tracking = RunLayout(service.data_dir / "runs", disturbed.run.run_id).tracking
    for tracker in ("tensorboard", "csv"):
        assert [epoch for epoch, _ in read_tracking(tracker, tracking)] == list(range(1, EPOCHS + 1)), tracker
    assert disturbed.run.submission_id == f"{disturbed.run.run_id}-{2 if part is Part.DRIVER else 1}"
