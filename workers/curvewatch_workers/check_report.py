"""What the check of a job found, as data and as text for a person."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import BaseModel, ConfigDict

from curvewatch_workers.errors import printable, user_traceback

Severity = Literal["error", "warning"]
Ends = tuple[int, int]
"""Smallest and largest of several numbers."""


class Finding(BaseModel):
    """Something that would go wrong, or may."""

    model_config = ConfigDict(frozen=True)

    severity: Severity
    message: str
    traceback: str | None = None
    """Where in the user's code it happened."""


class WorkerShares(BaseModel):
    """What each of so many workers gets; null for a stream, whose shards are as long as they are."""

    workers: int
    train_samples: Ends | None = None
    """Samples that the model is called with in training."""
    validation_samples: Ends | None = None
    """Samples of an epoch."""


class CheckReport(BaseModel):
    """What a job is, and what would go wrong; a number is null where the check did not get that far."""

    name: str
    workers: int
    """The most, of a range."""
    epochs: int
    train_samples: int | None = None
    validation_samples: int | None = None
    steps_per_epoch: int | None = None
    """Optimizer steps, on every worker as many; null for a stream, whose end is not known before it is there."""
    shares: tuple[WorkerShares, ...] = ()
    """With the workers that the job asks for; of a range, with the fewest and with the most."""
    parameters: int | None = None
    trainable_parameters: int | None = None
    model_bytes: int | None = None
    """Parameters and buffers."""
    gradient_bytes: int | None = None
    optimizer_bytes: int | None = None
    """State of the optimizer after one step."""
    train_loss: float | None = None
    """Of one worker's share of the first global batch, before the step."""
    validation_loss: float | None = None
    """Of rank 0's first validation batch, after the step."""
    validation_metrics: dict[str, float | None] = {}
    """The metrics of the same batch; null where nothing counted."""
    step_seconds: float | None = None
    findings: tuple[Finding, ...] = ()

    @property
    def good(self) -> bool:
        """Whether nothing is known that would end the run, or make its numbers wrong."""
        return all(finding.severity != "error" for finding in self.findings)


class CheckDraft:
    """A report while it is made.

    Args:
        report: What is known from the job file.
    """

    def __init__(self, report: CheckReport) -> None:
        self._report = report
        self._findings: list[Finding] = []
        self.doing = "building the task"
        """What the user's code is called for, for the message when it raises."""

    def find(self, severity: Severity, message: str, traceback: str | None = None) -> None:
        """Add a finding."""
        self._findings.append(Finding(severity=severity, message=message, traceback=traceback))

    def find_raised(self, error: BaseException) -> None:
        """Add what the user's code raised."""
        text = printable(f"{self.doing} raised {type(error).__name__}: {error}")
        self.find("error", text, user_traceback(error))

    def note(self, **numbers: object) -> None:
        """Set fields of the report."""
        self._report = self._report.model_copy(update=numbers)

    @property
    def report(self) -> CheckReport:
        """The report so far."""
        return self._report.model_copy(update={"findings": tuple(self._findings)})


def lines(report: CheckReport) -> Iterator[str]:
    """Yield the report as text for a person."""
    fewest = min((one.workers for one in report.shares), default=report.workers)
    yield f"{report.name} on {_range((fewest, report.workers))} worker{'s' if report.workers != 1 else ''}"
    if report.train_samples is not None:
        yield _line("train", f"{report.train_samples:,} samples an epoch{_steps(report)}")
    if report.validation_samples is not None:
        yield _line("validation", f"{report.validation_samples:,} samples, none twice")
    for share in report.shares:
        yield from _share(share)
    if report.parameters is not None:
        yield _line(
            "model", f"{report.parameters:,} parameters, {report.trainable_parameters:,} of them trained"
        )
    if report.optimizer_bytes is not None:
        held = (report.model_bytes or 0) + (report.gradient_bytes or 0) + report.optimizer_bytes
        yield _line(
            "memory", f"{_size(held)} on each worker for model, gradient and optimizer, activations aside"
        )
    if report.step_seconds is not None:
        yield _line(
            "first step", f"loss {_number(report.train_loss)}, {report.step_seconds:.3f} s on this CPU"
        )
    if report.validation_loss is not None:
        metrics = [f", {name} {_number(value)}" for name, value in report.validation_metrics.items()]
        yield _line("first batch", f"validation loss {_number(report.validation_loss)}{''.join(metrics)}")
    for finding in report.findings:
        yield f"{finding.severity}: {finding.message}"
        if finding.traceback:
            yield finding.traceback.rstrip()
    yield "nothing would go wrong that this check can see" if report.good else "this job would fail"


def _line(head: str, text: str) -> str:
    return f"  {head:<13}{text}"


def _steps(report: CheckReport) -> str:
    steps = report.steps_per_epoch
    if steps is None:
        return ", as a stream"
    return f" in {steps:,} steps on every worker; {steps * report.epochs:,} steps in {report.epochs} epochs"


def _share(share: WorkerShares) -> Iterator[str]:
    parts = []
    if share.train_samples is not None:
        parts.append(f"{_range(share.train_samples)} train samples at a time")
    if share.validation_samples is not None:
        parts.append(f"{_range(share.validation_samples)} validation samples an epoch")
    if parts:
        head = f"{share.workers} worker{'s' if share.workers != 1 else ''}"
        yield _line(head, f"on each {', '.join(parts)}")


def _range(ends: Ends) -> str:
    return str(ends[0]) if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.6g}"


def _size(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.4g} {unit}"
