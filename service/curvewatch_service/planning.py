"""From a run to the job that Ray is asked to run. Pure: nothing is sent, read or written here."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, JsonValue

import curvewatch_workers.contract as contract
from curvewatch_service.errors import CannotFitError
from curvewatch_workers.contract import WORKER_JOB_VARIABLE, JobSpec, RunLayout, ScalingSpec, WorkerJob

if TYPE_CHECKING:
    from curvewatch_service.settings import Settings
    from curvewatch_service.store import Run

WORKERS_PACKAGE = Path(contract.__file__).parent.parent
"""Folder of the installed `curvewatch_workers`, which travels to the cluster with each job."""

_ON_ONE_MACHINE = {
    # Each checkpoint's report waits for the controller's next look at its workers; there are few to look at.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
}
"""What Ray Train is told on a cluster of the service's own."""
_ON_ONE_NODE = {
    # Nobody takes this machine's node away with notice: one process less to start.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}
"""What it is told there of a run that does not follow nodes as they come and go."""


class JobRequest(BaseModel):
    """A job as it is handed to Ray's Jobs API; `model_dump_json()` prints it."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    submission_id: str
    """Name of the job on the cluster; a second job of the same name is refused."""
    entrypoint: str
    """Shell command that Ray starts on the head node."""
    runtime_env: dict[str, JsonValue] = {}
    """Code and environment variables of the job."""
    metadata: dict[str, str] = {}
    """Shown beside the job on Ray's dashboard."""
    worker_job: WorkerJob | None = None
    """What its program reads from the run's storage, where the reconciler puts it; Ray is not told."""


class Resources(BaseModel):
    """What a cluster has, or may come to have."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    cpus: float
    """CPUs of all nodes together."""
    gpus: float = 0
    """GPUs of all nodes together."""
    largest_node_cpus: float | None = None
    """CPUs of the node that has most of them; null when that is not known."""

    def minus(self, cpus: float, gpus: float) -> Resources:
        """Return what is left when this much is taken."""
        return self.model_copy(update={"cpus": self.cpus - cpus, "gpus": self.gpus - gpus})

    def minus_workers(self, scaling: ScalingSpec, workers: int) -> Resources:
        """Return what is left when so many workers have theirs."""
        return self.minus(scaling.cpus(workers), scaling.gpus(workers))

    def holds(self, spec: JobSpec) -> bool:
        """Tell whether the job's workers, the fewest that it starts with, fit all at once."""
        left = self.minus_workers(spec.scaling, spec.scaling.min_workers)
        return left.cpus >= 0 and left.gpus >= 0


def plan(run: Run, *, settings: Settings) -> JobRequest:
    """Return the job that trains a run; for a run that was never submitted, its first one.

    The bundle goes as the zip file that it is stored as: Ray would leave out of a folder what the
    folder's own .gitignore names.
    """
    submission = max(run.submission, 1)
    job = WorkerJob(
        run_id=run.run_id,
        submission=submission,
        spec=run.spec,
        storage_path=str(settings.storage_path),
        service_url=settings.public_url,
    )
    return JobRequest(
        submission_id=f"{run.run_id}-{submission}",
        entrypoint=f"{shlex.quote(settings.worker_python)} -m curvewatch_workers.entrypoint",
        runtime_env={
            "working_dir": str(settings.data_dir / "code" / f"{run.code_hash}.zip"),
            "py_modules": [str(WORKERS_PACKAGE)],
            "env_vars": {
                WORKER_JOB_VARIABLE: str(RunLayout(job.storage_path, job.run_id).job(submission)),
                # Training workers stay in the code folder, so that the user's relative paths work.
                "RAY_CHDIR_TO_TRIAL_DIR": "0",
                # The log is read in files, pipes and pages as well as in terminals.
                "RAY_COLOR_PREFIX": "0",
                **(_ON_ONE_MACHINE if settings.embedded else {}),
                **(_ON_ONE_NODE if settings.embedded and not run.spec.scaling.elastic else {}),
            },
        },
        metadata={"run_id": run.run_id, "run": run.name, "owner": run.owner},
        worker_job=job,
    )


def require_fit(spec: JobSpec, resources: Resources) -> None:
    """Check that the cluster can run a job when it has nothing else to do.

    Raises:
        CannotFitError: It never can; the message has both numbers.
    """
    scaling = spec.scaling
    least = scaling.min_workers
    each = f"{least} worker{'s' if least > 1 else ''}"
    field = "scaling.workers.min" if scaling.elastic else "scaling.workers"
    for resource, wanted, per_worker, there in (
        ("CPU", scaling.cpus(least), scaling.cpus_per_worker, resources.cpus),
        ("GPU", scaling.gpus(least), scaling.gpus_per_worker, resources.gpus),
    ):
        if wanted > there:
            raise CannotFitError(
                f"job {spec.name}: {each} with {per_worker:g} {resource} each take {wanted:g} {resource}s, "
                f"and the cluster has {there:g}; lower {field} or "
                f"scaling.{resource.lower()}s_per_worker, or enlarge the cluster"
            )
    largest = resources.largest_node_cpus
    if largest is not None and scaling.cpus_per_worker > largest:
        raise CannotFitError(
            f"job {spec.name}: a worker takes {scaling.cpus_per_worker:g} CPUs on one node, and the largest "
            f"node has {largest:g}; lower scaling.cpus_per_worker, or add a larger node"
        )
