"""Real gloo ranks in processes of their own, for tests that compare curves on different numbers of them."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

from curvewatch_workers.checkpoint import Checkpoints, FolderCheckpoints, NoCheckpoints
from curvewatch_workers.contract import EpochRecord, JobSpec
from curvewatch_workers.group import Group, group_of_process, leave
from curvewatch_workers.loop import Trainer
from curvewatch_workers.task import TrainingTask
from curvewatch_workers.testing import RecordingReporter

T = TypeVar("T")


def on_ranks(ranks: int, folder: Path, function: Callable[..., T], *arguments: Any) -> list[T]:
    """Call a function of a module, given a group, on so many ranks; return what each returned, in order of rank.

    Raises:
        AssertionError: A rank raised; with its traceback.
    """
    folder.mkdir(parents=True, exist_ok=True)
    store = folder / "store"
    store.unlink(missing_ok=True)
    # Forked from a process that has imported what every rank needs, and done nothing else.
    multiprocessing.get_context("forkserver").set_forkserver_preload(["curvewatch_workers.loop"])
    start_processes(_rank, (ranks, folder, function, arguments), nprocs=ranks, start_method="forkserver")  # type: ignore[no-untyped-call]
    told = [pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in range(ranks)]  # noqa: S301 - ours
    for rank, (_, trouble) in enumerate(told):
        assert trouble is None, f"rank {rank} of {ranks}:\n{trouble}"
    return [returned for returned, _ in told]


def _rank(
    rank: int, ranks: int, folder: Path, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    if ranks > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=ranks)
    told: tuple[Any, str | None]
    try:
        told = function(group_of_process(torch.device("cpu")), *arguments), None
    except Exception:  # noqa: BLE001 - told to the test
        told = None, traceback.format_exc()
    (folder / f"{rank}.pickle").write_bytes(pickle.dumps(told))
    leave()


def train(group: Group, spec: JobSpec, task: TrainingTask, folder: Path | None = None) -> list[EpochRecord]:
    """Train a task on a group; return its epochs. With a folder, go on from the checkpoint in it."""
    checkpoints: Checkpoints = NoCheckpoints()
    if folder is not None:
        checkpoints = FolderCheckpoints(folder, rank=group.rank, keep=2)
    reporter = RecordingReporter()
    trainer = Trainer(
        run_id="toy", attempt=1, spec=spec, task=task, group=group, checkpoints=checkpoints, reporter=reporter
    )
    trainer.require_agreement()
    trainer.probe()
    trainer.run(after_epoch=trainer.resume().epoch)
    return reporter.records
