"""Try a job on this machine before it is submitted: ``python -m curvewatch_workers.check job.yaml``.

Builds the task, looks at its data, takes one optimizer step as rank 0 of the job's workers and measures one
validation batch, on the CPU. Nothing is stored and nothing is sent.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from curvewatch_workers.batches import BatchPlan, IndexCounter
from curvewatch_workers.contract import SPLITS, JobSpec, SpecError, Split, read_job_spec
from curvewatch_workers.data import Batch
from curvewatch_workers.decisions import make_stopper
from curvewatch_workers.errors import TaskError, UserCodeError, user_traceback
from curvewatch_workers.feeds import MapTrainFeed, TrainFeed, ValidationFeed, train_feed, validation_feed
from curvewatch_workers.forward import Forward
from curvewatch_workers.inspection import labels_outside, shared_samples
from curvewatch_workers.layout import EpochLayout, metric_names
from curvewatch_workers.losses import Loss
from curvewatch_workers.metrics.foreign import split_metrics
from curvewatch_workers.model import batch_statistics, place, wrap
from curvewatch_workers.probe import require_smallest_share
from curvewatch_workers.ranking import require_ranking
from curvewatch_workers.seeds import seed_from
from curvewatch_workers.sources import Source, source_of_task
from curvewatch_workers.step import OptimizerStep
from curvewatch_workers.task import TrainingTask, load_task
from curvewatch_workers.testing import FakeGroup
from curvewatch_workers.totals import Totals


class Finding(BaseModel):
    """Something that would go wrong, or may."""

    model_config = ConfigDict(frozen=True)

    severity: Literal["error", "warning"]
    message: str
    traceback: str | None = None
    """Where in the user's code it happened."""


class CheckReport(BaseModel):
    """What a job is, and what would go wrong; a number is null where the check did not get that far."""

    name: str
    workers: int
    train_samples: int | None = None
    validation_samples: int | None = None
    steps_per_epoch: int | None = None
    """Optimizer steps; null for a stream, whose end is not known before it is there."""
    share_sizes: tuple[int, int] | None = None
    """Smallest and largest number of samples that the model is called with in training."""
    validation_samples_per_worker: tuple[int, int] | None = None
    parameters: int | None = None
    trainable_parameters: int | None = None
    model_bytes: int | None = None
    """Parameters and buffers."""
    gradient_bytes: int | None = None
    optimizer_bytes: int | None = None
    """State of the optimizer after one step."""
    train_loss: float | None = None
    """Of the first global batch's share of rank 0, before the step."""
    validation_loss: float | None = None
    """Of rank 0's first validation batch, after the step."""
    step_seconds: float | None = None
    findings: tuple[Finding, ...] = ()

    @property
    def good(self) -> bool:
        """Whether nothing is known that would end the run."""
        return all(finding.severity != "error" for finding in self.findings)


def check(spec: JobSpec) -> CheckReport:
    """Try a job whose code can be imported; whatever is wrong is a finding."""
    checker = _Checker(spec)
    try:
        checker.run()
    except UserCodeError as error:
        checker.find("error", str(error), error.traceback_text)
    except TaskError as error:
        checker.find("error", str(error))
    except Exception as error:  # noqa: BLE001 - the user's model, data or loss
        text = f"{checker.doing} raised {type(error).__name__}: {error}"
        checker.find("error", text, user_traceback(error))
    return checker.report.model_copy(update={"findings": tuple(checker.findings)})


class _Checker:
    """Goes as far as the job lets it."""

    def __init__(self, spec: JobSpec) -> None:
        changes = {"compile": False, "sync_batchnorm": False, "data_workers": 0}
        training = spec.training.model_copy(update=changes)
        self._spec = spec.model_copy(update={"training": training})
        self._asked_sync = spec.training.sync_batchnorm
        self._group = FakeGroup(0, spec.scaling.max_workers)
        self.report = CheckReport(name=spec.name, workers=spec.scaling.max_workers)
        self.findings: list[Finding] = []
        self.doing = "building the task"

    def find(self, severity: Literal["error", "warning"], message: str, traceback: str | None = None) -> None:
        self.findings.append(Finding(severity=severity, message=message, traceback=traceback))

    def run(self) -> None:
        spec, group = self._spec, self._group
        seed_from(spec.training.seed, 0, 0)
        task = load_task(spec)
        sums, foreign = split_metrics(task.metrics)
        names = (*metric_names(sums), *foreign)
        make_stopper(spec, names)
        require_ranking(spec.checkpoints.best, names)
        sources = {split: source_of_task(split, task, spec, group.world_size) for split in SPLITS}
        train = train_feed(sources["train"], spec.training, group)
        validation = validation_feed(sources["validation"], spec.training, group)
        self._describe_data(train, validation, sources)
        model = place(task.model, spec.training, group)
        self._describe_model(model)
        loss = Loss(task.loss, ignores_targets=task.ignores_targets)
        forward = Forward(loss, group, spec.training.precision)
        self._look_at_data(task, sources)
        if not self._goes_on:
            return  # the step would fail of the same
        if isinstance(train, MapTrainFeed):
            self.doing = "a train step on the smallest share"
            sizes = spec.scaling.possible_workers(group.world_size)
            require_smallest_share(model, forward, train, sizes)
        self._train(task, model, forward, loss, train)
        if self._goes_on:
            self._validate(model, forward, loss, validation)

    @property
    def _goes_on(self) -> bool:
        return all(finding.severity != "error" for finding in self.findings)

    def _describe_data(
        self, train: TrainFeed, validation: ValidationFeed, sources: dict[Split, Source]
    ) -> None:
        workers = self._group.world_size
        samples, measured = train.expected(1).samples, validation.expected(1).samples
        self._note(
            train_samples=samples,
            validation_samples=measured,
            validation_samples_per_worker=(measured // workers, -(-measured // workers)),
        )
        if isinstance(train, MapTrainFeed):
            plan: BatchPlan = train.plan(samples)
            sizes = plan.share_sizes(workers)
            self._note(steps_per_epoch=plan.steps, share_sizes=(min(sizes), max(sizes)))
        if measured < workers and not sources["validation"].streams:
            self.find("warning", f"{measured} validation samples leave some of {workers} workers without any")

    def _describe_model(self, model: nn.Module) -> None:
        parameters = list(model.parameters())
        trainable = [parameter for parameter in parameters if parameter.requires_grad]
        self._note(
            parameters=sum(parameter.numel() for parameter in parameters),
            trainable_parameters=sum(parameter.numel() for parameter in trainable),
            model_bytes=_bytes([*parameters, *model.buffers()]),
            gradient_bytes=_bytes(trainable),
        )
        layers = batch_statistics(model)
        if layers and self._group.world_size > 1 and not self._asked_sync:
            self.find(
                "warning",
                f"{len(layers)} BatchNorm layers ({layers[0]}, ...) take their statistics from each worker's share: "
                "the curve depends on the number of workers; set training.sync_batchnorm on GPUs, or use GroupNorm",
            )
        if self._asked_sync and self._group.world_size > 1 and not self._spec.scaling.gpus_per_worker:
            self.find(
                "error", "training.sync_batchnorm is true, but scaling.gpus_per_worker is 0: it needs GPUs"
            )

    def _look_at_data(self, task: TrainingTask, sources: dict[Split, Source]) -> None:
        self.doing = "reading samples"
        if any(source.streams for source in sources.values()):
            return
        classes = getattr(task.loss, "ignore_index", None) is not None
        if classes:
            for split, source in sources.items():
                for message in labels_outside(split, source, task):
                    self.find("error", message)
        shared = shared_samples(sources["train"], sources["validation"])
        if shared:
            self.find("warning", shared)

    def _train(
        self, task: TrainingTask, model: nn.Module, forward: Forward, loss: Loss, feed: TrainFeed
    ) -> None:
        self.doing = "the first train step"
        step = OptimizerStep(model, task.optimizer, forward, self._group, self._spec)
        totals = _totals(loss)
        seed_from(self._spec.training.seed, 1, 0)
        model.train()
        batch = next(feed.steps(1))
        clock = time.perf_counter()
        forms = wrap(model, self._spec.training, self._group)
        try:
            step.take(forms, batch, totals, IndexCounter())
        except RuntimeError as error:
            if "does not require grad" in str(error):
                raise TaskError(
                    "the loss has no gradient: it does not depend on the model's parameters, or was detached "
                    "(item(), detach(), no_grad) on its way"
                ) from error
            raise
        seconds = time.perf_counter() - clock
        state = [one for entry in task.optimizer.state.values() for one in entry.values()]
        optimizer_bytes = _bytes([one for one in state if isinstance(one, Tensor)])
        self._note(step_seconds=seconds, train_loss=_mean(totals), optimizer_bytes=optimizer_bytes)
        self._judge_loss("train", totals)
        self._judge_gradient(model)

    def _judge_gradient(self, model: nn.Module) -> None:
        trainable = {name: one for name, one in model.named_parameters() if one.requires_grad}
        unused = [name for name, one in trainable.items() if one.grad is None]
        if len(unused) == len(trainable) or not any(
            bool(one.grad.to_dense().any()) for one in trainable.values() if one.grad is not None
        ):
            self.find(
                "error", "no parameter has a gradient other than 0: the loss does not depend on the model"
            )
        elif unused and self._group.world_size > 1 and not self._spec.training.find_unused_parameters:
            self.find(
                "error",
                f"the loss does not depend on {len(unused)} parameters ({unused[0]}, ...), for which several workers "
                "would wait for ever; set training.find_unused_parameters, or take them out of the model",
            )

    def _judge_loss(self, split: Split, totals: Totals) -> None:
        spoilt = int(totals.sums[Totals.NONFINITE])
        if spoilt:
            self.find("error", f"the loss of {spoilt} {split} samples is NaN or infinite at the start")
        overlooked = int(totals.sums[Totals.OVERLOOKED])
        if overlooked:
            self.find(
                "error",
                f"the loss ignores {overlooked} {split} targets; set TrainingTask.ignores_targets=True",
            )

    def _validate(self, model: nn.Module, forward: Forward, loss: Loss, feed: ValidationFeed) -> None:
        self.doing = "the first validation batch"
        model.eval()
        totals = _totals(loss)
        with torch.inference_mode():
            batch: Batch | None = next(feed.batches(1), None)
            if batch is None:
                return
            forward(model, batch, totals)
            totals.flush()
        self._note(validation_loss=_mean(totals))
        self._judge_loss("validation", totals)

    def _note(self, **numbers: object) -> None:
        self.report = self.report.model_copy(update=numbers)


def _totals(loss: Loss) -> Totals:
    return Totals(loss, (), EpochLayout({}, 1).sums(EpochLayout({}, 1).empty(torch.device("cpu")), "train"))


def _mean(totals: Totals) -> float | None:
    totals.flush()
    loss, weight = (float(totals.sums[slot]) for slot in (Totals.LOSS_SUM, Totals.WEIGHT_SUM))
    return loss / weight if weight and math.isfinite(loss) else None


def _bytes(tensors: list[Tensor] | list[nn.Parameter]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def lines(report: CheckReport) -> Iterator[str]:
    """Yield the report as text for a person."""
    workers = f"{report.workers} worker{'s' if report.workers != 1 else ''}"
    yield f"{report.name} on {workers}"
    if report.train_samples is not None:
        yield f"  train        {report.train_samples} samples an epoch{_steps(report)}"
    if report.validation_samples_per_worker is not None:
        share = _range(report.validation_samples_per_worker)
        yield f"  validation   {report.validation_samples} samples, {share} on each worker, none twice"
    if report.parameters is not None:
        yield f"  model        {report.parameters} parameters, {report.trainable_parameters} of them trained"
    if report.optimizer_bytes is not None:
        held = (report.model_bytes or 0) + (report.gradient_bytes or 0) + report.optimizer_bytes
        yield f"  memory       {_size(held)} on each worker for model, gradient and optimizer, activations aside"
    if report.step_seconds is not None:
        yield f"  first step   loss {_loss(report.train_loss)}, {report.step_seconds:.3f} s on this CPU"
    if report.validation_loss is not None:
        yield f"  first batch  validation loss {_loss(report.validation_loss)}"
    for finding in report.findings:
        yield f"{finding.severity}: {finding.message}"
        if finding.traceback:
            yield finding.traceback.rstrip()
    yield "nothing would go wrong that this check can see" if report.good else "this job would fail"


def _steps(report: CheckReport) -> str:
    if report.steps_per_epoch is None or report.share_sizes is None:
        return ", as a stream"
    return (
        f" in {report.steps_per_epoch} steps, {_range(report.share_sizes)} samples on each worker at a time"
    )


def _range(ends: tuple[int, int]) -> str:
    return str(ends[0]) if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"


def _loss(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.6g}"


def _size(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.4g} {unit}"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code: 0, or 2 when the job would fail."""
    parser = argparse.ArgumentParser(prog="curvewatch check", description="Try a job before it is submitted.")
    parser.add_argument("job", type=Path, help="job.yaml, or its folder")
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    options = parser.parse_args(arguments)
    try:
        spec = read_job_spec(options.job)
    except SpecError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    if spec.code.task is None:
        sys.stderr.write("only jobs with code.task can be tried; run the loop of code.loop under torchrun\n")
        return 2
    folder = options.job if options.job.is_dir() else options.job.parent
    sys.path.insert(0, str((folder / spec.code.working_dir).resolve()))
    report = check(spec)
    text = report.model_dump_json(indent=2) if options.json else "\n".join(lines(report))
    sys.stdout.write(f"{text}\n")
    return 0 if report.good else 2


if __name__ == "__main__":
    sys.exit(main())
