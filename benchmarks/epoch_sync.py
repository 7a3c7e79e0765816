"""What the end of an epoch costs beside one bare all_reduce: ``torchrun --nproc-per-node 2 benchmarks/epoch_sync.py``.

For 1 to 20 metrics and for a confusion matrix of 1,000 classes: the time to write what the host knows into the buffer,
reduce it and make the record of it, by the time of one all_reduce of as many bytes. torchmetrics' computing of as many
metrics stands beside it, where it is installed, with the number of its collectives. All are interleaved in one run.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import statistics
import time
import warnings
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from curvewatch_workers.batches import SamplesSeen
from curvewatch_workers.contract import Control
from curvewatch_workers.group import Group, join_torchrun, leave
from curvewatch_workers.layout import EpochLayout, LeaderNotes
from curvewatch_workers.metrics import Accuracy, ConfusionMatrix, SumMetric, as_sum_metric

Timed = Callable[[], object]


def ours(group: Group, metrics: dict[str, SumMetric]) -> tuple[Timed, int]:
    """Return the end of an epoch as the loop does it, and the bytes of its buffer."""
    layout = EpochLayout(metrics, group.world_size)
    notes = LeaderNotes(
        control=Control.CONTINUE,
        checkpoint_allowed=True,
        skipped_steps=0,
        gradient_norm=torch.zeros((), device=group.device),
    )
    seen = SamplesSeen(samples=1, checksum=1)
    buffer = layout.empty(group.device)

    def end() -> None:
        buffer.zero_()
        layout.fill(buffer, group, notes, {"train": seen, "validation": seen}, 1.0, 0)
        group.all_reduce_sum(buffer)
        layout.read(buffer, {"train": seen, "validation": seen})

    return end, 8 * layout.size


def bare(group: Group, size: int) -> Timed:
    """Return one all_reduce of so many bytes, read like any result is."""
    tensor = torch.zeros(size // 8, dtype=torch.float64, device=group.device)

    def reduce() -> Tensor:
        dist.all_reduce(tensor)
        return tensor.cpu()

    return reduce


def peers(group: Group, count: int) -> Timed:
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


def collectives(run: Timed) -> int:
    """Return how many collectives a call makes."""
    counted = 0
    kept: dict[str, Callable[..., object]] = {}

    def count(name: str) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            nonlocal counted
            counted += 1
            return kept[name](*arguments, **options)

        return call

    names = ("all_reduce", "all_gather", "barrier", "broadcast", "all_gather_object")
    for name in names:
        kept[name] = getattr(dist, name)
        setattr(dist, name, count(name))
    try:
        run()
    finally:
        for name in names:
            setattr(dist, name, kept[name])
    return counted


def medians(timed: dict[str, Timed], rounds: int) -> dict[str, float]:
    """Return the median seconds of each, interleaved in an order that changes."""
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    shuffle = random.Random(0)  # noqa: S311 - the same order on each rank
    for number in range(rounds + 5):
        names = list(timed)
        shuffle.shuffle(names)
        for name in names:
            dist.barrier()
            clock = time.perf_counter()
            timed[name]()
            if number >= 5:
                seconds[name].append(time.perf_counter() - clock)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    group = join_torchrun(gpu=options.device == "cuda")
    cases: dict[str, tuple[dict[str, SumMetric], int]] = {
        f"{count} metrics": (
            {f"metric_{number}": as_sum_metric(Accuracy()) for number in range(count)},
            count,
        )
        for count in (1, 5, 20)
    }
    cases["confusion matrix of 1,000 classes"] = ({"confusion": ConfusionMatrix(1000)}, 0)
    lines = []
    for title, (metrics, count) in cases.items():
        end, size = ours(group, metrics)
        timed: dict[str, Timed] = {"ours": end, "bare": bare(group, size), "bare again": bare(group, size)}
        if count and importlib.util.find_spec("torchmetrics"):
            timed["peer"] = peers(group, count)
        found = medians(timed, options.rounds if count else options.rounds // 4)
        made = {name: collectives(run) for name, run in timed.items()}
        peer = f"{found['peer'] / found['bare']:.1f} ({made['peer']} collectives)" if "peer" in timed else ""
        lines.append(
            f"| {title} | {size:,} | {1e6 * found['bare']:.0f} us | {found['bare again'] / found['bare']:.2f} | "
            f"{found['ours'] / found['bare']:.2f} ({made['ours']} collective) | {peer} |"
        )
    if group.rank == 0:
        print(
            f"{group.world_size} ranks on {group.device}, torch {torch.__version__}, {options.rounds} rounds\n"
        )
        print(
            "| | bytes | bare all_reduce | bare again | Curvewatch | torchmetrics |\n|---|---|---|---|---|---|"
        )
        print("\n".join(lines))
    leave()


if __name__ == "__main__":
    main()
