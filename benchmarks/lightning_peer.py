"""Lightning in the benchmarks: its modules, its trainer, and a pass of its own loop, timed from inside.

Lightning owns its loop, so its passes run in `Trainer.fit` and `Trainer.validate`, in the process group that there is.
Hooks start and stop the clock: making the trainer, wrapping the model and loading are left out, and the reduction of
logged values at the end of the epoch is in, as `on_train_end` and `on_validation_end` come after it.
"""

from __future__ import annotations

import copy
import gc
import logging
import time
from collections.abc import Iterator
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.nn import functional

from measuring import meet
from workload import LEARNING_RATE, Batches, Stage, Variant, Work

# What it says of each trainer, and its advice.
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Classifier(lightning.LightningModule):  # type: ignore[misc] # not looked into: it may be absent
    """A classifier that logs nothing."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the loss of a batch."""
        return self._loss(batch)

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        """Take the loss of a batch."""
        self._loss(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer of all variants."""
        return torch.optim.SGD(self.model.parameters(), lr=LEARNING_RATE)

    def _loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        inputs, targets = batch
        return functional.cross_entropy(self.model(inputs), targets)


class LoggingClassifier(Classifier):
    """The same, with loss and accuracy logged for the epoch, reduced over the ranks."""

    def _loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        inputs, targets = batch
        outputs = self.model(inputs)
        loss = functional.cross_entropy(outputs, targets)
        accuracy = (outputs.argmax(1) == targets).float().mean()
        for name, value in (("loss", loss), ("accuracy", accuracy)):
            self.log(name, value, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(targets))
        return loss


class CountingClassifier(LoggingClassifier):
    """The same, with the number of samples beside it."""

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        """Log what a batch gives."""
        super().validation_step(batch)
        samples = float(len(batch[1]))
        self.log("samples", samples, on_step=False, on_epoch=True, sync_dist=True, reduce_fx="sum")


def quiet_trainer(device: torch.device, world_size: int, **options: Any) -> lightning.Trainer:
    """Return a trainer on the ranks that there are, without all that is not the loop."""
    return lightning.Trainer(
        accelerator="cpu" if device.type == "cpu" else "gpu",
        devices=world_size,
        strategy="ddp" if world_size > 1 else "auto",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **options,
    )


class Loader:
    """Gives the same batches in each epoch; Lightning would take a list for a list of loaders."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self._batches)

    def __len__(self) -> int:
        return len(self._batches)


class Clock(Callback):  # type: ignore[misc]
    """Takes the time of a validation pass, or of the last train epoch of a fit."""

    def __init__(self, device: torch.device) -> None:
        self.seconds = 0.0
        self._device = device
        self._started = 0.0

    def _start(self) -> None:
        meet(self._device)
        self._started = time.perf_counter()

    def _stop(self) -> None:
        meet(self._device)
        self.seconds = time.perf_counter() - self._started

    def on_train_epoch_start(self, *_: object) -> None:
        """Start again in each epoch, when its data is set up."""
        self._start()

    def on_train_end(self, *_: object) -> None:
        """Stop after `FitLoop.on_advance_end`, which reduces and resets what was logged."""
        self._stop()

    def on_validation_epoch_start(self, *_: object) -> None:
        """Start when the data is set up."""
        self._start()

    def on_validation_end(self, *_: object) -> None:
        """Stop after `update_eval_epoch_metrics`, which reduces what was logged."""
        self._stop()


class Lightning(Variant):
    """One epoch of Lightning's own loop over the same batches, with a copy of the model.

    Args:
        module: What it trains.
        world_size: Ranks.
    """

    def __init__(self, module: type[Classifier], world_size: int) -> None:
        self._module = module
        self._world_size = world_size
        # A trainer moves its model to the CPU in the end, which must not be the model of the others.
        self._models: dict[int, Classifier] = {}

    def seconds(self, work: Work, stage: Stage) -> float:
        """Return the seconds between the hooks."""
        if id(work) not in self._models:
            self._models[id(work)] = self._module(copy.deepcopy(work.model))
        module = self._models[id(work)]
        clock = Clock(work.device)
        # Each fit wraps the model anew, and the first step of a new DDP makes its buckets: the second epoch counts.
        trainer = quiet_trainer(
            work.device,
            self._world_size,
            callbacks=[clock],
            max_epochs=2,
            limit_val_batches=self._limit(stage),
        )
        if stage == "train":
            trainer.fit(module, Loader(work.train))
        else:
            trainer.validate(module, Loader(work.validation), verbose=False)
        del trainer
        gc.collect()  # trainers are cycles, which would be collected in another variant's time
        return clock.seconds

    @staticmethod
    def _limit(stage: Stage) -> float:
        return 0 if stage == "train" else 1.0
