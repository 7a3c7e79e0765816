"""The program of the Ray job: ``python -m curvewatch_workers.entrypoint``. Nothing else here imports Ray."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
from ray.train import CheckpointUploadMode, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError

from curvewatch_workers.contract import WORKER_JOB_VARIABLE, Outcome, RunFinished, RunLayout, WorkerJob
from curvewatch_workers.errors import printable
from curvewatch_workers.group import group_of_process
from curvewatch_workers.loop import utc_now
from curvewatch_workers.reporter import reporter_for
from curvewatch_workers.worker import WorkerEnding, last_failure, run_worker

logger = logging.getLogger(__name__)


class RayCheckpoints:
    """Checkpoints that Ray Train registers and moves to the storage path, without training waiting for it."""

    @contextlib.contextmanager
    def latest(self) -> Iterator[Path | None]:
        """Open the latest registered checkpoint."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            yield None
            return
        with checkpoint.as_directory() as folder:
            yield Path(folder)

    def save(self, epoch: int, write: Callable[[Path], None], *, validation_loss: float) -> None:
        """Register a checkpoint: a barrier over all ranks; rank 0 brings the folder."""
        checkpoint = None
        if ray.train.get_context().get_world_rank() == 0:
            folder = Path(tempfile.mkdtemp(prefix=f"curvewatch-epoch-{epoch}-"))
            try:
                write(folder)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            checkpoint = ray.train.Checkpoint.from_directory(folder)
        # Ray scores by this number, and an unordered one would make the ranking meaningless.
        score = validation_loss if math.isfinite(validation_loss) else sys.float_info.max
        ray.train.report(
            {"epoch": float(epoch), "validation_loss": float(score)},
            checkpoint=checkpoint,
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            delete_local_checkpoint_after_upload=True,
        )


def train_worker(config: dict[str, Any]) -> dict[str, Any]:
    """Run one rank, inside a Ray Train worker."""
    job = WorkerJob.model_validate_json(config["job"])
    ending = run_worker(
        job,
        group_of_process(ray.train.torch.get_device()),
        RayCheckpoints(),
        lambda attempt: reporter_for(job, f"attempt-{attempt:06d}"),
    )
    return ending.model_dump(mode="json")


def fit(job: WorkerJob) -> RunFinished:
    """Train the job on the cluster; return how it ended, whatever happened."""
    spec = job.spec
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"job": job.model_dump_json()},
        torch_config=TorchConfig(backend="nccl" if spec.scaling.gpus_per_worker else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=spec.scaling.workers,
            use_gpu=spec.scaling.gpus_per_worker > 0,
            resources_per_worker=_resources(job),
        ),
        run_config=RunConfig(
            name=job.run_id,
            storage_path=job.storage_path,
            failure_config=ray.train.FailureConfig(max_failures=spec.fault_tolerance.max_restarts),
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=spec.checkpoints.keep,
                checkpoint_score_attribute="validation_loss",
                checkpoint_score_order="min",
            ),
        ),
    )
    try:
        result = trainer.fit()
    except TrainingFailedError as error:
        logger.exception("Training failed", extra={"action": "fit_failed", "run_id": job.run_id})
        kept = last_failure(RunLayout(job.storage_path, job.run_id), job.submission)
        ending = kept or WorkerEnding(outcome=Outcome.FAILED, reason=_first_line(error))
        return _finished(job, ending, None, None)
    ending = WorkerEnding.model_validate(result.return_value)
    best = min(result.best_checkpoints or [], key=lambda pair: pair[1]["validation_loss"], default=None)
    return _finished(
        job, ending, result.checkpoint.path if result.checkpoint else None, best[0].path if best else None
    )


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


def _finished(job: WorkerJob, ending: WorkerEnding, checkpoint: str | None, best: str | None) -> RunFinished:
    return RunFinished(
        submission=job.submission,
        time=utc_now(),
        outcome=ending.outcome,
        reason=printable(ending.reason)[:4000],
        traceback=ending.traceback[-65000:] if ending.traceback else None,
        checkpoint=checkpoint,
        best_checkpoint=best,
    )


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


if __name__ == "__main__":
    sys.exit(main())
