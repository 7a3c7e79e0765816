"""What a stop saves and what it harms, on really trained runs: ``python benchmarks/stopping.py RUNS.jsonl.gz``.

`real_runs.py` trains them. Of the runs of a search over optimizers each workload has a target: the lowest validation
loss that 12.5 % (or 30 %) of its runs reach. A stop harms a run that would have reached it later; it saves the
evaluations after it of a run that never does. Harm is told by all runs, savings by all evaluations of the runs that
never reach the target.

Of the teaching runs, labelled by a large held-out set, the table is that of `diagnosis.py`.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
from collections import defaultdict
from pathlib import Path

from curvewatch_workers.diagnosis import Curve
from diagnosis import DETECTORS, Labelled, curve_of, table
from measuring import setting

SHARES = (0.125, 0.3)
"""Of a workload's runs, those that reach its target."""


def lowest(curve: Curve) -> float:
    """Return the lowest finite validation loss."""
    return min((loss for loss in curve.validation if math.isfinite(loss)), default=math.inf)


def reached(curves: list[Curve], share: float) -> list[int | None]:
    """Return the first epoch at which each run of a workload is at its target; None for never."""
    target = sorted(map(lowest, curves))[int(share * len(curves))]
    return [
        next((epoch for epoch, loss in enumerate(curve.validation, 1) if loss <= target), None)
        for curve in curves
    ]


def search_table(workloads: dict[str, list[Curve]]) -> str:
    """Let every detector stop every run."""
    head = " | ".join(f"harm, target of {share:.1%} | saved" for share in SHARES)
    lines = [f"| | {head} |", "|---|" + "---|" * 2 * len(SHARES)]
    for name, detect in DETECTORS.items():
        cells = []
        stops = {workload: [detect(curve).stop for curve in curves] for workload, curves in workloads.items()}
        for share in SHARES:
            harmed = runs = saved = hopeless = 0
            for workload, curves in workloads.items():
                for curve, at, stop in zip(curves, reached(curves, share), stops[workload], strict=True):
                    runs += 1
                    harmed += at is not None and stop is not None and stop < at
                    hopeless += len(curve) if at is None else 0
                    saved += len(curve) - stop if at is None and stop is not None else 0
            cells += [f"{harmed / runs:.2%} ({harmed})", f"{saved / hopeless:.1%}"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Read the runs and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path)
    options = parser.parse_args()
    workloads: dict[str, list[Curve]] = defaultdict(list)
    teaching: list[Labelled] = []
    with gzip.open(options.runs, "rt", encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            if row["kind"] == "search":
                workloads[row["workload"]].append(curve_of(row))
            elif row["label"] != "unclear":
                teaching.append(Labelled(curve_of(row), row["label"] == "overfit"))
    names = sorted(workloads)
    for title, chosen in (("First half", names[::2]), ("Second half", names[1::2])):
        count = sum(len(workloads[name]) for name in chosen)
        print(f"### {title} of the workloads ({', '.join(chosen)}): {count} runs\n")
        print(search_table({name: workloads[name] for name in chosen}))
    print(table("Teaching runs of 5 to 50 epochs", teaching))
    print(setting())


if __name__ == "__main__":
    main()
