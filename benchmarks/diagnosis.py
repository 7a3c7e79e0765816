"""How well curves are read, epoch by epoch: ``python benchmarks/diagnosis.py [--curves FILE.jsonl.gz]``.

Every detector reads each curve as it grows, and never looks ahead. Told are, of the verdict "overfitting" at any epoch,
precision, recall and F1, and the macro F1 of both classes; of the recommended stop, how many curves keep their best
epoch (the lowest validation loss of the whole curve comes no later than the stop), how many overfit curves are stopped
before it, and how many epochs after it the stop comes.

The curves are those of the tests' own generator, of seeds that no test uses; with `--curves` also those of a file of
JSON lines, with the keys `train_loss`, `val_loss` and `label` ("overfit" or not), null standing for NaN.

The peers are written from their documents, with default settings: Keras' EarlyStopping on the validation loss;
SageMaker Debugger's rules Overfit, Overtraining and LossNotDecreasing; Spearman's correlation of both losses over the
whole history.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from curvewatch_workers.diagnosis import Curve, Verdict, diagnoses
from measuring import ROOT, setting

sys.path.insert(0, str(ROOT / "tests"))
from curve_generator import make_curve

OVERFIT = (Verdict.OVERFITTING, Verdict.OVERCONFIDENT)


class Answer(NamedTuple):
    """What a detector said of a curve; epochs from 1, None for never."""

    raised: int | None
    """First epoch at which it called the curve overfit."""
    stop: int | None
    """Epoch after which it would have stopped the run."""


@dataclass(frozen=True)
class Labelled:
    """A curve, and what it is."""

    curve: Curve
    overfit: bool

    @property
    def best(self) -> int:
        """Epoch of the lowest finite validation loss."""
        losses = [loss if math.isfinite(loss) else math.inf for loss in self.curve.validation]
        return losses.index(min(losses)) + 1


Detector = Callable[[Curve], Answer]


def curvewatch(curve: Curve) -> Answer:
    """Ask the diagnosis after every epoch."""
    raised = stop = None
    for epoch, diagnosis in enumerate(diagnoses(curve), start=1):
        if raised is None and diagnosis.verdict in OVERFIT:
            raised = epoch
        if stop is None and diagnosis.stop:
            stop = epoch
    return Answer(raised, stop)


def keras(patience: int) -> Detector:
    """EarlyStopping(monitor="val_loss", min_delta=0)."""

    def detect(curve: Curve) -> Answer:
        best, wait = math.inf, 0
        for epoch, loss in enumerate(curve.validation, 1):
            wait += 1
            if loss < best:
                best, wait = loss, 0
            if wait >= patience:
                return Answer(epoch, epoch)
        return Answer(None, None)

    return detect


def sagemaker_overfit(curve: Curve, ratio_threshold: float = 0.1, patience: int = 1) -> Answer:
    """The gap of both losses is more than a tenth of the train loss."""
    wide = 0
    for epoch, (train, validation) in enumerate(zip(curve.train, curve.validation, strict=True), 1):
        wide = wide + 1 if validation - train > ratio_threshold * abs(train) else 0
        if wide >= patience:
            return Answer(epoch, epoch)
    return Answer(None, None)


def sagemaker_overtraining(
    curve: Curve, patience_train: int = 5, patience_validation: int = 10, delta: float = 0.01
) -> Answer:
    """Neither loss has improved by more than 0.01 for 5 and 10 epochs."""
    best, since = [math.inf, math.inf], [0, 0]
    for epoch, losses in enumerate(zip(curve.train, curve.validation, strict=True), 1):
        for place, loss in enumerate(losses):
            since[place] += 1
            if loss < best[place] - delta:
                best[place], since[place] = loss, 0
        if since[0] >= patience_train and since[1] >= patience_validation:
            return Answer(epoch, epoch)
    return Answer(None, None)


def sagemaker_loss_not_decreasing(curve: Curve, num_steps: int = 10, diff_percent: float = 0.1) -> Answer:
    """The validation loss fell by less than 0.1 % over 10 epochs."""
    losses = curve.validation
    for epoch in range(num_steps + 1, len(losses) + 1):
        before, now = losses[epoch - 1 - num_steps], losses[epoch - 1]
        if not before - now >= diff_percent / 100 * abs(before):
            return Answer(epoch, epoch)
    return Answer(None, None)


def spearman(curve: Curve) -> Answer:
    """Train and validation loss are ranked against each other, from 10 epochs on."""
    for epoch in range(10, len(curve) + 1):
        train, validation = (_ranks(series[:epoch]) for series in (curve.train, curve.validation))
        if np.corrcoef(train, validation)[0, 1] < 0:
            return Answer(epoch, epoch)
    return Answer(None, None)


def _ranks(values: tuple[float, ...]) -> np.ndarray:
    return np.argsort(np.argsort(values))


DETECTORS: dict[str, Detector] = {
    "Curvewatch": curvewatch,
    **{f"Keras EarlyStopping, patience {patience}": keras(patience) for patience in (5, 10, 20)},
    "SageMaker Overfit": sagemaker_overfit,
    "SageMaker Overtraining": sagemaker_overtraining,
    "SageMaker LossNotDecreasing": sagemaker_loss_not_decreasing,
    "Spearman, whole history": spearman,
}


@dataclass
class Score:
    """What a detector made of a set of curves."""

    hits: list[tuple[bool, bool]] = field(default_factory=list)
    """Whether each curve is overfit, and was called so."""
    kept: list[bool] = field(default_factory=list)
    early: list[bool] = field(default_factory=list)
    """Of the overfit curves, whether it was stopped before its best epoch."""
    delays: list[int] = field(default_factory=list)
    seconds: float = 0.0

    def take(self, labelled: Labelled, answer: Answer) -> None:
        """Count an answer."""
        self.hits.append((labelled.overfit, answer.raised is not None))
        kept = answer.stop is None or answer.stop >= labelled.best
        self.kept.append(kept)
        if labelled.overfit:
            self.early.append(not kept)
            if answer.stop is not None and kept:
                self.delays.append(answer.stop - labelled.best)

    def row(self) -> str:
        """Return the cells of a table."""
        precision, recall, f1 = self._of(overfit=True)
        macro = (f1 + self._of(overfit=False)[2]) / 2
        early = f"{sum(self.early)} of {len(self.early)}"
        delay = f"{statistics.median(self.delays):.0f}" if self.delays else ""
        return (
            f"{precision:.2f} | {recall:.2f} | {f1:.3f} | {macro:.3f} | {100 * statistics.fmean(self.kept):.1f} % | "
            f"{early} | {delay} | {1e6 * self.seconds / len(self.hits):.0f}"
        )

    def _of(self, *, overfit: bool) -> tuple[float, float, float]:
        right = sum(is_so and called for is_so, called in self._class(overfit))
        called = sum(called for _, called in self._class(overfit))
        there = sum(is_so for is_so, _ in self._class(overfit))
        precision, recall = right / called if called else 0.0, right / there if there else 0.0
        return precision, recall, 2 * right / (called + there) if called + there else 0.0

    def _class(self, overfit: bool) -> list[tuple[bool, bool]]:
        return [(is_so == overfit, called == overfit) for is_so, called in self.hits]


def generated(epochs: int, noise: float, seeds: range) -> Iterator[Labelled]:
    """Make curves of every verdict whose losses are finite."""
    for verdict in Verdict:
        if verdict in (Verdict.NOT_FINITE, Verdict.TOO_EARLY):
            continue
        for seed in seeds:
            yield Labelled(make_curve(verdict, epochs=epochs, noise=noise, seed=seed), verdict in OVERFIT)


def read(path: Path) -> Iterator[Labelled]:
    """Read labelled curves of a file."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            yield Labelled(curve_of(row), row["label"] == "overfit")


def curve_of(row: dict[str, Any]) -> Curve:
    """Return the losses of a line, null standing for NaN."""
    train, validation = (
        tuple(math.nan if value is None else float(value) for value in row[key])
        for key in ("train_loss", "val_loss")
    )
    return Curve(train=train, validation=validation)


def table(title: str, curves: list[Labelled]) -> str:
    """Let every detector read every curve."""
    lines = [
        f"### {title}: {len(curves)} curves, {sum(one.overfit for one in curves)} overfit\n",
        "| | precision | recall | F1 | macro F1 | best epoch kept | stopped too early | delay | us a curve |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, detect in DETECTORS.items():
        score = Score()
        clock = time.perf_counter()
        for labelled in curves:
            score.take(labelled, detect(labelled.curve))
        score.seconds = time.perf_counter() - clock
        lines.append(f"| {name} | {score.row()} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Read all curves and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--curves", type=Path, help="labelled curves, JSON lines, gzipped")
    parser.add_argument("--epochs", type=int, nargs="*", default=[15, 40, 100, 200])
    parser.add_argument("--noise", type=float, nargs="*", default=[0.0, 0.02, 0.06])
    parser.add_argument("--seeds", type=int, default=40)
    options = parser.parse_args()
    print(setting())
    for epochs in options.epochs:
        for noise in options.noise:
            curves = list(generated(epochs, noise, range(10_000, 10_000 + options.seeds)))
            print(table(f"Generated, {epochs} epochs, noise of {100 * noise:.0f} %", curves))
    if options.curves:
        print(table(options.curves.name, list(read(options.curves))))


if __name__ == "__main__":
    main()
