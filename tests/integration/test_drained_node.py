"""One of two Ray nodes is drained and goes: a checkpoint is taken in time, and the run goes on along the same curve."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from curvewatch_service.ray_head import LEAST_CPUS
from failure_support import SAMPLES, Finished, Range, require_same_curve
from node_support import second_node
from ray_support import ServiceProcess, until

pytestmark = pytest.mark.long

CPUS = max(LEAST_CPUS, os.cpu_count() or 1) - 1
"""Of each worker: neither node has room for two."""
EPOCHS = 8
GROWING_SECONDS = 120
"""Ray counts the cluster's nodes every 20 s, and a restart of the workers takes a while."""


JOB: dict[str, Any] = {
    "training": {"epochs": EPOCHS},
    "scaling": {
        "workers": {"min": 1, "max": 2},
        "cpus_per_worker": CPUS,
        "resize_interval_seconds": 2,
    },
    # No checkpoint comes by itself before the end.
    "checkpoints": {"every_epochs": 1000},
}


@pytest.fixture(scope="module")
def own_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """A service whose Ray loses nodes."""
    started = ServiceProcess(tmp_path_factory.mktemp("service"))
    try:
        with pytest.MonkeyPatch.context() as patch:
            # Up to 20 s after a node has gone Ray Train still waits for workers there, by default for a minute.
            patch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "25")
            started.start_with_ray()
        yield started
    finally:
        started.destroy()


@pytest.fixture(scope="module")
def line(own_service: ServiceProcess, project_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Range:
    return Range(own_service, project_root / "examples" / "digits", tmp_path_factory.mktemp("drained"))


@pytest.fixture(scope="module")
def undisturbed(line: Range) -> Finished:
    """The run on the head alone, from its first epoch to its last on one worker."""
    return line.finish(line.start("undisturbed", **JOB))


@pytest.mark.parametrize(
    ("sample_seconds", "notice_seconds", "within"),
    [
        pytest.param(0.006, 60, False, id="after the epoch"),
        pytest.param(0.02, 20, True, id="within the epoch"),
    ],
)
def test_a_run_grows_onto_a_node_and_outlives_it(
    own_service: ServiceProcess,
    undisturbed: Finished,
    line: Range,
    tmp_path: Path,
    sample_seconds: float,
    notice_seconds: int,
    within: bool,
) -> None:
    name = "within" if within else "after"
    run_id = line.start(name, seconds=sample_seconds, **JOB)
    line.wait_for_samples(name, 0)
    with second_node(own_service, CPUS, tmp_path) as node:
        line.wait_for_event(run_id, "trains on 2 workers, the one before on 1", seconds=GROWING_SECONDS)
        line.wait_for_more_samples(name, SAMPLES // 20)
        node.drain(seconds=notice_seconds)
        # Ray keeps a list of the run's checkpoints, of which there was none.
        kept = own_service.data_dir / "runs" / run_id / "checkpoint_manager_snapshot.json"
        until(kept.exists, "the checkpoint before the node leaves", seconds=notice_seconds)
    line.set_pace(name, 0)
    moved = line.finish(run_id)

    require_same_curve(undisturbed, moved)
    assert {epoch.world_size for epoch in undisturbed.epochs} == {1}
    last = moved.epochs[-1]
    assert last.world_size == 1
    assert moved.count("preemption_notice") == 1
    assert moved.count("checkpoint_within_epoch") == int(within)
    assert moved.count("world_size_changed") == 2
    assert moved.value("curvewatch_world_size") == 1
    assert moved.value("curvewatch_samples_total") == EPOCHS * SAMPLES, "no epoch counts twice"
    # Without the notice's checkpoint the last attempt would have begun anew.
    again = {epoch for epoch, attempt in moved.kept if attempt == last.attempt}
    assert within or 1 not in again
