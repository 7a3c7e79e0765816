"""The Hugging Face callback, in real trainings of its Trainer."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from curvewatch_service.curve_files import Columns, read_curves
from curvewatch_workers.diagnosis import Verdict
from curvewatch_workers.errors import HookError
from curvewatch_workers.hooks.transformers import CurvewatchCallback
from hook_support import make_model, make_samples, make_splits, read_file, snippet, verdict_of

WORSE = frozenset({Verdict.OVERFITTING, Verdict.OVERCONFIDENT})


class Rows(Dataset[dict[str, Tensor]]):
    def __init__(self, samples: tuple[Tensor, Tensor]) -> None:
        self.features, self.labels = samples

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"features": self.features[index], "labels": self.labels[index]}


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = make_model()

    def forward(self, features: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.model(features)
        return {"loss": functional.cross_entropy(logits, labels), "logits": logits}


def accuracy(predicted: Any) -> dict[str, float]:
    return {"accuracy": float((predicted.predictions.argmax(1) == predicted.label_ids).mean())}


def make_trainer(
    callback: CurvewatchCallback, folder: Path, *, healthy: bool = False, epochs: int = 60, **options: Any
) -> Trainer:
    train, validation = make_splits(healthy=healthy)
    arguments: dict[str, Any] = {
        "eval_strategy": "epoch",
        "logging_strategy": "epoch",
        "save_strategy": "no",
        "per_device_train_batch_size": 16,
        "per_device_eval_batch_size": 128,
        "learning_rate": 1e-3 if healthy else 1e-2,
        "lr_scheduler_type": "constant",
        "seed": 7,
    }
    datasets = options.pop("eval_dataset", Rows(validation))
    return Trainer(
        model=Classifier(),
        args=TrainingArguments(
            str(folder / "out"),
            num_train_epochs=epochs,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            dataloader_pin_memory=False,
            **arguments | options,
        ),
        train_dataset=Rows(train),
        eval_dataset=datasets,
        compute_metrics=accuracy,
        callbacks=[callback],
    )


def logged(trainer: Trainer, name: str) -> list[float]:
    return [row[name] for row in trainer.state.log_history if name in row]


def test_an_overfitting_run_is_stopped_and_its_file_has_the_numbers_of_the_trainer(tmp_path: Path) -> None:
    file = tmp_path / "curve.csv"
    callback = CurvewatchCallback(file, stop=True)
    trainer = make_trainer(callback, tmp_path)

    trainer.train()

    rows = read_file(file)
    assert callback.diagnosis.verdict in WORSE
    assert trainer.state.epoch == len(rows) < 60
    assert [row["epoch"] for row in rows] == list(range(1, len(rows) + 1))
    for column, key in (("train_loss", "loss"), ("val_loss", "eval_loss"), ("val_accuracy", "eval_accuracy")):
        assert [row[column] for row in rows] == logged(trainer, key)
    told = verdict_of(file)
    assert (told["verdict"], told["stop_epoch"]) == (callback.diagnosis.verdict, len(rows))
    # The Trainer's own file is the same curve.
    trainer.state.save_to_json(str(tmp_path / "trainer_state.json"))
    (own,), (ours,) = (
        read_curves(tmp_path / name, Columns()) for name in ("trainer_state.json", "curve.csv")
    )
    assert own.curve == ours.curve


def test_a_healthy_run_is_not_stopped(tmp_path: Path) -> None:
    file = tmp_path / "curve.csv"
    trainer = make_trainer(
        CurvewatchCallback(file, stop=True, stop_on=tuple(WORSE)), tmp_path, healthy=True, epochs=12
    )

    trainer.train()

    assert trainer.state.epoch == len(read_file(file)) == 12
    assert verdict_of(file)["stop_epoch"] is None


def test_a_resumed_run_has_each_epoch_once_even_without_the_file(tmp_path: Path) -> None:
    whole, file = tmp_path / "whole.csv", tmp_path / "curve.csv"
    make_trainer(CurvewatchCallback(whole), tmp_path, epochs=9).train()
    make_trainer(CurvewatchCallback(file), tmp_path, epochs=6, save_strategy="epoch").train()
    assert len(read_file(file)) == 6
    kept = tmp_path / "out" / "checkpoint-12"  # 3 steps an epoch
    assert json.loads((kept / "trainer_state.json").read_text())["epoch"] == 4

    for again in (file, tmp_path / "moved.csv"):
        callback = CurvewatchCallback(again)
        make_trainer(callback, tmp_path, epochs=9).train(resume_from_checkpoint=str(kept))

        assert read_file(again) == read_file(whole)
        assert callback.diagnosis.verdict == verdict_of(again)["verdict"]


def test_evaluations_by_step_are_the_epochs_of_the_curve(tmp_path: Path) -> None:
    file = tmp_path / "curve.csv"
    by_step: dict[str, Any] = {
        "eval_strategy": "steps",
        "eval_steps": 4,
        "logging_strategy": "steps",
        "logging_steps": 2,
    }
    trainer = make_trainer(CurvewatchCallback(file), tmp_path, epochs=8, **by_step)

    trainer.train()

    rows, losses = read_file(file), logged(trainer, "loss")
    assert [row["step"] for row in rows] == [4, 8, 12, 16, 20, 24]
    assert [row["train_loss"] for row in rows] == [
        statistics.fmean(losses[i : i + 2]) for i in range(0, 12, 2)
    ]
    (one,) = read_curves(file, Columns())
    assert list(one.curve.validation) == logged(trainer, "eval_loss")


def test_one_of_several_evaluation_datasets_is_named(tmp_path: Path) -> None:
    datasets = {
        name: Rows(make_samples(healthy=False, samples=64, seed=seed)) for seed, name in enumerate("abc")
    }
    file = tmp_path / "curve.csv"
    trainer = make_trainer(
        CurvewatchCallback(file, validation_loss="eval_b_loss"), tmp_path, epochs=3, eval_dataset=datasets
    )

    trainer.train()

    assert [row["val_loss"] for row in read_file(file)] == logged(trainer, "eval_b_loss")
    unnamed = make_trainer(CurvewatchCallback(), tmp_path, epochs=3, eval_dataset=datasets)
    with pytest.raises(HookError, match=r"no 'eval_loss', .* it logs .*eval_a_loss, .*eval_c_loss"):
        unnamed.train()


def test_an_evaluation_before_any_logged_loss_is_left_out_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "curve.csv"
    trainer = make_trainer(
        CurvewatchCallback(file), tmp_path, epochs=4, logging_strategy="steps", logging_steps=5
    )

    trainer.train()
    trainer.evaluate()

    assert [("train_loss" in row) for row in read_file(file)] == [False, True, False, True]
    told = [record.message for record in caplog.records if 'logging_strategy="epoch"' in record.message]
    assert len(told) == 1


def test_a_name_that_the_only_evaluation_lacks_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_trainer(CurvewatchCallback(validation_loss="val_loss"), tmp_path, epochs=1).train()

    (told,) = [record for record in caplog.records if record.name.startswith("curvewatch_workers.hooks")]
    assert "eval_loss, eval_runtime" in told.message
    assert told.message.endswith("validation_loss names 'val_loss'")


def test_what_the_trainer_does_not_log_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HookError, match=r"nothing is evaluated.*eval_strategy"):
        make_trainer(CurvewatchCallback(), tmp_path, eval_strategy="no").train()
    with pytest.raises(HookError, match=r"no 'train_loss', which train_loss names; it logs .*loss"):
        make_trainer(CurvewatchCallback(train_loss="train_loss"), tmp_path).train()
    with pytest.raises(HookError, match=r"no 'val_loss', .*it logs .*eval_loss"):
        make_trainer(CurvewatchCallback(validation_loss="val_loss"), tmp_path).train()


@pytest.mark.filterwarnings("ignore:'pin_memory' argument")
def test_the_lines_of_the_howto_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = dict(zip(("train", "validation"), map(Rows, make_splits(healthy=False)), strict=True))
    names: dict[str, Any] = {
        "Trainer": Trainer,
        "TrainingArguments": TrainingArguments,
        "model": Classifier(),
    } | data

    exec(snippet("transformers"), names)  # noqa: S102 - ours

    assert len(read_file(tmp_path / "curve.csv")) >= 5
    assert names["watch"].diagnosis.verdict != Verdict.TOO_EARLY
