"""Draw the pictures of read-a-curve.md: train the examples for real, and check that each gets its verdict.

Run it from the root of the repository: `.venv/bin/python docs/howto/draw_curves.py [PATTERN...]`. It takes about a
minute on two cores, and fails if a run is diagnosed as anything but what the page says of it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from pydantic import JsonValue

from curvewatch_workers.contract import EpochRecord, read_job_spec
from curvewatch_workers.diagnosis import Curve, Diagnosis, Verdict, diagnose
from curvewatch_workers.testing import read_epochs

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "docs" / "images" / "curves"
TRAIN_COLOUR, VALIDATION_COLOUR, MARK_COLOUR = "#4c78a8", "#e45756", "#666666"


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """One picture: an example with other params, and what must be said of it."""

    verdict: Verdict
    example: str
    params: Mapping[str, JsonValue] = field(default_factory=dict)
    training: Mapping[str, JsonValue] = field(default_factory=dict)
    logarithmic: bool = False


PATTERNS = (
    Pattern(verdict=Verdict.GOOD_FIT, example="digits", training={"epochs": 25}),
    Pattern(verdict=Verdict.OVERFITTING, example="digits_overfit"),
    Pattern(
        verdict=Verdict.OVERCONFIDENT,
        example="digits_overfit",
        params={"train_samples": 100, "wrong_labels": 0.0, "learning_rate": 0.005},
        training={"epochs": 80},
    ),
    Pattern(
        verdict=Verdict.UNDERFITTING,
        example="digits_overfit",
        params={"train_samples": 1436, "wrong_labels": 0.0, "width": 2, "learning_rate": 0.01},
        training={"epochs": 60, "global_batch_size": 64},
    ),
    Pattern(
        verdict=Verdict.PLATEAU,
        example="digits",
        params={"learning_rate": 0.06, "decay": 0.3},
        training={"epochs": 25},
    ),
    Pattern(
        verdict=Verdict.SLOW_CONVERGENCE,
        example="digits",
        params={"learning_rate": 0.0005, "decay": 1.0},
        training={"epochs": 30},
    ),
    Pattern(
        verdict=Verdict.UNSTABLE,
        example="digits",
        params={"learning_rate": 0.5, "decay": 1.0},
        training={"epochs": 40},
    ),
    Pattern(
        verdict=Verdict.DIVERGING,
        example="digits",
        params={"learning_rate": 0.05, "decay": 1.2},
        training={"epochs": 30, "gradient_clip_norm": 1.0},
        logarithmic=True,
    ),
)


def run(pattern: Pattern) -> list[EpochRecord]:
    """Train the pattern's job in one process, as a user would who has no cluster."""
    folder = ROOT / "examples" / pattern.example
    job = read_job_spec(folder).model_dump(mode="json")
    job["code"]["working_dir"] = str(folder)
    job["params"] |= pattern.params
    job["training"] |= pattern.training
    with tempfile.TemporaryDirectory() as output:
        file = Path(output, "job.yaml")
        file.write_text(json.dumps(job), encoding="utf-8")
        command = [sys.executable, "-m", "curvewatch_workers.torchrun", str(file), "--output", output]
        # One thread: these nets are too small for two, and their rounding does not depend on the cores.
        one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run([*command, "--device", "cpu"], check=True, capture_output=True, env=one_thread)
        (spool,) = Path(output).glob("*/spool/*.jsonl")
        return read_epochs(spool)


def curve_of(records: list[EpochRecord]) -> Curve:
    """Return what the diagnosis reads."""
    return Curve(
        train=tuple(record.train.loss for record in records),
        validation=tuple(record.validation.loss for record in records),
        nonfinite=tuple(
            bool(record.train.nonfinite_samples + record.validation.nonfinite_samples) for record in records
        ),
        metrics={
            name: tuple(record.validation.metrics[name].value for record in records)
            for name in records[0].validation.metrics
        },
        learning_rates=tuple(record.learning_rate for record in records),
    )


def told_since(curve: Curve, verdict: Verdict) -> int:
    """Return the epoch from which every diagnosis of the run was this verdict."""
    epoch = len(curve.train)
    while epoch > 1 and diagnose(_first(curve, epoch - 1)).verdict is verdict:
        epoch -= 1
    return epoch


def _first(curve: Curve, epochs: int) -> Curve:
    return Curve(
        train=curve.train[:epochs],
        validation=curve.validation[:epochs],
        nonfinite=curve.nonfinite[:epochs],
        metrics={name: values[:epochs] for name, values in curve.metrics.items()},
        learning_rates=curve.learning_rates[:epochs],
    )


def draw(pattern: Pattern, curve: Curve, train_accuracy: list[float], path: Path) -> None:
    """Draw both losses on the left and both accuracies on the right, with the best epoch and the verdict's first."""
    figure, (losses, accuracies) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    best = curve.validation.index(min(curve.validation)) + 1
    since = told_since(curve, pattern.verdict)
    if pattern.logarithmic:
        losses.set_yscale("log")
    _lines(losses, "loss", curve.train, curve.validation)
    _lines(accuracies, "accuracy", train_accuracy, curve.metrics["accuracy"])
    losses.plot(
        [best], [curve.validation[best - 1]], "o", color=VALIDATION_COLOUR, label=f"best: epoch {best}"
    )
    for axes in (losses, accuracies):
        axes.axvline(since, color=MARK_COLOUR, linestyle=":", label=f"{pattern.verdict}: from epoch {since}")
    if not pattern.logarithmic:
        losses.set_ylim(bottom=0)
    losses.legend(frameon=False, fontsize=8)
    accuracies.set_ylim(0, 1.02)
    figure.savefig(path, dpi=100, metadata={"Software": ""})
    plt.close(figure)


def _lines(
    axes: Axes, name: str, train: tuple[float, ...] | list[float], validation: tuple[float, ...]
) -> None:
    epochs = range(1, len(train) + 1)
    axes.plot(epochs, train, color=TRAIN_COLOUR, label="train")
    axes.plot(epochs, validation, color=VALIDATION_COLOUR, label="validation")
    axes.set_xlabel("epoch")
    axes.set_ylabel(name)
    axes.spines[["top", "right"]].set_visible(False)


def report(pattern: Pattern, diagnosis: Diagnosis) -> str:
    """Return what the page quotes of a diagnosis."""
    lines = [f"{pattern.verdict} ({pattern.example}): {diagnosis.summary}"]
    lines += [f"  {evidence.rule}: {evidence.message}" for evidence in diagnosis.evidence]
    return "\n".join(lines) + "\n"


def main(names: list[str]) -> int:
    """Draw all patterns, or those that are named; return 1 when a verdict is not the one of the page."""
    mpl.use("Agg")
    IMAGES.mkdir(parents=True, exist_ok=True)
    wrong = 0
    for pattern in PATTERNS:
        if names and pattern.verdict not in names:
            continue
        records = run(pattern)
        curve = curve_of(records)
        diagnosis = diagnose(curve)
        sys.stdout.write(report(pattern, diagnosis))
        if diagnosis.verdict is not pattern.verdict:
            sys.stderr.write(f"the page says {pattern.verdict}, the diagnosis says {diagnosis.verdict}\n")
            wrong += 1
            continue
        accuracy = [record.train.metrics["accuracy"].value for record in records]
        draw(pattern, curve, accuracy, IMAGES / f"{pattern.verdict}.png")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
