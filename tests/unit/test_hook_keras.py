"""The Keras callback, in real trainings of Keras on torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("KERAS_BACKEND", "torch")
import keras

from curvewatch_workers.diagnosis import Verdict
from curvewatch_workers.errors import HookError
from curvewatch_workers.hooks.keras import CurvewatchCallback
from hook_support import FEATURES, make_splits, read_file, snippet, verdict_of

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras' own
WORSE = frozenset({Verdict.OVERFITTING, Verdict.OVERCONFIDENT})


def make_keras(*, healthy: bool) -> Any:
    keras.utils.set_random_seed(5)
    layers = [keras.layers.Dense(64, activation="relu"), keras.layers.Dense(2)]
    model = keras.Sequential([keras.Input((FEATURES,)), *layers])
    model.compile(
        keras.optimizers.Adam(1e-3 if healthy else 1e-2),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def fit(
    callback: CurvewatchCallback, *others: Any, healthy: bool = False, epochs: int = 60, **options: Any
) -> Any:
    """Return the history that Keras makes."""
    (x, y), validation = make_splits(healthy=healthy)
    given = {
        "validation_data": tuple(part.numpy() for part in validation),
        "model": make_keras(healthy=healthy),
    }
    given |= options
    model = given.pop("model")
    return model.fit(
        x.numpy(),
        y.numpy(),
        batch_size=64,
        epochs=epochs,
        verbose=0,
        shuffle=False,
        callbacks=[callback, *others],
        **given,
    ).history


def test_an_overfitting_run_is_stopped_and_its_file_has_the_numbers_of_keras(tmp_path: Path) -> None:
    file = tmp_path / "curve.csv"
    callback = CurvewatchCallback(file, stop=True)

    history = fit(callback)

    rows = read_file(file)
    assert callback.diagnosis.verdict in WORSE
    assert len(history["loss"]) == len(rows) < 60
    for column, key in (("train_loss", "loss"), ("val_loss", "val_loss"), ("val_accuracy", "val_accuracy")):
        assert [row[column] for row in rows] == history[key]
    told = verdict_of(file)
    assert (told["verdict"], told["stop_epoch"]) == (callback.diagnosis.verdict, len(rows))


def test_a_healthy_run_is_not_stopped(tmp_path: Path) -> None:
    file = tmp_path / "curve.csv"

    history = fit(CurvewatchCallback(file, stop=True, stop_on=tuple(WORSE)), healthy=True, epochs=20)

    assert len(history["loss"]) == len(read_file(file)) == 20
    assert verdict_of(file)["stop_epoch"] is None


def test_a_loss_that_is_not_finite_stops_at_once(tmp_path: Path) -> None:
    class Poison(keras.callbacks.Callback):  # type: ignore[misc]
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002
            if epoch == 2:
                self.model.layers[-1].set_weights(
                    [w * float("nan") for w in self.model.layers[-1].get_weights()]
                )

    history = fit(CurvewatchCallback(tmp_path / "curve.csv", stop_on="not_finite"), Poison())

    assert len(history["loss"]) == 3
    assert verdict_of(tmp_path / "curve.csv")["first"]["not_finite"] == 3


def test_a_resumed_run_has_each_epoch_once(tmp_path: Path) -> None:
    whole, file = tmp_path / "whole.csv", tmp_path / "curve.csv"
    fit(CurvewatchCallback(whole), epochs=9)
    model = make_keras(healthy=False)
    fit(CurvewatchCallback(file), epochs=4, model=model)
    model.save(tmp_path / "kept.keras")
    fit(CurvewatchCallback(file), epochs=6, initial_epoch=4, model=model)
    assert len(read_file(file)) == 6
    again = keras.models.load_model(tmp_path / "kept.keras")

    callback = CurvewatchCallback(file)
    fit(callback, epochs=9, initial_epoch=4, model=again)

    assert read_file(file) == read_file(whole)
    assert callback.diagnosis.verdict == verdict_of(file)["verdict"]


def test_the_learning_rate_is_kept(tmp_path: Path) -> None:
    halved = keras.callbacks.LearningRateScheduler(lambda epoch, _rate: 0.01 if epoch < 2 else 0.005)

    fit(CurvewatchCallback(tmp_path / "curve.csv"), halved, epochs=4)

    rates = [row["learning_rate"] for row in read_file(tmp_path / "curve.csv")]
    assert rates == pytest.approx([0.01, 0.01, 0.005, 0.005])


def test_a_fault_of_the_diagnosis_does_not_end_the_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a fault")

    monkeypatch.setattr("curvewatch_workers.diagnosis.OnlineDiagnosis.diagnosis", fail)

    history = fit(CurvewatchCallback(tmp_path / "curve.csv", stop=True), epochs=6)

    assert len(history["loss"]) == len(read_file(tmp_path / "curve.csv")) == 6
    assert len([one for one in caplog.records if "ZeroDivisionError: a fault" in one.message]) == 1


def test_a_new_training_begins_a_new_curve(tmp_path: Path) -> None:
    callback = CurvewatchCallback(tmp_path / "curve.csv")
    fit(callback, epochs=5)

    history = fit(callback, epochs=3, healthy=True)

    assert [row["val_loss"] for row in read_file(tmp_path / "curve.csv")] == history["val_loss"]


def test_validation_may_be_rarer_than_epochs(tmp_path: Path) -> None:
    fit(CurvewatchCallback(tmp_path / "curve.csv"), epochs=4, validation_freq=2)

    callback = CurvewatchCallback(tmp_path / "curve.csv")
    fit(callback, epochs=12, initial_epoch=4, validation_freq=2)

    assert [("val_loss" in row) for row in read_file(tmp_path / "curve.csv")] == [False, True] * 6
    assert callback.diagnosis.verdict == verdict_of(tmp_path / "curve.csv")["verdict"] != "not_finite"


def test_without_validation_data_it_says_that_there_is_no_curve(caplog: pytest.LogCaptureFixture) -> None:
    fit(CurvewatchCallback(), epochs=2, validation_data=None)

    (told,) = [record for record in caplog.records if record.name.startswith("curvewatch_workers.hooks")]
    assert "give fit() validation_data" in told.message


def test_a_name_that_is_not_logged_is_refused_with_those_that_are() -> None:
    with pytest.raises(
        HookError, match=r"no 'train_loss', which train_loss names; it logs accuracy, loss, val_acc"
    ):
        fit(CurvewatchCallback(train_loss="train_loss"))
    with pytest.raises(HookError, match=r"no 'val_mse', which validation_loss names; it logs .*val_loss\."):
        fit(CurvewatchCallback(validation_loss="val_mse"))


@pytest.mark.parametrize("wrong", ["overfiting", "good_fit", ("diverging", "too_early")])
def test_a_verdict_that_is_no_reason_to_stop_is_refused(wrong: Any) -> None:
    with pytest.raises(HookError, match=r"is no verdict to stop at; there are overfitting, .*not_finite"):
        CurvewatchCallback(stop_on=wrong)


def test_a_disk_that_takes_nothing_does_not_end_the_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "free" / "curve.csv"
    blocked.parent.mkdir()
    (tmp_path / "free" / "curve.csv.part").mkdir()

    history = fit(CurvewatchCallback(blocked, stop=True))

    assert 5 <= len(history["loss"]) < 60
    assert [record.message for record in caplog.records if "cannot be written to" in record.message]


def test_the_lines_of_the_howto_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (x, y), held_out = make_splits(healthy=False)
    validation = tuple(part.numpy() for part in held_out)
    names: dict[str, Any] = {
        "model": make_keras(healthy=False),
        "x": x.numpy(),
        "y": y.numpy(),
        "validation": validation,
    }

    exec(snippet("keras"), names)  # noqa: S102 - ours

    assert len(read_file(tmp_path / "curve.csv")) >= 5
    assert names["watch"].diagnosis.verdict != Verdict.TOO_EARLY
