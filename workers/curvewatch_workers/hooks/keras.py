"""A callback for Keras 3, on any backend."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping

import keras

from curvewatch_workers.diagnosis import Diagnosis
from curvewatch_workers.hooks.curve_feed import CurveFeed, accuracy_in, number_in
from curvewatch_workers.hooks.curve_file import Row


class CurvewatchCallback(keras.callbacks.Callback):  # type: ignore[misc] # not looked into: it may be absent
    """Reads the curve that `fit` makes; stops it by verdict when told to.

    Takes the numbers that Keras gives its callbacks, which are the same in each process of `keras.distribution`; there
    only one process may be given a file.

    Args:
        file: CSV with a row for each epoch, for `curvewatch diagnose`; None writes none.
        train_loss: Key of the train loss in the logs.
        validation_loss: Key of the validation loss in the logs.
        stop: Stop when the diagnosis says so.
        stop_on: Verdicts at which to stop as soon as they are raised.
        run: Name of a run at the service of the profile, which is then told of each epoch; in a job the job's is.

    Raises:
        HookError: A verdict is unknown; during the training, when a loss is not in the logs.
    """

    def __init__(
        self,
        file: str | os.PathLike[str] | None = None,
        *,
        train_loss: str = "loss",
        validation_loss: str = "val_loss",
        stop: bool = False,
        stop_on: str | Collection[str] = (),
        run: str | None = None,
    ) -> None:
        super().__init__()
        self._train_loss, self._validation_loss = train_loss, validation_loss
        self._feed = CurveFeed("keras", file, stop=stop, stop_on=stop_on, run=run)
        self._begun = False

    @property
    def diagnosis(self) -> Diagnosis:
        """What the curve says so far."""
        return self._feed.diagnosis

    def on_train_begin(self, logs: Mapping[str, float] | None = None) -> None:
        """Wait for the first epoch: only then is its number known."""
        self._begun = False

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Begin, or go on after the epochs before `initial_epoch`."""
        if not self._begun:
            self._begun = True
            self._feed.begin(epoch, planned=self.params.get("epochs"))

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Take in the epoch; stop when the curve says so."""
        logs = logs or {}
        # `validation_freq` leaves epochs without validation.
        validated = self._validation_loss in logs or any(name.startswith("val_") for name in logs)
        row = Row(
            at=epoch + 1,
            train=number_in(logs, self._train_loss, "train_loss"),
            validation=number_in(logs, self._validation_loss, "validation_loss") if validated else None,
            accuracy=accuracy_in(logs),
            learning_rate=_learning_rate(self.model),
        )
        if self._feed.add(row):
            self.model.stop_training = True

    def on_train_end(self, logs: Mapping[str, float] | None = None) -> None:
        """Say so when there was no curve to read."""
        self._feed.end("give fit() validation_data")


def _learning_rate(model: keras.Model) -> float | None:
    rate = getattr(model.optimizer, "learning_rate", None)
    return None if rate is None else float(rate)
