"""A callback for PyTorch Lightning."""

from __future__ import annotations

import importlib.util
import math
import os
import sys
from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from curvewatch_workers.diagnosis import Diagnosis
from curvewatch_workers.hooks.curve_feed import CurveFeed, accuracy_in, number_in
from curvewatch_workers.hooks.curve_file import Row

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

_OLDER = "pytorch_lightning"
_PACKAGE = "lightning.pytorch"
# The same package goes by two names, with classes that do not know each other: take the one that the user has imported.
if (_OLDER in sys.modules and _PACKAGE not in sys.modules) or importlib.util.find_spec("lightning") is None:
    _PACKAGE = _OLDER
EarlyStopping: Any = importlib.import_module(f"{_PACKAGE}.callbacks").EarlyStopping


# Lightning calls two kinds of callbacks after the module's own `on_train_epoch_end`, which may log the losses: those
# that stop early, and those that save.
class CurvewatchCallback(EarlyStopping):  # type: ignore[misc] # known at run time only
    """Reads the curve that a `Trainer` makes; stops it by verdict when told to.

    Takes the numbers that the module logs, as they are at the end of each train epoch. On several ranks those of rank 0
    decide, and all stop after the same epoch; `self.log(..., sync_dist=True)` makes them those of all ranks.

    Args:
        file: CSV with a row for each epoch, for `curvewatch diagnose`; None writes none.
        train_loss: Name under which the module logs the train loss, with `on_epoch=True`.
        validation_loss: Name under which it logs the validation loss.
        stop: Stop when the diagnosis says so.
        stop_on: Verdicts at which to stop as soon as they are raised.
        run: Name of a run at the service of the profile, which is then told of each epoch; in a job the job's is.

    Raises:
        HookError: A verdict is unknown; during the training, when a loss is not logged.
    """

    def __init__(
        self,
        file: str | os.PathLike[str] | None = None,
        *,
        train_loss: str = "train_loss",
        validation_loss: str = "val_loss",
        stop: bool = False,
        stop_on: str | Collection[str] = (),
        run: str | None = None,
    ) -> None:
        super().__init__(monitor=validation_loss)
        self._train_loss, self._validation_loss = train_loss, validation_loss
        self._feed = CurveFeed("lightning", file, stop=stop, stop_on=stop_on, run=run)
        self._begun = self._trained = self._validated = False

    @property
    def diagnosis(self) -> Diagnosis:
        """What the curve says so far, on rank 0."""
        return self._feed.diagnosis

    @property
    def state_key(self) -> str:
        """Key of the state in a checkpoint."""
        return f"{type(self).__qualname__}[{self._validation_loss}]"

    def state_dict(self) -> dict[str, Any]:
        """Return the curve for a checkpoint."""
        return {"rows": [asdict(row) for row in self._feed.rows]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the curve from a checkpoint."""
        self._feed.restore(Row(**row) for row in state_dict["rows"])

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Do nothing: a row is for each train epoch, whenever the validation is."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait for the first batch: a checkpoint taken after a validation ends that epoch once more, without one."""
        self._begun = self._trained = self._validated = False

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begin, or go on after the epochs that a checkpoint has."""
        if not self._begun:
            self._begun = True
            self._feed.begin(
                trainer.current_epoch,
                leads=trainer.is_global_zero,
                processes=trainer.world_size,
                planned=_planned(trainer),
            )
        self._trained = True

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that the epoch has a validation loss of its own."""
        self._validated = not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take in the epoch; stop on all ranks when rank 0 says so."""
        if not self._trained or trainer.fast_dev_run:
            return
        # On every rank: what is logged with `sync_dist` is reduced here.
        logs = trainer.callback_metrics
        row = self._row(trainer, logs) if trainer.is_global_zero else self._row_of_others(trainer)
        self._trained = self._validated = False
        if _is_of_last_batch(trainer, self._train_loss):
            self._feed.warn(
                f"CurvewatchCallback: {self._train_loss!r} is the loss of each epoch's last batch alone; write "
                f"self.log({self._train_loss!r}, loss, on_epoch=True) in training_step"
            )
        if trainer.strategy.broadcast(self._feed.add(row)):
            trainer.should_stop = True

    def _row(self, trainer: Trainer, logs: Mapping[str, object]) -> Row:
        return Row(
            at=trainer.current_epoch + 1,
            train=number_in(logs, self._train_loss, "train_loss"),
            validation=number_in(logs, self._validation_loss, "validation_loss") if self._validated else None,
            accuracy=accuracy_in(logs) if self._validated else None,
            learning_rate=_learning_rate(trainer),
        )

    def _row_of_others(self, trainer: Trainer) -> Row:
        """Return what counts on the ranks that do not decide: a module may log on rank 0 alone."""
        return Row(
            at=trainer.current_epoch + 1, train=math.nan, validation=math.nan if self._validated else None
        )

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Tell the run what has ended the training."""
        self._feed.fail(exception)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say so when there was no curve to read."""
        if not trainer.fast_dev_run:
            self._feed.end("give trainer.fit() validation data")


def _planned(trainer: Trainer) -> int | None:
    # -1 is a training without an end; one that ends by steps, or is validated by them, has as many epochs as it takes.
    epochs, every = trainer.max_epochs or 0, trainer.check_val_every_n_epoch
    return epochs // every or None if epochs > 0 and every and trainer.max_steps < 0 else None


def _learning_rate(trainer: Trainer) -> float | None:
    return float(trainer.optimizers[0].param_groups[0]["lr"]) if trainer.optimizers else None


def _is_of_last_batch(trainer: Trainer, name: str) -> bool:
    # Lightning's own record of how the module logs, which it does not publish.
    results = getattr(trainer.fit_loop, "_results", None) or {}
    return any(result.meta.name == name and not result.meta.on_epoch for result in results.values())
