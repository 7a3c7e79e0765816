"""Run a job without Ray and without a service: ``[torchrun ... -m | python -m] curvewatch_workers.torchrun job.yaml``.

For debugging a task, for tests on a GPU and for benchmarks. The records go to the same spool that a service
would ingest, below the output folder.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import signal
import sys
import threading
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
from curvewatch_workers.errors import StorageError, WorkersError
from curvewatch_workers.group import Group
from curvewatch_workers.launch import Launch, Start, begin
from curvewatch_workers.remote import RemoteCheckpoints
from curvewatch_workers.reporter import Reporter, reporter_for
from curvewatch_workers.storage import address_below, is_local, make_folder, require_shared
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
    with _joined(working_dir, gpu=gpu) as group:
        return _run(job, group)


@contextlib.contextmanager
def _joined(working_dir: Path, *, gpu: bool) -> Iterator[Group]:
    sys.path.insert(0, str(working_dir.resolve()))
    group = groups.join_torchrun(gpu=gpu)
    try:
        yield group
    finally:
        groups.leave()


def _run(job: WorkerJob, group: Group) -> WorkerEnding:
    with open_checkpoints(job, group.rank) as checkpoints:
        return run_worker(
            job,
            group,
            checkpoints,
            lambda attempt: PrintingReporter(
                tracked(job, attempt, reporter_for(job, f"attempt-{attempt:06d}"), environment=os.environ),
                attempt,
            ),
        )


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code.

    0, 1 when the run failed, 2 for a wrong job file or place, 130 when it was interrupted.
    """
    interrupted = threading.Event()

    def interrupt(*_: object) -> None:
        interrupted.set()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        return _main(arguments)
    except WorkersError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except BaseException:
        # A rank whose peer was interrupted too finds it gone.
        if not interrupted.is_set():
            raise
        sys.stderr.write("interrupted; go on from the latest checkpoint with --resume\n")
        return 130
    finally:
        signal.signal(signal.SIGINT, before)


def _main(arguments: list[str] | None) -> int:
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
    job = WorkerJob(
        run_id=spec.name,
        submission=1,
        spec=spec,
        storage_path=str(options.output.resolve()),
        service_url=None,
    )
    gpu = torch.cuda.is_available() if options.device == "auto" else options.device == "cuda"
    with _joined(folder / spec.code.working_dir, gpu=gpu) as group:
        start = _agreed_start(job, group, resume=options.resume)
        if start.refusal is not None:
            if group.rank == 0:
                sys.stderr.write(f"{start.refusal}\n")
            return 2
        ending = _run(job.model_copy(update={"submission": start.submission}), group)
    if group.rank == 0:
        sys.stdout.write(f"{ending.outcome}: {ending.reason}\n")
        sys.stderr.write(ending.traceback or "")
    return 1 if ending.outcome is Outcome.FAILED else 0


def _agreed_start(job: WorkerJob, group: Group, *, resume: bool) -> Start:
    """Let rank 0 decide whether and as what this launch trains. A collective call."""
    told = None
    if group.rank == 0:
        try:
            elsewhere = _kept_elsewhere(job, group)
            start = begin(job, Launch.of(os.environ), resume=resume, elsewhere=elsewhere)
        except StorageError as error:
            start = Start(0, str(error))
        told = json.dumps(start)
    submission, refusal = json.loads(group.first_problem(told) or "")
    return Start(submission, refusal)


def _kept_elsewhere(job: WorkerJob, group: Group) -> bool:
    """Tell whether the place that the job names for its checkpoints has some.

    Raises:
        StorageError: It cannot be used.
    """
    path = job.spec.checkpoints.path
    if path is None:
        return False
    if group.world_size > 1:
        require_shared(path)
    try:
        with open_checkpoints(job, group.rank) as checkpoints:
            return bool(checkpoints.names())
    except OSError as error:
        raise StorageError(f"checkpoints.path is {path!r}, which cannot be read: {error}") from error


if __name__ == "__main__":
    sys.exit(main())
