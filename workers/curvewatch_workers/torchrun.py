"""Run a job without Ray and without a service: ``[torchrun ... -m | python -m] curvewatch_workers.torchrun job.yaml``.

For debugging a task, for tests on a GPU and for benchmarks. The records go to the same spool that a service
would ingest, below the output folder.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from curvewatch_workers import group as groups
from curvewatch_workers.checkpoint import Checkpoints, FolderCheckpoints
from curvewatch_workers.contract import (
    Control,
    EpochFinished,
    IngestMessage,
    Outcome,
    RunLayout,
    SpecError,
    WorkerJob,
    read_job_spec,
)
from curvewatch_workers.drafts import Drafts
from curvewatch_workers.errors import StorageError
from curvewatch_workers.remote import RemoteCheckpoints
from curvewatch_workers.reporter import Reporter, reporter_for
from curvewatch_workers.storage import address_below, is_local, make_folder
from curvewatch_workers.trackers import tracked
from curvewatch_workers.worker import WorkerEnding, run_worker


class PrintingReporter:
    """Prints each epoch of one attempt and passes the messages on."""

    def __init__(self, inner: Reporter, attempt: int) -> None:
        self._inner = inner
        self._attempt = attempt

    def send(self, message: IngestMessage) -> None:
        """Print an epoch as one line; those of the checkpoint that the attempt started from are no news."""
        if isinstance(message, EpochFinished) and message.record.attempt == self._attempt:
            record = message.record
            values = [f"epoch {record.epoch}", f"train loss {record.train.loss:.6g}"]
            values.append(f"validation loss {record.validation.loss:.6g}")
            values += [f"{name} {value:.6g}" for name, value in record.validation.metric_values.items()]
            values.append(f"{record.duration_seconds:.2f} s")
            sys.stdout.write(", ".join(values) + "\n")
            sys.stdout.flush()
        self._inner.send(message)

    def control(self) -> Control:
        """Return the inner reporter's control word."""
        return self._inner.control()

    def close(self) -> None:
        """Close the inner reporter."""
        self._inner.close()


@contextlib.contextmanager
def open_checkpoints(job: WorkerJob, rank: int) -> Iterator[Checkpoints]:
    """Give the checkpoints of a job: in its own folder, or where the job says; waits for uploads in the end.

    Raises:
        StorageError: The place that the job names cannot be used.
    """
    spec = job.spec.checkpoints
    keep, mode = spec.keep, spec.best.mode
    if spec.path is None:
        folder = RunLayout(job.storage_path, job.run_id).root
        yield FolderCheckpoints(folder, rank=rank, keep=keep, mode=mode)
        return
    filesystem, root = make_folder(address_below(spec.path, job.run_id))
    if is_local(filesystem):
        yield FolderCheckpoints(Path(root), rank=rank, keep=keep, mode=mode)
        return
    drafts = Drafts()
    drafts.clear_dead()
    remote = RemoteCheckpoints(filesystem, root, rank=rank, keep=keep, mode=mode, drafts=drafts)
    with contextlib.closing(remote):
        yield remote


def run_job(job: WorkerJob, working_dir: Path, *, gpu: bool) -> WorkerEnding:
    """Run this process's rank of a job; processes that torchrun started join each other.

    Args:
        job: The job; its storage path takes spool and checkpoints.
        working_dir: Folder of the user's code.
        gpu: Train on the GPU of the local rank.
    """
    sys.path.insert(0, str(working_dir.resolve()))
    group = groups.join_torchrun(gpu=gpu)
    try:
        with open_checkpoints(job, group.rank) as checkpoints:
            return run_worker(
                job,
                group,
                checkpoints,
                lambda attempt: PrintingReporter(
                    tracked(
                        job, attempt, reporter_for(job, f"attempt-{attempt:06d}"), environment=os.environ
                    ),
                    attempt,
                ),
            )
    finally:
        groups.leave()


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code: 0, 1 when the run failed, 2 for a wrong job file."""
    parser = argparse.ArgumentParser(prog="curvewatch_workers.torchrun", description=__doc__.splitlines()[0])
    parser.add_argument("job", type=Path, help="job.yaml, or its folder")
    parser.add_argument(
        "--output", type=Path, default=Path("curvewatch-output"), help="folder for spool and checkpoints"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to train")
    parser.add_argument(
        "--resume", action="store_true", help="go on from the latest checkpoint in the output folder"
    )
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        spec = read_job_spec(options.job)
    except SpecError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    folder = options.job if options.job.is_dir() else options.job.parent
    layout = RunLayout(options.output.resolve(), spec.name)
    # Each call is a submission of its own: failures of the code before it was mended do not count.
    attempts = sum(path.name.isdigit() for path in layout.attempts.glob("*"))
    # torchrun's own restarts of a group are resumes.
    resume = options.resume or os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    job = WorkerJob(
        run_id=spec.name,
        submission=attempts + 1,
        spec=spec,
        storage_path=str(options.output.resolve()),
        service_url=None,
    )
    if os.environ.get("RANK", "0") == "0":
        problem = _refusal(job, started_before=attempts > 0, resume=resume)
        if problem is not None:
            sys.stderr.write(f"{problem}\n")
            return 2
    gpu = torch.cuda.is_available() if options.device == "auto" else options.device == "cuda"
    ending = run_job(job, folder / spec.code.working_dir, gpu=gpu)
    sys.stdout.write(f"{ending.outcome}: {ending.reason}\n")
    if ending.traceback:
        sys.stderr.write(ending.traceback)
    return 1 if ending.outcome is Outcome.FAILED else 0


def _refusal(job: WorkerJob, *, started_before: bool, resume: bool) -> str | None:
    """Say why a job cannot start: it would go on with an earlier run unasked, or has nowhere to keep checkpoints."""
    path = job.spec.checkpoints.path
    try:
        with open_checkpoints(job, rank=0) as checkpoints:
            kept = path is not None and bool(checkpoints.names())
    except StorageError as error:
        return str(error)
    except OSError as error:
        return f"checkpoints.path is {path!r}, which cannot be read: {error}"
    if resume or not (started_before or kept):
        return None
    root = RunLayout(job.storage_path, job.run_id).root
    where, remedy = (
        (root, "--output") if started_before else (address_below(path or "", job.run_id), "checkpoints.path")
    )
    return f"{where} holds an earlier run; go on with it by --resume, or name another folder with {remedy}"


if __name__ == "__main__":
    sys.exit(main())
