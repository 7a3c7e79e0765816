"""What metrics cost in training and validation: ``torchrun --nproc-per-node 2 benchmarks/metric_cost.py``.

A small MLP that exaggerates the cost, and a convnet. Every variant goes over the same tensors with its own way to loss
and accuracy, in the same DDP loop or, for Lightning, in Lightning's own; their epochs are interleaved in one run, in an
order that changes from round to round. Each round gives one ratio to the loop with no metrics of the same round; the
table has the median and the quartiles. The row "nothing again" is the loop against itself, and shows the noise.
What logging costs in Lightning is its ratio to Lightning with nothing logged, in the last table.

Peers that are not installed are left out, and said so.
"""

from __future__ import annotations

import argparse
import warnings
from functools import partial

import torch
from torch import nn

from curvewatch_workers.batches import SamplesSeen
from curvewatch_workers.contract import Control
from curvewatch_workers.cost import RankCost
from curvewatch_workers.epoch_buffer import EpochBuffer, LeaderNotes
from curvewatch_workers.group import Group, join_torchrun, leave
from curvewatch_workers.losses import Loss
from curvewatch_workers.metrics import Accuracy, as_sum_metric
from curvewatch_workers.totals import Totals
from measuring import interleaved, ratios, setting
from peers import LIGHTNING, LIGHTNING_LOGS, PACKAGES, peers
from workload import Stage, Variant, Work, convnet, mlp

STAGES: tuple[Stage, ...] = ("train", "validate")

Seconds = dict[Stage, dict[str, list[float]]]
"""For each stage and variant, the seconds of each round."""


class Ours(Variant):
    """Curvewatch: per-sample losses and accuracy, summed on the device, one reduction at the end."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self._metrics = {"accuracy": as_sum_metric(Accuracy())}
        self._loss = Loss(nn.CrossEntropyLoss())
        self._buffer = EpochBuffer(self._metrics, group)
        self._totals = Totals(self._loss, tuple(self._metrics.values()), self._buffer.sums("train"))

    def train(self, work: Work) -> None:
        """Train and sum."""
        self._buffer.clear()
        size = len(work.train[0][1])
        factors = torch.full((size,), 1 / size, device=work.device)
        for inputs, targets in work.train:
            outputs = work.wrapped(inputs)
            loss = self._loss(outputs, targets)
            self._totals.add(loss, outputs, targets)
            work.step(loss.sums, factors)
        self._end()

    @torch.no_grad()
    def validate(self, work: Work) -> None:
        """Validate and sum."""
        self._buffer.clear()
        for inputs, targets in work.validation:
            self._totals.measure(work.model(inputs), targets)
        self._end()

    def _end(self) -> None:
        """Reduce and read the buffer as the loop does."""
        self._totals.flush()
        notes = LeaderNotes(
            control=Control.CONTINUE,
            checkpoint_allowed=True,
            skipped_steps=0,
            gradient_norm=torch.zeros((), device=self._buffer.values.device),
        )
        seen = SamplesSeen(samples=1, checksum=1)
        self._buffer.fill(notes, {"train": seen, "validation": seen}, RankCost(1.0, 0.0, 0))
        self._buffer.reduce()
        self._buffer.read({"train": seen, "validation": seen})


def measure(work: Work, variants: dict[str, Variant], rounds: int) -> Seconds:
    """Return the seconds of each variant in each round."""
    return {
        stage: interleaved(
            {name: partial(variant.seconds, work, stage) for name, variant in variants.items()},
            rounds=rounds,
            warm_up=2,
        )
        for stage in STAGES
    }


def table(seconds: Seconds, base: str, names: list[str]) -> str:
    """Return the ratios to a variant as a table."""
    lines = [f"| by the time of “{base}” | training epoch | validation pass |", "|---|---|---|"]
    lines += [
        f"| {name} | {' | '.join(str(ratios(seconds[stage], name, base)) for stage in STAGES)} |"
        for name in names
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument(
        "--only", nargs="*", metavar="NAME", help="measure these variants alone, and nothing itself"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    group = join_torchrun(gpu=options.device == "cuda")
    variants: dict[str, Variant] = {
        "nothing": Variant(),
        "nothing again": Variant(),
        "Curvewatch": Ours(group),
        **peers(group, classes=10),
    }
    if options.only is not None:
        unknown = set(options.only) - variants.keys()
        if unknown:
            parser.error(f"--only: unknown {sorted(unknown)}; there are {', '.join(variants)}")
        variants = {name: variants[name] for name in ("nothing", "nothing again", *options.only)}
    works: dict[str, Work] = {
        "MLP of 9,610 parameters, 400 batches of 64": mlp(group, steps=400, batch=64),
        "convnet of 56,714 parameters, 16 batches of 32": convnet(group, steps=16, batch=32),
    }
    measured = {title: measure(work, variants, options.rounds) for title, work in works.items()}
    if group.rank == 0:
        print(setting(*PACKAGES))
        print(f"{group.world_size} ranks on {group.device}; median and quartiles of {options.rounds} rounds.")
        for title, seconds in measured.items():
            print(f"\n### {title}\n\n{table(seconds, 'nothing', list(variants)[1:])}")
            if LIGHTNING in variants:
                print(f"\n{table(seconds, LIGHTNING, [LIGHTNING_LOGS])}")
    leave()


if __name__ == "__main__":
    main()
