"""A callback for the `Trainer` of Hugging Face."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Collection, Mapping
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from curvewatch_workers.diagnosis import Diagnosis
from curvewatch_workers.errors import HookError
from curvewatch_workers.group import group_of_process
from curvewatch_workers.hooks.curve_feed import CurveFeed, accuracy_in, number_in
from curvewatch_workers.hooks.curve_file import Row


class CurvewatchCallback(TrainerCallback):  # type: ignore[misc] # not looked into: it may be absent
    """Reads the curve that a `Trainer` makes; stops it by verdict when told to.

    An epoch of the curve is the way from one evaluation to the next, with the mean of the train losses that were logged
    on it: `eval_strategy="epoch"` and `logging_strategy="epoch"` make it an epoch. The Trainer reduces the losses over
    its ranks; rank 0 decides, and all stop at the same evaluation.

    Args:
        file: CSV with a row for each evaluation, for `curvewatch diagnose`; None writes none.
        train_loss: Key of the train loss in the logs.
        validation_loss: Key of the validation loss in the logs; with several evaluation datasets that of one of them,
            such as `eval_test_loss`.
        stop: Stop when the diagnosis says so.
        stop_on: Verdicts at which to stop as soon as they are raised.
        run: Name of a run at the service of the profile, which is then told of each epoch; in a job the job's is.

    Raises:
        HookError: A verdict is unknown; during the training, when nothing is evaluated or a loss is not logged.
    """

    def __init__(
        self,
        file: str | os.PathLike[str] | None = None,
        *,
        train_loss: str = "loss",
        validation_loss: str = "eval_loss",
        stop: bool = False,
        stop_on: str | Collection[str] = (),
        run: str | None = None,
    ) -> None:
        self._train_loss, self._validation_loss = train_loss, validation_loss
        self._feed = CurveFeed("transformers", file, stop=stop, stop_on=stop_on, run=run)
        self._training = self._by_epoch = False
        self._losses: list[float] = []
        self._others: dict[str, object] = {}
        self._evaluated: dict[str, object] = {}
        self._taken_at = -1
        self._latest = 0
        """The last row."""
        self._learning_rate: float | None = None

    @property
    def diagnosis(self) -> Diagnosis:
        """What the curve says so far, on rank 0."""
        return self._feed.diagnosis

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin, or go on with the curve that a checkpoint's `trainer_state.json` holds."""
        if args.eval_strategy == "no":
            raise HookError(
                'CurvewatchCallback: nothing is evaluated, so there is no validation loss; set eval_strategy="epoch" '
                'and logging_strategy="epoch" in the TrainingArguments'
            )
        self._training, self._by_epoch = True, args.eval_strategy == "epoch"
        self._losses, self._others, self._evaluated = [], {}, {}
        self._taken_at, self._latest = -1, 0
        rows = [row for logs in state.log_history for row in self._rows_before(logs)]
        self._feed.restore(rows)
        self._feed.begin(
            rows[-1].at if rows else 0,
            unit="epoch" if self._by_epoch else "step",
            leads=state.is_world_process_zero,
            processes=args.world_size,
            planned=_planned(args, state),
        )

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, object] | None = None,
        **kwargs: Any,
    ) -> None:
        """Keep a train loss until the next evaluation."""
        if self._training:
            self._keep(logs or {})

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, object] | None = None,
        **kwargs: Any,
    ) -> None:
        """Take in an evaluation; stop on all ranks when rank 0 says so."""
        metrics = metrics or {}
        if not self._training or not state.global_step:
            return  # `eval_on_start`, or a call of `evaluate` after the training
        if self._validation_loss not in metrics:
            self._evaluated |= metrics  # another dataset's, unless none has it
            return
        self._evaluated = {}
        if "loss" in self._others and not self._losses:
            number_in(self._others, self._train_loss, "train_loss")
        if not self._losses:
            self._feed.warn(
                "An evaluation with no train loss logged since the one before is left out of the curve; set "
                'logging_strategy="epoch" in the TrainingArguments, or smaller logging_steps'
            )
        stops = False
        for row in self._rows(metrics, state.epoch, state.global_step):
            stops = self._feed.add(row)
        # What else it lacks may come with another dataset of the same evaluation.
        self._taken_at = state.global_step
        if _of_rank_0(stops, args):
            control.should_training_stop = True

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refuse an evaluation that had no loss of the given name in any of its datasets."""
        if self._evaluated and self._taken_at != state.global_step:
            number_in(self._evaluated, self._validation_loss, "validation_loss")
        self._evaluated = {}

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take no evaluation after the training for a part of it; say so when there was no curve to read."""
        self._training = False
        remedy = 'set eval_strategy="epoch" and logging_strategy="epoch" in the TrainingArguments'
        if self._evaluated:
            there = ", ".join(sorted(self._evaluated))
            remedy = f"the evaluation has {there}, and validation_loss names {self._validation_loss!r}"
        self._feed.end(remedy)

    def _rows_before(self, logs: Mapping[str, Any]) -> list[Row]:
        if self._validation_loss in logs and logs["step"]:
            return self._rows(logs, logs["epoch"], logs["step"])
        self._keep(logs)
        return []

    def _keep(self, logs: Mapping[str, object]) -> None:
        if "learning_rate" in logs:
            self._learning_rate = number_in(logs, "learning_rate", "the Trainer")
        if self._train_loss in logs:
            self._losses.append(number_in(logs, self._train_loss, "train_loss"))
        elif not any(name.startswith("eval_") for name in logs):
            self._others |= logs

    def _rows(self, metrics: Mapping[str, object], epoch: float | None, step: int) -> list[Row]:
        """Return the row of an evaluation, after an empty one for each epoch without (`eval_delay`)."""
        losses, self._losses, self._others = self._losses, [], {}
        row = Row(
            at=math.ceil(epoch or 0.0) if self._by_epoch else step,
            train=statistics.fmean(losses) if losses else None,
            validation=number_in(metrics, self._validation_loss, "validation_loss"),
            accuracy=accuracy_in(metrics),
            learning_rate=self._learning_rate,
        )
        passed_by = range(self._latest + 1, row.at) if self._by_epoch else ()
        self._latest = row.at
        return [*(Row(at=at, train=None, validation=None) for at in passed_by), row]


def _planned(args: TrainingArguments, state: TrainerState) -> int | None:
    """Return how many evaluations there will be; None when that is not known."""
    by_epoch = args.eval_strategy == "epoch"
    every = 1.0 if by_epoch else float(state.eval_steps or 0)
    length = float(state.num_train_epochs if by_epoch else state.max_steps)
    if every <= 0 or length <= 0:
        return None
    delayed = max(math.ceil((args.eval_delay or 0) / every) - 1, 0)
    return max(math.ceil(length / every) - delayed, 1)


def _of_rank_0(stops: bool, args: TrainingArguments) -> bool:
    group = group_of_process(args.device)
    told = torch.tensor(int(stops), device=args.device)
    group.broadcast(told)
    return bool(told)
