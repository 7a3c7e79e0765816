"""Try a job on this machine before it is submitted: ``python -m curvewatch_workers.check job.yaml``.

Builds the task, looks at its data, takes optimizer steps as one of the job's workers and measures validation batches,
on the CPU. Nothing is stored and nothing is sent.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from curvewatch_workers.check_report import CheckDraft, CheckReport, Ends, WorkerShares, lines
from curvewatch_workers.contract import SPLITS, JobSpec, SpecError, Split, read_job_spec
from curvewatch_workers.decisions import make_stopper
from curvewatch_workers.epoch_buffer import metric_names
from curvewatch_workers.errors import TaskError, UserCodeError
from curvewatch_workers.feeds import MapTrainFeed, TrainFeed, train_feed, validation_feed
from curvewatch_workers.given_metrics import split_metrics
from curvewatch_workers.inspection import (
    first_samples,
    labels_outside,
    require_disjoint_shards,
    require_length,
    shard_lengths,
    shared_samples,
)
from curvewatch_workers.losses import ignored_target
from curvewatch_workers.model import batch_statistics
from curvewatch_workers.ranking import require_ranking
from curvewatch_workers.seeds import seed_from
from curvewatch_workers.sources import Source, source_of_task
from curvewatch_workers.task import TrainingTask, load_task
from curvewatch_workers.testing import FakeGroup
from curvewatch_workers.trial import Trial, describe_model


def check(spec: JobSpec) -> CheckReport:
    """Try a job whose code can be imported; whatever is wrong is a finding."""
    checker = _Checker(spec)
    draft = checker.draft
    try:
        checker.run()
    except UserCodeError as error:
        draft.find("error", str(error), error.traceback_text)
    except TaskError as error:
        draft.find("error", str(error))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the user's model, data or loss
        draft.find_raised(error)
    return draft.report


class _Checker:
    """Goes as far as the job lets it."""

    def __init__(self, spec: JobSpec) -> None:
        changes = {"compile": False, "sync_batchnorm": False, "data_workers": 0}
        training = spec.training.model_copy(update=changes)
        self._spec = spec.model_copy(update={"training": training})
        self._asked_sync = spec.training.sync_batchnorm
        self._workers = spec.scaling.max_workers
        self._sizes = spec.scaling.possible_workers(self._workers)
        self.draft = CheckDraft(
            CheckReport(name=spec.name, workers=self._workers, epochs=spec.training.epochs)
        )

    def run(self) -> None:
        spec, workers = self._spec, self._workers
        seed_from(spec.training.seed, 0, 0)
        task = load_task(spec)
        sums, foreign = split_metrics(task.metrics, ignored_target(task.loss))
        names = (*metric_names(sums), *foreign)
        make_stopper(spec, names)
        require_ranking(spec.checkpoints.best, names)
        sources = {split: _in_this_process(source_of_task(split, task, spec, workers)) for split in SPLITS}
        for source in sources.values():
            self._look_at_length(source)
        # Of a global batch smaller than the group the last rank has a sample; the first may have none.
        last = FakeGroup(workers - 1, workers)
        feed = train_feed(sources["train"], spec.training, last)
        self._describe_data(sources, feed)
        self._look_at_schedule(task, sources["train"])
        trial = Trial(task, spec, last, self.draft)
        describe_model(trial.model, task, self.draft)
        self._look_at_batch_statistics(trial)
        self._look_at_samples(task, sources, trial)
        if self.draft.report.good:  # else the step would fail of the same
            self._try(trial, feed, sources["validation"])

    def _look_at_length(self, source: Source) -> None:
        self.draft.doing = f"reading samples of TrainingTask.{source.split}"
        if not source.streams:
            require_length(source)
            return
        require_disjoint_shards(source)
        shards = max(self._workers, 2)
        lengths = shard_lengths(source, shards)
        if lengths is None:
            return
        if source.split == "train" and not all(lengths[: self._workers]):
            self.draft.find(
                "error",
                f"TrainingTask.train: the shards of {lengths.count(0)} of {self._workers} workers hold no sample; "
                "each worker must have one at least: take fewer workers",
            )
        if sum(lengths) != source.size:
            more = " or more" if max(lengths) > source.size else ""
            self.draft.find(
                "warning",
                f"TrainingTask.{source.split} has a length of {source.size}, but its {shards} shards hold "
                f"{sum(lengths)} samples{more}: no receipt will be exact; make __len__ the samples of all shards",
            )

    def _describe_data(self, sources: dict[Split, Source], feed: TrainFeed) -> None:
        measured = self._measured(sources["validation"])
        samples = feed.expected(1).samples
        plan = feed.plan(samples) if isinstance(feed, MapTrainFeed) else None
        streams = sources["validation"].streams
        self.draft.note(
            train_samples=samples,
            validation_samples=measured,
            steps_per_epoch=plan.steps if plan else None,
            shares=tuple(
                WorkerShares(
                    workers=workers,
                    train_samples=_ends(plan.share_sizes(workers)) if plan else None,
                    validation_samples=None if streams else _ends(_shard_sizes(measured, workers)),
                )
                for workers in sorted({min(self._sizes), max(self._sizes)})
            ),
        )
        if measured < self._workers and not streams:
            self.draft.find(
                "warning", f"{measured} validation samples leave some of {self._workers} workers without any"
            )

    def _measured(self, source: Source) -> int:
        return validation_feed(source, self._spec.training, FakeGroup(0, self._workers)).expected(1).samples

    def _look_at_schedule(self, task: TrainingTask, train: Source) -> None:
        schedule, training = task.scheduler, self._spec.training
        if not isinstance(schedule, OneCycleLR):
            return
        # Of a stream no fewer: a step takes a global batch at the most.
        steps = self.draft.report.steps_per_epoch or -(-train.size // training.global_batch_size)
        moves = training.epochs * (steps if task.scheduler_step == "step" else 1)
        planned = int(schedule.total_steps)
        what = f"TrainingTask.scheduler: OneCycleLR has total_steps {planned}, and this job moves it {moves} times"
        if moves > planned:
            self.draft.find("error", f"{what}, which raises in the middle of the run; make it {moves}")
        elif moves < planned and task.scheduler_step == "epoch":
            self.draft.find(
                "warning", f"{what}, once an epoch; set scheduler_step='step', or make it {moves}"
            )

    def _look_at_batch_statistics(self, trial: Trial) -> None:
        layers = batch_statistics(trial.model)
        if layers and self._workers > 1 and not self._asked_sync:
            self.draft.find(
                "warning",
                f"{len(layers)} BatchNorm layers ({layers[0]}, ...) take their statistics from each worker's share: "
                "the curve depends on the number of workers; set training.sync_batchnorm on GPUs, or use GroupNorm",
            )
        if self._asked_sync and self._workers > 1 and not self._spec.scaling.gpus_per_worker:
            self.draft.find(
                "error", "training.sync_batchnorm is true, but scaling.gpus_per_worker is 0: it needs GPUs"
            )

    def _look_at_samples(self, task: TrainingTask, sources: dict[Split, Source], trial: Trial) -> None:
        if any(source.streams for source in sources.values()):
            return
        # Only of these it is known where in the outputs the classes are.
        if isinstance(task.loss, nn.CrossEntropyLoss | nn.NLLLoss):
            for source in sources.values():
                self.draft.doing = f"reading samples of TrainingTask.{source.split}"
                message = labels_outside(source, task.loss.ignore_index, trial.classes_of)
                if message:
                    self.draft.find("error", message)
        self.draft.doing = "reading samples"
        shared = shared_samples(sources["train"], sources["validation"])
        if shared:
            self.draft.find("warning", shared)

    def _try(self, trial: Trial, feed: TrainFeed, validation: Source) -> None:
        if isinstance(feed, MapTrainFeed):
            trial.try_smallest_share(feed)
        self.draft.doing = "reading the first train batch"
        seed_from(self._spec.training.seed, 1, 0)
        batch = next(feed.steps(1))
        trial.train(batch)
        if not self.draft.report.good:
            return
        shares = self.draft.report.shares
        trial.try_train_metrics(
            batch.micro_batches[-1],
            empty=any(one.train_samples and not one.train_samples[0] for one in shares),
        )
        self.draft.doing = "reading the first validation batch"
        # Of a shard shorter than others, the last rank may have no sample.
        own = validation_feed(validation, self._spec.training, FakeGroup(0, self._workers))
        measured = next(iter(own.batches(1)), None)
        if measured is None:
            return
        trial.validate(measured)
        if not validation.streams:
            rows, workers = self._smallest_batch(validation)
            if rows < measured.samples:
                trial.try_last_batch(first_samples(validation, rows), workers)

    def _smallest_batch(self, source: Source) -> tuple[int, int]:
        """Return the samples of the smallest validation batch of any rank, and of how many ranks."""
        samples, training = self._measured(source), self._spec.training
        smallest = []
        for workers in self._sizes:
            size = source.batch_size or -(-training.global_batch_size // (workers * training.micro_batches))
            lengths = (length for length in _shard_sizes(samples, workers) if length)
            smallest.append((min(length % size or size for length in lengths), workers))
        return min(smallest)


def _in_this_process(source: Source) -> Source:
    """Return it without the processes of a user's DataLoader: what was looked at here may be open in them."""
    return replace(source, loader_options={})


def _shard_sizes(samples: int, workers: int) -> set[int]:
    return {samples // workers, -(-samples // workers)}


def _ends(numbers: Collection[int]) -> Ends:
    return min(numbers), max(numbers)


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
    # What the user's code prints is no part of the report.
    with contextlib.redirect_stdout(sys.stderr):
        report = check(spec)
    text = report.model_dump_json(indent=2) if options.json else "\n".join(lines(report))
    sys.stdout.write(f"{text}\n")
    return 0 if report.good else 2


if __name__ == "__main__":
    sys.exit(main())
