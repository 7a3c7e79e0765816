"""What the end of an epoch costs beside one bare all_reduce: ``torchrun --nproc-per-node 2 benchmarks/epoch_sync.py``.

For 1 to 20 metrics and for a confusion matrix of 1,000 classes: the time to write what the host knows into the buffer,
reduce it and have it on the host, by the time of one all_reduce of as many bytes, and the same with the record that is
made of it and checked. Beside it stands what peers do at the end of an epoch with as many metrics, where they are
installed, with the number of their collectives. All are interleaved in one run.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections.abc import Callable
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from curvewatch_workers.batches import SamplesSeen
from curvewatch_workers.contract import Control
from curvewatch_workers.cost import RankCost
from curvewatch_workers.epoch_buffer import EpochBuffer, LeaderNotes
from curvewatch_workers.group import Group, join_torchrun, leave
from curvewatch_workers.metrics import Accuracy, ConfusionMatrix, SumMetric, as_sum_metric
from measuring import installed, interleaved, seconds_of, setting

Call = Callable[[], object]

OURS = "Curvewatch"

COLLECTIVES = (
    "all_reduce",
    "all_gather",
    "all_gather_into_tensor",
    "all_gather_object",
    "barrier",
    "broadcast",
    "broadcast_object_list",
)


def ours(group: Group, metrics: dict[str, SumMetric]) -> tuple[dict[str, Call], int]:
    """Return the end of an epoch as the loop does it, without and with the record, and the bytes of its buffer."""
    buffer = EpochBuffer(metrics, group)
    notes = LeaderNotes(
        control=Control.CONTINUE,
        checkpoint_allowed=True,
        skipped_steps=0,
        gradient_norm=torch.zeros((), device=group.device),
    )
    seen = SamplesSeen(samples=1, checksum=1)

    # Nothing is added to the sums here, so that they need not be set back to zero.
    def sync() -> Tensor:
        buffer.fill(notes, {"train": seen, "validation": seen}, RankCost(1.0, 0.0, 0))
        buffer.reduce()
        return buffer.values.cpu()

    def sync_and_record() -> None:
        sync()
        buffer.read({"train": seen, "validation": seen})

    return {OURS: sync, f"{OURS}, with its record": sync_and_record}, buffer.values.nbytes


def bare(group: Group, size: int) -> Call:
    """Return one all_reduce of so many bytes, read like any result is."""
    tensor = torch.zeros(size // 8, dtype=torch.float64, device=group.device)

    def reduce() -> Tensor:
        dist.all_reduce(tensor)
        return tensor.cpu()

    return reduce


def torchmetrics_ends(group: Group, count: int) -> Call:
    """Return torchmetrics' computing of so many metrics."""
    from torchmetrics import MeanMetric

    metrics = [MeanMetric().to(group.device) for _ in range(count)]
    for metric in metrics:
        metric.update(torch.ones((), device=group.device))

    def compute() -> None:
        for metric in metrics:
            float(metric.compute())
            metric._computed = None  # it would answer from memory

    return compute


def lightning_ends(group: Group, count: int) -> Call:
    """Return what Lightning does at the end of an epoch with so many values of `self.log(sync_dist=True)`.

    They are logged into the collection that `LightningModule.log` logs into, with the same reduction; a trainer adds
    nothing to it but its hooks.
    """
    from lightning.pytorch.strategies import DDPStrategy
    from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultCollection

    results = _ResultCollection(training=True)
    for number in range(count):
        results.log(
            "training_step",
            f"metric_{number}",
            torch.ones((), device=group.device),
            sync_dist=True,
            sync_dist_fn=DDPStrategy().reduce,
            batch_size=1,
        )

    def compute() -> None:
        for value in results.metrics(on_step=False)["log"].values():
            float(value)
        for metric in results.result_metrics:
            metric._computed = None  # it would answer from memory

    return compute


def accelerate_gathers(group: Group, count: int) -> Call:
    """Return Accelerate's `gather_for_metrics` of so many numbers, in one call."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=group.device.type == "cpu")
    values = tuple(torch.ones(1, device=group.device) for _ in range(count))

    def gather() -> None:
        for value in accelerator.gather_for_metrics(values):
            float(value.mean())

    return gather


def accelerate_reduces(group: Group, count: int) -> Call:
    """Return Accelerate's `reduce` of sum and count of so many metrics, one by one."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=group.device.type == "cpu")
    values = [torch.ones(2, device=group.device) for _ in range(count)]

    def reduce() -> None:
        for value in values:
            total, number = accelerator.reduce(value, reduction="sum").tolist()
            float(total / number)

    return reduce


PEERS: dict[str, tuple[str, Callable[[Group, int], Call]]] = {
    "torchmetrics, compute": ("torchmetrics", torchmetrics_ends),
    "Lightning, self.log(sync_dist=True)": ("lightning", lightning_ends),
    "Accelerate, gather_for_metrics": ("accelerate", accelerate_gathers),
    "Accelerate, reduce": ("accelerate", accelerate_reduces),
}
"""Of each peer, the package and how to make its end of an epoch."""


def collectives(run: Call) -> int:
    """Return how many collectives a call makes."""
    counted = 0
    kept: dict[str, Callable[..., object]] = {}

    def count(name: str) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            nonlocal counted
            counted += 1
            return kept[name](*arguments, **options)

        return call

    for name in COLLECTIVES:
        kept[name] = getattr(dist, name)
        setattr(dist, name, count(name))
    try:
        run()
    finally:
        for name in COLLECTIVES:
            setattr(dist, name, kept[name])
    return counted


def row(
    group: Group, title: str, metrics: dict[str, SumMetric], peers: dict[str, Call], rounds: int
) -> list[str]:
    """Measure an end of an epoch and its peers; return the cells of the table."""
    own, size = ours(group, metrics)
    measured = own | peers
    calls: dict[str, Call] = {"bare": bare(group, size), "bare again": bare(group, size), **measured}
    timed = {name: partial(seconds_of, call, group.device, until_all=False) for name, call in calls.items()}
    seconds = interleaved(timed, rounds=rounds, warm_up=5)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    cells = [title, f"{size:,}", f"{1e6 * median['bare']:.0f} us"]
    cells.append(f"{median['bare again'] / median['bare']:.2f}")
    cells += [f"{median[name] / median['bare']:.2f} ({collectives(calls[name])})" for name in measured]
    return cells


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    group = join_torchrun(gpu=options.device == "cuda")
    makers = {name: make for name, (package, make) in PEERS.items() if installed(package)}
    rows = []
    for count in (1, 5, 20):
        metrics = {f"metric_{number}": as_sum_metric(Accuracy()) for number in range(count)}
        peers = {name: make(group, count) for name, make in makers.items()}
        rows.append(
            row(group, f"{count} metrics" if count > 1 else "1 metric", metrics, peers, options.rounds)
        )
    # No peer's mean of a number compares with a matrix.
    confusion: dict[str, SumMetric] = {"confusion": ConfusionMatrix(1000)}
    large = row(group, "confusion matrix of 1,000 classes", confusion, {}, max(1, options.rounds // 4))
    rows.append([*large, *[""] * len(makers)])
    if group.rank == 0:
        print(setting(*dict.fromkeys(package for package, _ in PEERS.values())))
        print(
            f"{group.world_size} ranks on {group.device}; medians of {options.rounds} rounds, by that of the bare "
            "all_reduce; in brackets the number of collectives.\n"
        )
        names = ["", "bytes", "bare all_reduce", "bare again", OURS, f"{OURS}, with its record", *makers]
        print(f"| {' | '.join(names)} |\n|{'---|' * len(names)}")
        for cells in rows:
            print(f"| {' | '.join(cells)} |")
    leave()


if __name__ == "__main__":
    main()
