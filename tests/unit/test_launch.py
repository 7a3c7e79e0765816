"""What one launch of torchrun knows of itself and of the launches before it."""

from __future__ import annotations

from pathlib import Path

import pytest

from curvewatch_workers.contract import RunLayout, WorkerJob
from curvewatch_workers.errors import StorageError
from curvewatch_workers.launch import Launch, Start, begin
from engine_support import make_spec


def make_job(folder: Path) -> WorkerJob:
    return WorkerJob(run_id="toy", submission=1, spec=make_spec(), storage_path=str(folder), service_url=None)


def unnamed_launch(folder: str, restarts: int) -> Launch:
    """Return what a plain `torchrun` tells its workers."""
    return Launch.of(
        {
            "TORCHELASTIC_RUN_ID": "none",
            "TORCHELASTIC_RESTART_COUNT": str(restarts),
            "TORCHELASTIC_ERROR_FILE": f"/tmp/torchelastic_x/{folder}/attempt_{restarts}/0/error.json",
        }
    )


def trained(job: WorkerJob) -> None:
    (RunLayout(job.storage_path, job.run_id).attempts / "000001").write_text("1")


def test_a_restart_of_an_unnamed_launch_goes_on_with_its_own_run_only(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    assert begin(job, unnamed_launch("none_a", 0), resume=False, elsewhere=False) == Start(1, None)
    trained(job)

    own = begin(job, unnamed_launch("none_a", 1), resume=False, elsewhere=False)
    # Its first group died before it had looked at the folder.
    other = begin(job, unnamed_launch("none_b", 1), resume=False, elsewhere=False)

    assert own == Start(1, None)
    assert "holds an earlier run" in (other.refusal or "")


def test_an_output_folder_that_is_full_is_told_in_a_sentence(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    note = RunLayout(job.storage_path, job.run_id).attempts / "launch.json"
    note.mkdir(parents=True)

    with pytest.raises(StorageError, match=r"launch\.json cannot be written: .*; make room there"):
        begin(job, unnamed_launch("none_a", 0), resume=False, elsewhere=False)
