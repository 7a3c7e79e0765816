"""How often each of the ten verdicts is right, and how often a run that is well is called ill.

``python benchmarks/verdicts.py [--seeds N]``. The first table takes curves of the tests' generator, of seeds that no
test uses, from 1 to 1,000 epochs, and asks for the verdict on each whole curve: precision, recall and F1 of each, for
each level of noise. The second takes runs that end well, of shapes that no rule was made for, and asks after every
epoch: of a hundred runs, so many were called ill at any of them. Slow convergence is no false alarm of a run that takes
50 epochs to come down, as long as it has not: it is counted all the same.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from curve_generator import LENGTHS, make_curve
from curvewatch_workers.diagnosis import Curve, Verdict, diagnose, diagnoses
from measuring import setting

NOISES: Final = (0.0, 0.01, 0.02, 0.04, 0.06)
SHAPES: Final[dict[str, Callable[[int], float]]] = {
    "exponential, 3 epochs": lambda epoch: math.exp(-epoch / 3),
    "exponential, 8 epochs": lambda epoch: math.exp(-epoch / 8),
    "exponential, 20 epochs": lambda epoch: math.exp(-epoch / 20),
    "exponential, 50 epochs": lambda epoch: math.exp(-epoch / 50),
    "inverse": lambda epoch: 1 / (1 + epoch),
    "inverse root": lambda epoch: 1 / math.sqrt(1 + epoch),
    "late start": lambda epoch: 1 / (1 + math.exp((epoch - 10) / 2)),
    "drop at epoch 20": lambda epoch: math.exp(-epoch / 8) if epoch < 20 else 0.3 * math.exp(-20 / 8),
}
"""What is left of the loss after so many epochs, from 1 towards 0."""
KINDS: Final = ("white", "heavy tails", "autocorrelated", "shrinking")
ALARMS: Final = (
    (Verdict.OVERFITTING, Verdict.OVERCONFIDENT),
    (Verdict.DIVERGING,),
    (Verdict.UNSTABLE,),
    (Verdict.UNDERFITTING,),
    (Verdict.PLATEAU,),
    (Verdict.SLOW_CONVERGENCE,),
)


def scores(noise: float, seeds: range) -> dict[Verdict, tuple[float, float, float]]:
    """Return precision, recall and F1 of each verdict on whole curves."""
    right: Counter[Verdict] = Counter()
    there: Counter[Verdict] = Counter()
    called: Counter[Verdict] = Counter()
    for verdict, lengths in LENGTHS.items():
        for epochs in lengths:
            for seed in seeds:
                said = diagnose(make_curve(verdict, epochs=epochs, noise=noise, seed=seed)).verdict
                there[verdict] += 1
                called[said] += 1
                right[verdict] += said is verdict
    return {
        verdict: (
            right[verdict] / max(called[verdict], 1),
            right[verdict] / there[verdict],
            2 * right[verdict] / (called[verdict] + there[verdict]),
        )
        for verdict in LENGTHS
    }


def noises(kind: str, size: float, epochs: int, rng: random.Random) -> Iterator[float]:
    """Yield the noise of each epoch, relative to the loss, with a standard deviation of about `size`."""
    before = 0.0
    for epoch in range(epochs):
        drawn = rng.gauss(0, 1)
        if kind == "heavy tails" and rng.random() < 0.05:
            drawn *= 4
        elif kind == "autocorrelated":
            drawn = before = 0.6 * before + 0.8 * drawn
        elif kind == "shrinking":
            drawn *= 2 * (1 - epoch / epochs)
        yield size * drawn


def good_run(shape: Callable[[int], float], kind: str, noise: float, epochs: int, seed: str) -> Curve:
    """Make a run that comes down and rests; train loss has half of the noise."""
    rng = random.Random(seed)
    floor, gap = rng.uniform(0.02, 0.15), rng.uniform(0, 0.1)
    train = [floor + (1 - floor) * shape(epoch) for epoch in range(epochs)]
    validation = [loss + gap * (1 - shape(epoch)) for epoch, loss in enumerate(train)]
    return Curve(
        train=tuple(
            loss * (1 + part) for loss, part in zip(train, noises(kind, noise / 2, epochs, rng), strict=True)
        ),
        validation=tuple(
            loss * (1 + part) for loss, part in zip(validation, noises(kind, noise, epochs, rng), strict=True)
        ),
    )


def alarms(kind: str, noise: float, seeds: range) -> list[float]:
    """Return for each alarm the share of good runs in which it was raised at any epoch; last the share stopped."""
    raised: Counter[tuple[Verdict, ...]] = Counter()
    stopped = runs = 0
    for name, shape in SHAPES.items():
        for epochs in (15, 60, 200):
            for seed in seeds:
                said = list(
                    diagnoses(good_run(shape, kind, noise, epochs, f"{kind}/{noise}/{name}/{epochs}/{seed}"))
                )
                verdicts = {one.verdict for one in said}
                runs += 1
                stopped += any(one.stop for one in said)
                for alarm in ALARMS:
                    raised[alarm] += not verdicts.isdisjoint(alarm)
    return [*(raised[alarm] / runs for alarm in ALARMS), stopped / runs]


def main() -> None:
    """Read all curves and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=40)
    options = parser.parse_args()
    seeds = range(20_000, 20_000 + options.seeds)
    print(setting())
    print("### Precision, recall and F1 of each verdict\n")
    print("| verdict | " + " | ".join(f"noise {100 * noise:g} %" for noise in NOISES) + " |")
    print("|---|" + "---|" * len(NOISES))
    found = [scores(noise, seeds) for noise in NOISES]
    for verdict in LENGTHS:
        cells = (f"{one[verdict][0]:.2f} {one[verdict][1]:.2f} **{one[verdict][2]:.3f}**" for one in found)
        print(f"| {verdict} | " + " | ".join(cells) + " |")
    print("\n### Runs that end well, of 100, that were called ill at any epoch\n")
    names = [" or ".join(map(str, alarm)) for alarm in ALARMS]
    print("| noise | " + " | ".join(names) + " | stopped |")
    print("|---|" + "---|" * (len(ALARMS) + 1))
    for kind in KINDS:
        for noise in (0.0, 0.01, 0.03, 0.05) if kind == KINDS[0] else (0.03, 0.05):
            cells = (f"{100 * share:.1f}" for share in alarms(kind, noise, seeds))
            print(f"| {kind}, {100 * noise:g} % | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
