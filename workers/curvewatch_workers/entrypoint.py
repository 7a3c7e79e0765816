"""The program of the Ray job: ``python -m curvewatch_workers.entrypoint``. Nothing else here imports Ray."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
from pyarrow.fs import FileSystem
from ray.exceptions import ActorDiedError
from ray.train import CheckpointConsistencyMode, CheckpointUploadMode, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.util.state import list_actors

from curvewatch_workers.contract import (
    WORKER_JOB_VARIABLE,
    Outcome,
    RunFinished,
    RunLayout,
    WorkerEvent,
    WorkerJob,
    last_failure,
)
from curvewatch_workers.decisions import restarts_left
from curvewatch_workers.drafts import Drafts
from curvewatch_workers.errors import StorageError, shortened
from curvewatch_workers.group import group_of_process
from curvewatch_workers.keeping import Progress
from curvewatch_workers.loop import utc_now
from curvewatch_workers.preemption import Notice
from curvewatch_workers.ranking import Mode, badness, is_worst, ranked
from curvewatch_workers.reporter import reporter_for
from curvewatch_workers.storage import address_below, download, is_local, make_folder, require_shared
from curvewatch_workers.trackers import tracked
from curvewatch_workers.worker import WorkerEnding, latest_attempt, run_worker

logger = logging.getLogger(__name__)

_LIST_SECONDS = 30.0
"""Longest wait for reports that Ray Train still takes in; then the list is what it has."""
WORKERS_GONE_SECONDS = 120.0
"""How long the workers of a controller that died may live on until the job gives up."""
_REGISTRY = "checkpoint_manager_snapshot.json"
"""Ray Train's list of the run's checkpoints, below the run's folder."""


class RayCheckpoints:
    """Checkpoints that Ray Train registers and moves to the storage path, without training waiting for it.

    While one is on its way, another that is due is left out: they would pile up on this machine's disk.

    Args:
        mode: Whether lower or higher scores are better.
        drafts: Where a checkpoint is written before its upload.
    """

    def __init__(self, mode: Mode, drafts: Drafts) -> None:
        self._mode: Mode = mode
        self._drafts = drafts
        self._draft: Path | None = None

    def names(self) -> tuple[str, ...]:
        """Name the registered checkpoints by their paths, the latest first."""
        latest = ray.train.get_checkpoint()
        if latest is None:
            return ()
        older = sorted(_reported(), key=lambda one: (one.metrics["epoch"], one.metrics["step"]), reverse=True)
        return (latest.path, *(one.checkpoint.path for one in older if one.checkpoint.path != latest.path))

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[Path]:
        """Give a checkpoint's own folder, or download it into one that is gone afterwards."""
        # A rank that has brought none itself, and has not started from one, knows those of the others.
        latest = ray.train.get_checkpoint() or _reported()[0].checkpoint
        filesystem = latest.filesystem
        if is_local(filesystem):
            yield Path(name)
            return
        with self._drafts.one() as folder:
            download(filesystem, name, folder)
            yield folder

    def save(self, at: Progress, write: Callable[[Path], None], *, score: float, last: bool) -> str | None:
        """Register a checkpoint: a barrier over all ranks; rank 0 brings the folder."""
        checkpoint = None
        under_way = self._draft is not None and self._draft.exists()
        if ray.train.get_context().get_world_rank() == 0 and (last or not under_way):
            self._draft = self._drafts.new()
            try:
                write(self._draft)
            except BaseException:
                shutil.rmtree(self._draft)
                raise
            checkpoint = ray.train.Checkpoint.from_directory(self._draft)
        ray.train.report(
            {"epoch": float(at.epoch), "step": float(at.step), "score": ranked(score, self._mode)},
            checkpoint=checkpoint,
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            delete_local_checkpoint_after_upload=True,
        )
        return None


def _reported() -> list[ray.train.ReportedCheckpoint]:
    """Return the checkpoints that Ray Train keeps, once it has taken in those that were reported."""
    reported: list[ray.train.ReportedCheckpoint] = ray.train.get_all_reported_checkpoints(
        CheckpointConsistencyMode.COMMITTED, timeout_s=_LIST_SECONDS
    )
    return reported


class RayNotices:
    """Ray's notices that a node is being drained."""

    def latest(self) -> Notice | None:
        """Return the latest, the same on each rank: a barrier over all of them."""
        info = ray.train.get_preemption_info()
        if info is None:
            return None
        return Notice(info.deadline_ms / 1000 if info.deadline_ms else None, tuple(info.preempted_ranks))


def train_worker(config: dict[str, Any]) -> dict[str, Any]:
    """Run one rank, inside a Ray Train worker."""
    job = WorkerJob.model_validate_json(config["job"])
    drafts = Drafts()
    drafts.clear_dead()
    ending = run_worker(
        job,
        group_of_process(ray.train.torch.get_device()),
        RayCheckpoints(job.spec.checkpoints.best.mode, drafts),
        lambda attempt: tracked(
            job, attempt, reporter_for(job, f"attempt-{attempt:06d}"), environment=os.environ
        ),
        RayNotices(),
    )
    return ending.model_dump(mode="json")


def fit(job: WorkerJob) -> RunFinished:
    """Train the job on the cluster; return how it ended, whatever happened.

    The death of Ray Train's controller, which takes its workers along, counts like that of a worker: it is followed
    by another fit from the latest checkpoint, as long as the job's restarts last.

    Raises:
        RuntimeError: Workers of a dead controller live on: the end of this process will end them.
    """
    layout, allowed = RunLayout(job.storage_path, job.run_id), job.spec.fault_tolerance.max_restarts
    before, deaths, left = latest_attempt(layout), 0, allowed
    while True:
        _set_torn_registry_aside(job)
        try:
            return _fit_once(job, max_failures=left)
        except ActorDiedError as error:
            logger.exception("The controller died", extra={"action": "controller_died", "run_id": job.run_id})
            deaths += 1
            # Of a run whose number of workers changes, most attempts follow no failure.
            attempts = deaths if job.spec.scaling.elastic else latest_attempt(layout) - before
            left = restarts_left(allowed, attempts=attempts, deaths=deaths)
            trouble = _why_not_again(error, left=left, allowed=allowed)
            if trouble is not None:
                return _finished(job, WorkerEnding(outcome=Outcome.FAILED, reason=trouble), None, None)
            _tell_of_death(job, layout, restart=allowed - left, allowed=allowed)
            _wait_until_workers_are_gone()


def _why_not_again(error: ActorDiedError, *, left: int, allowed: int) -> str | None:
    """Return why no other controller follows one that died; None when one does."""
    if error.actor_init_failed:
        return f"Ray Train's controller cannot be started: {str(error).strip().splitlines()[-1]}"
    if left < 0:
        return (
            f"Ray Train's controller died, and the run has no restarts left (max_restarts is {allowed}); look at its "
            "log, raise fault_tolerance.max_restarts, and submit it again"
        )
    return None


def _fit_once(job: WorkerJob, *, max_failures: int) -> RunFinished:
    """Train under one controller, which restarts the workers so many times.

    Raises:
        ActorDiedError: The controller died.
    """
    try:
        result = _trainer(job, max_failures=max_failures).fit()
    except StorageError as error:
        return _finished(job, WorkerEnding(outcome=Outcome.FAILED, reason=str(error)), None, None)
    except TrainingFailedError as error:
        logger.exception("Training failed", extra={"action": "fit_failed", "run_id": job.run_id})
        kept = last_failure(RunLayout(job.storage_path, job.run_id), job.submission)
        ending = (
            WorkerEnding(outcome=Outcome.FAILED, reason=_first_line(error))
            if kept is None
            else WorkerEnding.of_failure(kept, "failed")
        )
        return _finished(job, ending, None, None)
    ending = WorkerEnding.model_validate(result.return_value)
    latest, best = result.checkpoint, _best(job, result.best_checkpoints or [])
    return _finished(job, ending, _address(job, latest), _address(job, best))


def _trainer(job: WorkerJob, *, max_failures: int) -> TorchTrainer:
    spec, scaling = job.spec, job.spec.scaling
    storage_path, filesystem = _storage(job)
    return TorchTrainer(
        train_worker,
        train_loop_config={"job": job.model_dump_json()},
        torch_config=TorchConfig(backend="nccl" if scaling.gpus_per_worker else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=(scaling.min_workers, scaling.max_workers)
            if scaling.elastic
            else scaling.max_workers,
            use_gpu=scaling.gpus_per_worker > 0,
            resources_per_worker=_resources(job),
            elastic_resize_monitor_interval_s=scaling.resize_interval_seconds,
        ),
        run_config=RunConfig(
            name=job.run_id,
            storage_path=storage_path,
            storage_filesystem=filesystem,
            failure_config=ray.train.FailureConfig(max_failures=max_failures),
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=spec.checkpoints.keep,
                checkpoint_score_attribute="score",
                checkpoint_score_order=spec.checkpoints.best.mode,
            ),
        ),
    )


def _tell_of_death(job: WorkerJob, layout: RunLayout, *, restart: int, allowed: int) -> None:
    """Tell the service that the controller died. Waits for a service that is away no longer than a reporter does."""
    reporter = reporter_for(job, f"driver-{job.submission:06d}")
    message = (
        f"Ray Train's controller died; its workers start again from the latest checkpoint (restart {restart} of "
        f"{allowed})"
    )
    reporter.send(
        WorkerEvent(attempt=latest_attempt(layout), time=utc_now(), reason="controller_died", message=message)
    )
    reporter.close()


def _wait_until_workers_are_gone() -> None:
    """Wait until Ray has ended the workers of the dead controller: no two groups may train at once.

    Raises:
        RuntimeError: It has not, in `WORKERS_GONE_SECONDS`.
    """
    job = ray.get_runtime_context().get_job_id()
    filters = [("job_id", "=", job), ("class_name", "=", "RayTrainWorker"), ("state", "!=", "DEAD")]
    deadline = time.monotonic() + WORKERS_GONE_SECONDS
    while alive := list_actors(filters=filters, limit=10_000, raise_on_missing_output=False):
        if time.monotonic() > deadline:
            raise RuntimeError(
                f"{len(alive)} workers of a controller that died still live after {WORKERS_GONE_SECONDS:.0f} s; "
                "this job ends, and they with it"
            )
        time.sleep(0.2)


def _set_torn_registry_aside(job: WorkerJob) -> None:
    """Rename a list of checkpoints that cannot be read: the controller died while it wrote it.

    Ray Train would refuse to start. Without the list the run trains from its first epoch, to the same curve. A remote
    storage writes a file whole or not at all.
    """
    try:
        storage_path, filesystem = _storage(job)
    except StorageError:
        return  # told when Ray Train is started
    if filesystem is not None:
        return
    path = Path(storage_path) / job.run_id / _REGISTRY
    try:
        json.loads(path.read_bytes())
    except FileNotFoundError:
        return
    except ValueError:
        logger.warning("%s cannot be read and is set aside", path, extra={"action": "registry_torn"})
        path.replace(path.with_name(f"{_REGISTRY}.torn"))


def main() -> int:
    """Run the job that the environment names; return the exit code: 0 unless it failed."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    job = _job_of(Path(os.environ[WORKER_JOB_VARIABLE]))
    finished = fit(job)
    reporter = reporter_for(job, f"driver-{job.submission:06d}")
    reporter.send(finished)
    reporter.close()
    logger.info(
        "Run %s %s: %s", job.run_id, finished.outcome, finished.reason, extra={"action": "run_finished"}
    )
    if finished.traceback:
        logger.error("The user's code failed:\n%s", finished.traceback)
    return 1 if finished.outcome is Outcome.FAILED else 0


def _job_of(path: Path) -> WorkerJob:
    """Read the job that the service wrote; without it nothing is known, not even whom to tell."""
    try:
        return WorkerJob.model_validate_json(path.read_bytes())
    except OSError as error:
        sys.exit(
            f"the job cannot be read from {path} ({error.strerror}); service and workers must see the same "
            "storage (CURVEWATCH_STORAGE_PATH of the service) as the same user"
        )


def _resources(job: WorkerJob) -> dict[str, float]:
    scaling = job.spec.scaling
    gpus = {"GPU": float(scaling.gpus_per_worker)} if scaling.gpus_per_worker else {}
    return {"CPU": scaling.cpus_per_worker, **gpus}


def _storage(job: WorkerJob) -> tuple[str, FileSystem | None]:
    """Return storage path and file system for Ray; None lets Ray find it from the path.

    Raises:
        StorageError: The place that the job names cannot be used.
    """
    if job.spec.checkpoints.path is None:
        return job.storage_path, None
    require_shared(job.spec.checkpoints.path)
    filesystem, path = make_folder(job.spec.checkpoints.path)
    return path, None if is_local(filesystem) else filesystem


def _best(
    job: WorkerJob, kept: list[tuple[ray.train.Checkpoint, dict[str, Any]]]
) -> ray.train.Checkpoint | None:
    """Return the best checkpoint, the earliest of equals; None when none has a finite score."""
    mode = job.spec.checkpoints.best.mode
    ranking = [(badness(told["score"], mode), told["epoch"], one) for one, told in kept]
    finite = [entry for entry in ranking if not is_worst(entry[0])]
    return min(finite, key=lambda entry: entry[:2])[2] if finite else None


def _address(job: WorkerJob, checkpoint: ray.train.Checkpoint | None) -> str | None:
    """Return where a checkpoint is, as a user can open it: Ray's path lacks what names the storage."""
    if checkpoint is None:
        return None
    if job.spec.checkpoints.path is None or is_local(checkpoint.filesystem):
        return str(checkpoint.path)
    return address_below(job.spec.checkpoints.path, job.run_id, Path(checkpoint.path).name)


def _finished(job: WorkerJob, ending: WorkerEnding, checkpoint: str | None, best: str | None) -> RunFinished:
    return RunFinished(
        submission=job.submission,
        time=utc_now(),
        outcome=ending.outcome,
        reason=shortened(ending.reason),
        traceback=ending.traceback[-65000:] if ending.traceback else None,
        checkpoint=checkpoint,
        best_checkpoint=best,
    )


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


if __name__ == "__main__":
    sys.exit(main())
