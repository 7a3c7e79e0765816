"""How much the curve of a job depends on the number of workers: ``python benchmarks/invariance.py [JOB]``.

Trains the job (default: the digits) under torchrun with 1, 2, 3 and 4 gloo ranks and prints, for each number, the
largest relative difference of any loss of any epoch from one rank, and whether all counts are equal.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from curvewatch_workers.contract import SPLITS, EpochRecord
from curvewatch_workers.testing import read_epochs
from measuring import ROOT, setting, torchrun


def train(job: Path, ranks: int) -> list[EpochRecord]:
    """Train a job on so many ranks; return its epochs."""
    with tempfile.TemporaryDirectory() as output:
        module = ("-m", "curvewatch_workers.torchrun")
        torchrun(ranks, *module, str(job), "--output", output, "--device", "cpu")
        (spool,) = Path(output).glob("*/spool/attempt-*.jsonl")
        return read_epochs(spool)


def largest_difference(one: list[EpochRecord], other: list[EpochRecord]) -> float:
    """Return the largest relative difference of any loss of any epoch and split."""
    pairs = (
        (a.split(split).loss, b.split(split).loss)
        for a, b in zip(one, other, strict=True)
        for split in SPLITS
    )
    return max(abs(a - b) / abs(a) for a, b in pairs)


def counts_equal(one: list[EpochRecord], other: list[EpochRecord]) -> bool:
    """Tell whether all metric totals and all sample counts are the same whole numbers."""
    return all(
        a.split(split).metrics == b.split(split).metrics
        and a.split(split).samples_seen == b.split(split).samples_seen
        for a, b in zip(one, other, strict=True)
        for split in SPLITS
    )


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("job", type=Path, nargs="?", default=ROOT / "examples" / "digits")
    job = parser.parse_args().job
    alone = train(job, 1)
    print(f"{setting()}{job.name}, {len(alone)} epochs.\n")
    print("| workers | largest relative difference of a loss | counts equal |")
    print("|---|---|---|")
    for ranks in (2, 3, 4):
        other = train(job, ranks)
        print(f"| {ranks} | {largest_difference(alone, other):.1e} | {counts_equal(alone, other)} |")


if __name__ == "__main__":
    main()
