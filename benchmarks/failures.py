"""Whether a run survives the death of any of its parts: ``python benchmarks/failures.py [--each 20]``.

Trains one job undisturbed, then again and again with a worker, Ray Train's controller or the job's driver killed
(SIGKILL) at a moment drawn from a seed over the run's progress, and compares each curve with the undisturbed one.
Prints a line for each run as it ends, and exits with 1 if any curve differs.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import ray
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from failure_support import EPOCHS, SAMPLES, Finished, Moment, Part, Range, require_same_curve  # noqa: E402
from ray_support import ServiceProcess  # noqa: E402


def try_moment(line: Range, undisturbed: Finished, moment: Moment) -> tuple[bool, str]:
    """Kill at one moment; return whether the curve is the same, and the line of the table."""
    started = time.monotonic()
    try:
        disturbed = line.disturbed(moment)
        difference = require_same_curve(undisturbed, disturbed)
    except Exception as error:  # noqa: BLE001 - one run that goes wrong is a result
        text = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        return False, f"| {moment.part} | {moment.seed} | {moment.samples} | | {text} | |"
    replaced = len(disturbed.kept) - len(disturbed.epochs)
    told, seconds = disturbed.count(moment.part.told_as), time.monotonic() - started
    starts = f"{disturbed.run.attempt} | {replaced} | {told}"
    return (
        True,
        f"| {moment.part} | {moment.seed} | {moment.samples} | {starts} | {difference:.1e} | {seconds:.0f} |",
    )


def measure(line: Range, moments: list[Moment], lanes: int) -> Iterator[bool]:
    """Go through the moments, some at a time; yield for each whether the curve is the same."""
    undisturbed = line.undisturbed()
    with ThreadPoolExecutor(lanes) as pool:
        for ended in as_completed([pool.submit(try_moment, line, undisturbed, moment) for moment in moments]):
            same, text = ended.result()
            show(text)
            yield same


def show(text: str) -> None:
    """Print a line at once: a run takes a minute."""
    print(text, flush=True)


def main() -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--each", type=int, default=20, help="moments for each part")
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--lanes", type=int, default=2, help="jobs at a time")
    options = parser.parse_args()
    seeds = range(options.first_seed, options.first_seed + options.each)
    moments = [Moment(part=part, seed=seed) for seed in seeds for part in Part]
    show(f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}, ray {ray.__version__}")
    show(
        f"{EPOCHS} epochs of {SAMPLES} train samples on 2 workers, seeds {seeds.start} to {seeds.stop - 1}\n"
    )
    show(
        "| killed | seed | after samples | attempts | replaced epochs | deaths told | difference | seconds |"
    )
    show("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        service = ServiceProcess(Path(folder))
        try:
            service.start_with_ray()
            line = Range(service, ROOT / "examples" / "digits", Path(folder))
            same = list(measure(line, moments, options.lanes))
        finally:
            service.destroy()
    show(f"\n{sum(same)} of {len(moments)} curves are the undisturbed one.")
    return 0 if all(same) else 1


if __name__ == "__main__":
    sys.exit(main())
