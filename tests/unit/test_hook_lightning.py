"""The Lightning callback, in real trainings of Lightning."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader

from curvewatch_service.curve_files import Columns, read_curves
from curvewatch_workers.diagnosis import Curve, Verdict, diagnoses
from curvewatch_workers.errors import HookError
from curvewatch_workers.hooks.lightning import CurvewatchCallback
from hook_support import make_datasets, make_model, read_file, snippet, verdict_of

WORSE = frozenset({Verdict.OVERFITTING, Verdict.OVERCONFIDENT})
pytestmark = pytest.mark.filterwarnings("ignore:.*(bottleneck|isn't supported|TreeSpec|log|is not empty).*")

OLDER = """
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from curvewatch_workers.hooks.lightning import CurvewatchCallback

class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def training_step(self, batch, index):
        return self.weight.square().sum()

    def on_train_epoch_end(self):
        self.log("train_loss", self.weight.square().sum())

    def validation_step(self, batch, index):
        self.log("val_loss", self.weight.square().sum())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

loader = DataLoader(torch.zeros(4, 1))
trainer = pl.Trainer(max_epochs=3, accelerator="cpu", logger=False, callbacks=[CurvewatchCallback("curve.csv")])
trainer.fit(Module(), loader, loader)
"""


class Classifier(pl.LightningModule):  # type: ignore[misc] # not looked into
    def __init__(self, *, healthy: bool, at_epoch_end: bool = False) -> None:
        super().__init__()
        self.model, self.healthy, self.at_epoch_end = make_model(), healthy, at_epoch_end
        self.losses: list[Tensor] = []

    def training_step(self, batch: list[Tensor], _index: int) -> Tensor:
        loss = functional.cross_entropy(self.model(batch[0]), batch[1])
        if self.at_epoch_end:
            self.losses.append(loss.detach())
        else:
            self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def on_train_epoch_end(self) -> None:
        if self.at_epoch_end:
            self.log("train_loss", torch.stack(self.losses).mean())
            self.losses.clear()

    def validation_step(self, batch: list[Tensor], _index: int) -> None:
        logits = self.model(batch[0])
        self.log("val_loss", functional.cross_entropy(logits, batch[1]))
        self.log("val_acc", (logits.argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3 if self.healthy else 1e-2)


class Regressor(Classifier):
    def __init__(self) -> None:
        super().__init__(healthy=False)

    def validation_step(self, batch: list[Tensor], _index: int) -> None:
        self.log("val_mse", functional.cross_entropy(self.model(batch[0]), batch[1]))


class Noted(Callback):  # type: ignore[misc]
    """What the trainer has at the end of each epoch, after the module's own hook."""

    def __init__(self) -> None:
        self.logs: list[dict[str, float]] = []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        if trainer.current_epoch:
            self.logs.append({name: float(value) for name, value in trainer.callback_metrics.items()})

    on_train_end = on_train_epoch_start


def fit(
    callback: CurvewatchCallback,
    folder: Path,
    *others: Callback,
    healthy: bool = False,
    epochs: int = 60,
    module: pl.LightningModule | None = None,
    resume: Path | None = None,
    **options: Any,
) -> pl.Trainer:
    train, validation = make_datasets(healthy=healthy)
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=any(isinstance(one, ModelCheckpoint) for one in others),
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[callback, *others],
        **options,
    )
    loaders = DataLoader(train, 64), DataLoader(validation, 128)
    trainer.fit(module or Classifier(healthy=healthy), *loaders, ckpt_path=resume)
    return trainer


def test_an_overfitting_run_is_stopped_and_its_file_has_the_numbers_of_lightning(
    tmp_path: Path,
) -> None:
    file, noted = tmp_path / "out" / "curve.csv", Noted()
    callback = CurvewatchCallback(file, stop=True)

    trainer = fit(callback, tmp_path, noted)

    rows = read_file(file)
    assert callback.diagnosis.verdict in WORSE
    assert len(rows) == trainer.current_epoch < 60
    assert [row["epoch"] for row in rows] == list(range(1, len(rows) + 1))
    assert [(row["train_loss"], row["val_loss"], row["val_accuracy"]) for row in rows] == [
        (logs["train_loss_epoch"], logs["val_loss"], logs["val_acc"]) for logs in noted.logs
    ]
    told = verdict_of(file)
    assert (told["verdict"], told["stop_epoch"]) == (callback.diagnosis.verdict, len(rows))


def test_a_healthy_run_is_not_stopped(tmp_path: Path) -> None:
    file = tmp_path / "curve.csv"

    trainer = fit(
        CurvewatchCallback(file, stop=True, stop_on=tuple(WORSE)), tmp_path, healthy=True, epochs=30
    )

    assert trainer.current_epoch == len(read_file(file)) == 30
    assert verdict_of(file)["stop_epoch"] is None


def test_it_observes_and_logs_unless_told_to_stop(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = fit(CurvewatchCallback(), tmp_path, epochs=40)

    assert trainer.current_epoch == 40
    raised = [record for record in caplog.records if getattr(record, "action", "") == "hook_verdict"]
    assert raised
    assert {str(verdict) for verdict in WORSE} & {record.__dict__["verdict"] for record in raised}
    assert not any("stops" in record.message for record in raised)


def test_a_single_verdict_stops_as_soon_as_it_is_raised(tmp_path: Path) -> None:
    callback = CurvewatchCallback(tmp_path / "curve.csv", stop_on="overfitting", validation_loss="val_mse")

    trainer = fit(callback, tmp_path, module=Regressor(), epochs=200)

    curve = [(row["train_loss"], row["val_loss"]) for row in read_file(tmp_path / "curve.csv")]
    train, validation = (tuple(losses) for losses in zip(*curve, strict=True))
    verdicts = [said.verdict for said in diagnoses(Curve(train=train, validation=validation))]
    assert trainer.current_epoch == 1 + verdicts.index(Verdict.OVERFITTING)


def test_losses_that_the_module_logs_at_the_epochs_end_are_there(tmp_path: Path) -> None:
    one, other = tmp_path / "one.csv", tmp_path / "other.csv"

    fit(CurvewatchCallback(one), tmp_path, module=Classifier(healthy=False, at_epoch_end=True), epochs=3)
    fit(CurvewatchCallback(other), tmp_path, epochs=3)

    assert len(read_file(one)) == 3
    assert read_file(one) == read_file(other)


def test_a_train_loss_of_the_last_batch_alone_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class OfBatches(Classifier):
        def training_step(self, batch: list[Tensor], _index: int) -> Tensor:
            loss = functional.cross_entropy(self.model(batch[0]), batch[1])
            self.log("train_loss", loss)
            return loss

    fit(CurvewatchCallback(), tmp_path, module=OfBatches(healthy=False), epochs=3)
    fit(CurvewatchCallback(), tmp_path, epochs=3)

    told = [record.message for record in caplog.records if "last batch alone" in record.message]
    assert len(told) == 1


def test_epochs_without_validation_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "curve.csv"

    fit(CurvewatchCallback(file, stop=True), tmp_path, epochs=12, healthy=True, check_val_every_n_epoch=2)

    assert [("val_loss" in row) for row in read_file(file)] == [False, True] * 6
    (one,) = read_curves(file, Columns())
    assert (len(one.curve), one.left_out) == (6, 6)


def test_without_validation_it_says_that_there_is_no_curve(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fit(CurvewatchCallback(), tmp_path, epochs=2, limit_val_batches=0)

    (told,) = [record for record in caplog.records if record.name.startswith("curvewatch_workers.hooks")]
    assert "give trainer.fit() validation data" in told.message


@pytest.mark.parametrize("at_epoch_end", [False, True])
@pytest.mark.parametrize("has_file", [False, True])
def test_a_resumed_run_has_each_epoch_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, *, at_epoch_end: bool, has_file: bool
) -> None:
    whole, file, moved = tmp_path / "whole.csv", tmp_path / "curve.csv", tmp_path / "moved.csv"
    fit(CurvewatchCallback(whole), tmp_path, epochs=9)
    keep = ModelCheckpoint(tmp_path / "kept", "{epoch}", save_top_k=-1, save_on_train_epoch_end=at_epoch_end)
    fit(CurvewatchCallback(file), tmp_path, keep, epochs=6)
    assert len(read_file(file)) == 6

    second = file if has_file else moved
    fit(CurvewatchCallback(second), tmp_path, keep, epochs=9, resume=tmp_path / "kept" / "epoch=3.ckpt")

    # The checkpoint was taken before epoch 4 had a train loss, and Lightning does not train it again.
    unknown = [] if has_file or at_epoch_end else [4]
    assert read_file(second) == [row for row in read_file(whole) if row["epoch"] not in unknown]
    told = [record for record in caplog.records if getattr(record, "action", "") == "curve_incomplete"]
    assert len(told) == len(unknown)


def test_a_trial_of_one_batch_leaves_the_curve_alone(tmp_path: Path) -> None:
    fit(CurvewatchCallback(tmp_path / "curve.csv"), tmp_path, epochs=3)

    fit(CurvewatchCallback(tmp_path / "curve.csv", stop=True), tmp_path, fast_dev_run=True)

    assert len(read_file(tmp_path / "curve.csv")) == 3


def test_two_losses_may_be_watched_at_once(tmp_path: Path) -> None:
    other = CurvewatchCallback(tmp_path / "other.csv", validation_loss="val_acc")
    keep = ModelCheckpoint(tmp_path / "kept", "{epoch}", save_top_k=-1)

    fit(CurvewatchCallback(tmp_path / "one.csv"), tmp_path, other, keep, epochs=3)

    assert [row["val_loss"] for row in read_file(tmp_path / "other.csv")] == [
        row["val_accuracy"] for row in read_file(tmp_path / "one.csv")
    ]


def test_a_name_that_is_not_logged_is_refused_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(HookError, match=r"no 'loss', which train_loss names.*train_loss_epoch, .*val_loss"):
        fit(CurvewatchCallback(train_loss="loss"), tmp_path)
    with pytest.raises(
        HookError, match=r"no 'mse', which validation_loss names; it logs .*val_acc, val_loss\."
    ):
        fit(CurvewatchCallback(validation_loss="mse"), tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "epoch,step,train_loss\n0,1,0.5\n",
        '{"loss": [0.5]}',
        "epoch,train_loss,val_loss,val_accuracy,learning_rate\nx,1,1,1,1\n",
    ],
)
def test_a_file_of_something_else_is_not_written_over(tmp_path: Path, text: str) -> None:
    other = tmp_path / "metrics.csv"
    other.write_text(text)

    with pytest.raises(HookError, match="no curve of CurvewatchCallback"):
        fit(CurvewatchCallback(other), tmp_path)

    assert other.read_text() == text


def test_the_package_under_its_older_name_works_too(tmp_path: Path) -> None:
    program = tmp_path / "older.py"
    program.write_text(OLDER)

    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(program)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )

    assert done.returncode == 0, done.stderr
    assert [row["epoch"] for row in read_file(tmp_path / "curve.csv")] == [1, 2, 3]


def test_the_lines_of_the_howto_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    train, validation = make_datasets(healthy=False)
    loaders = {"train_loader": DataLoader(train, 64), "validation_loader": DataLoader(validation, 128)}
    names: dict[str, Any] = {"pl": pl, "module": Classifier(healthy=False)} | loaders

    exec(snippet("lightning"), names)  # noqa: S102 - ours

    assert len(read_file(tmp_path / "curve.csv")) >= 5
    assert names["watch"].diagnosis.verdict != Verdict.TOO_EARLY
