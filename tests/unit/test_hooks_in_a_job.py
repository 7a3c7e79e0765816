"""The hooks inside a job whose loop is the user's: the run has the framework's curve, and says that it is its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from curvewatch_service.spool import SpoolReader
from curvewatch_service.store import Store
from curvewatch_workers.checkpoint import NoCheckpoints
from curvewatch_workers.contract import AttemptStarted, Control, Outcome, WorkerJob
from curvewatch_workers.errors import HookError
from curvewatch_workers.group import Group, SoloGroup
from curvewatch_workers.reporter import Reporter, reporter_for
from curvewatch_workers.testing import FakeGroup, RecordingReporter
from curvewatch_workers.worker import WorkerEnding, run_worker
from engine_support import make_spec
from hook_support import read_file
from own_loop_support import store_of_run, write_loop

RUN = "digits-1"
pytestmark = pytest.mark.filterwarnings("ignore:.*(bottleneck|isn't supported|TreeSpec|log|is not empty).*")
USERS_FILE = """
from pathlib import Path

from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from curvewatch_workers.hooks.lightning import CurvewatchCallback
from unit.test_hook_lightning import fit

class Power(Callback):
    def __init__(self, dies_in):
        self.dies_in = dies_in

    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch + 1 == self.dies_in:
            raise OSError("the power is gone")

def of_others(framework, folder):
    if framework == "keras":
        from unit.test_hook_keras import CurvewatchCallback, fit

        fit(CurvewatchCallback(Path(folder, "curve.csv")), epochs=4)
    else:
        from unit.test_hook_transformers import CurvewatchCallback, make_trainer

        make_trainer(CurvewatchCallback(Path(folder, "curve.csv")), Path(folder), epochs=4).train()

def main(folder, framework=None, epochs=8, dies_in=0, file=None, stop=False, at_epoch_end=True):
    if framework is not None:
        return of_others(framework, folder)
    kept = Path(folder) / "last.ckpt"
    keep = ModelCheckpoint(folder, "last", save_on_train_epoch_end=at_epoch_end, enable_version_counter=False)
    fit(
        CurvewatchCallback(file, stop=stop),
        Path(folder),
        keep,
        Power(dies_in),
        epochs=epochs,
        resume=kept if kept.exists() else None,
    )
"""


@pytest.fixture(autouse=True)
def users_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_loop(USERS_FILE, tmp_path, monkeypatch)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with store_of_run(tmp_path, RUN) as opened:
        yield opened


def start(
    folder: Path, reporter: Reporter | None = None, group: Group | None = None, **params: object
) -> WorkerEnding:
    """Run one attempt."""
    given = {"folder": str(folder / "kept"), **params}
    spec = make_spec(code={"loop": "my_loop:main"}, params=given, epochs=8)
    job = WorkerJob(run_id=RUN, submission=1, spec=spec, storage_path=str(folder / "runs"), service_url=None)
    return run_worker(
        job,
        group or SoloGroup(),
        NoCheckpoints(),
        lambda attempt: reporter or reporter_for(job, f"attempt-{attempt:06d}"),
    )


def test_the_run_has_the_numbers_of_lightning_and_says_whose_they_are(tmp_path: Path, store: Store) -> None:
    file = tmp_path / "curve.csv"

    ending = start(tmp_path, file=str(file))

    SpoolReader(store, tmp_path / "runs").ingest(RUN)
    assert ending.outcome is Outcome.SUCCEEDED
    epochs = store.epochs(RUN)
    assert [
        {
            "epoch": epoch.epoch,
            "learning_rate": epoch.learning_rate,
            "train_loss": epoch.train.loss,
            "val_loss": epoch.validation.loss,
            "val_accuracy": epoch.validation.metric_values["accuracy"],
        }
        for epoch in epochs
    ] == read_file(file)
    assert len(epochs) == 8
    assert {epoch.learning_rate for epoch in epochs} == {1e-2}
    assert not any(epoch.split(name).exact for epoch in epochs for name in ("train", "validation"))
    assert {epoch.train.reported_by for epoch in epochs} == {"lightning"}
    told = [event for event in store.events(RUN) if event.actor == "worker"]
    assert [event.message for event in told if event.reason != "state_running"] == [
        "the numbers are the means that lightning reports: which samples are behind them is not known, so that no "
        "epoch counts as exact"
    ]
    diagnosis = store.run(RUN).diagnosis
    assert diagnosis is not None
    assert diagnosis["verdict"] != "too_early"


@pytest.mark.parametrize("at_epoch_end", [True, False])
def test_a_restart_goes_on_from_lightnings_checkpoint(
    tmp_path: Path, store: Store, *, at_epoch_end: bool
) -> None:
    with pytest.raises(OSError, match="power"):
        start(tmp_path, dies_in=5, at_epoch_end=at_epoch_end)
    reporter = RecordingReporter()

    start(tmp_path, reporter, at_epoch_end=at_epoch_end)
    SpoolReader(store, tmp_path / "runs").ingest(RUN)
    store.ingest(RUN, reporter.messages)

    started = next(message for message in reporter.messages if isinstance(message, AttemptStarted))
    assert (started.attempt, started.resumed_after_epoch) == (2, 4)
    assert [(epoch.epoch, epoch.attempt) for epoch in store.epochs(RUN)] == [
        (epoch, 1 if epoch < 5 else 2) for epoch in range(1, 9)
    ]


def test_the_service_stops_the_training(tmp_path: Path) -> None:
    ending = start(tmp_path, RecordingReporter(Control.STOP))

    assert (ending.outcome, ending.reason) == (Outcome.STOPPED, "the loop has returned after epoch 1")


@pytest.mark.parametrize("framework", ["keras", "transformers"])
def test_the_other_frameworks_tell_theirs(framework: str, tmp_path: Path) -> None:
    reporter = RecordingReporter()

    start(tmp_path, reporter, framework=framework)

    rows = read_file(tmp_path / "kept" / "curve.csv")
    assert [(record.epoch, record.train.loss, record.validation.loss) for record in reporter.records] == [
        (row["epoch"], row["train_loss"], row["val_loss"]) for row in rows
    ]
    assert [record.learning_rate for record in reporter.records] == pytest.approx([1e-2] * 4)
    assert {record.validation.reported_by for record in reporter.records} == {framework}
    with pytest.raises(HookError, match=f"the job has 2 workers, but {framework} trains on 1 process"):
        start(tmp_path, RecordingReporter(), FakeGroup(world_size=2), framework=framework)


def test_a_stop_by_verdict_is_a_success(tmp_path: Path) -> None:
    reporter = RecordingReporter()

    ending = start(tmp_path, reporter, stop=True, epochs=60)

    assert ending.outcome is Outcome.SUCCEEDED
    assert 5 <= len(reporter.records) < 60


def test_workers_that_train_each_by_itself_are_refused(tmp_path: Path) -> None:
    with pytest.raises(HookError, match="the job has 2 workers, but lightning trains on 1 process together"):
        start(tmp_path, RecordingReporter(), FakeGroup(world_size=2))
