"""A worker, Ray Train's controller and the job's driver are killed: the run resumes, and its curve is the same."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from failure_support import EPOCHS, SAMPLES, Finished, Moment, Part, Range, require_same_curve
from ray_support import ServiceProcess

SEED = 7
"""Draws moments in the middle; `benchmarks/failures.py` goes through many."""
LANES = 2
"""Jobs at a time: the service's own Ray has room for two of two workers."""


@pytest.fixture(scope="module")
def runs(
    service: ServiceProcess, project_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[Part | None, Finished]:
    """A run for each part that is killed, and one (None) in which nothing is."""
    line = Range(service, project_root / "examples" / "digits", tmp_path_factory.mktemp("failures"))
    with ThreadPoolExecutor(LANES) as lanes:
        undisturbed = lanes.submit(line.undisturbed)
        killed = {}
        for part in reversed(Part):
            moment = Moment(part=part, seed=SEED)
            sys.stdout.write(f"{part}: seed {moment.seed}, after {moment.samples} train samples\n")
            killed[part] = lanes.submit(line.disturbed, moment)
        return {None: undisturbed.result(), **{part: run.result() for part, run in killed.items()}}


@pytest.mark.parametrize("part", Part)
def test_the_death_of_a_part_changes_no_number(runs: dict[Part | None, Finished], part: Part) -> None:
    disturbed = runs[part]

    require_same_curve(runs[None], disturbed)

    assert disturbed.count(part.told_as) == 1
    assert disturbed.run.attempt == 2
    assert disturbed.value("curvewatch_samples_total") == EPOCHS * SAMPLES, "no epoch counts twice"
    assert disturbed.value("curvewatch_worker_restarts_total") == 1
    assert disturbed.value("curvewatch_replay_mismatches_total", reason="resume_not_faithful") == 0
    assert disturbed.run.submission_id == f"{disturbed.run.run_id}-{2 if part is Part.DRIVER else 1}"


def test_an_undisturbed_run_trains_each_epoch_once(runs: dict[Part | None, Finished]) -> None:
    alone = runs[None]

    assert alone.run.attempt == 1
    assert alone.kept == {(epoch, 1) for epoch in range(1, EPOCHS + 1)}
