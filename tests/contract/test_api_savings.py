"""What stopping at the best epoch would have saved, in the answer of the API, on the page and in the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from unittest.mock import Mock

import pytest
from sqlalchemy import select

from api_support import ServedApi, serve_api
from curvewatch_service import terminal
from curvewatch_service.cli import main
from curvewatch_service.schemas import EpochList, RunView, SavingsView
from curvewatch_service.tables import RunRow
from curvewatch_workers.contract import EpochFinished, EpochRecord, IngestMessage
from record_support import make_record
from store_support import attempt_message, between, new_run

Seconds = Sequence[float]
"""Seconds of each rank in one epoch."""


@pytest.fixture
def api(tmp_path: Path) -> Iterator[ServedApi]:
    with serve_api(tmp_path) as served:
        yield served


def epoch(number: int, validation: float, seconds: Seconds, *, attempt: int = 1) -> EpochRecord:
    record = make_record(
        epoch=number,
        attempt=attempt,
        run_id="digits-1",
        validation_loss=validation,
        world_size=len(seconds),
    )
    # What it took by the clock has the reduction in it, and is not what is counted.
    taken = {"rank_seconds": tuple(seconds), "finished_at": record.started_at + timedelta(seconds=9999)}
    return record.model_copy(update=taken)


def shown(api: ServedApi, *messages: IngestMessage, gpus: int = 0) -> RunView:
    new_run(api.services.store, scaling=between(1, 4, gpus_per_worker=gpus))
    api.services.store.ingest("digits-1", [attempt_message(1), *messages])
    answer = api.request("GET", "/api/v1/runs/digits-1")
    assert answer.status_code == 200, answer.text
    return RunView.model_validate_json(answer.content)


def savings_of(run: RunView) -> SavingsView | None:
    assert run.diagnosis is not None
    return run.diagnosis.savings


CURVE = [
    epoch(1, 0.9, (100.0, 90.0)),
    epoch(2, 0.5, (100.0, 90.0)),
    epoch(3, 0.6, (1800.0, 900.0)),
    epoch(4, 0.7, (600.0, 1200.0, 5.0, 5.0)),
    epoch(5, 0.8, (60.0,)),
]
"""The best is epoch 2; then 1800 s on two workers, 1200 s on four and 60 s on one."""


def told(records: Sequence[EpochRecord]) -> list[IngestMessage]:
    return [EpochFinished(record=record) for record in records]


def test_epochs_time_and_gpu_hours_after_the_best_epoch_are_its_savings(api: ServedApi) -> None:
    saved = savings_of(shown(api, *told(CURVE), gpus=1))

    assert saved is not None
    assert (saved.stop_epoch, saved.epochs, saved.seconds, saved.loss) == (2, 3, 3060.0, 0.0)
    assert saved.gpu_hours == pytest.approx(2 * 0.5 + 4 / 3 + 1 / 60)


def test_a_job_without_gpus_saves_no_gpu_hours(api: ServedApi) -> None:
    saved = savings_of(shown(api, *told(CURVE)))

    assert saved is not None
    assert (saved.seconds, saved.gpu_hours) == (3060.0, None)


def test_an_epoch_that_was_trained_again_counts_once(api: ServedApi) -> None:
    again = epoch(4, 0.7, (30.0, 40.0), attempt=2)
    messages = [*told(CURVE[:4]), attempt_message(2, resumed_after_epoch=3), *told([again])]

    saved = savings_of(shown(api, *messages, gpus=1))

    assert saved is not None
    assert (saved.epochs, saved.seconds) == (2, 1840.0)
    assert saved.gpu_hours == pytest.approx(2 * 1840 / 3600)


def test_while_the_latest_epoch_is_the_best_there_is_nothing_to_save(api: ServedApi) -> None:
    assert savings_of(shown(api, *told(CURVE[:2]), gpus=1)) is None


def test_an_epoch_that_comes_before_the_one_it_follows_is_not_counted_yet(api: ServedApi) -> None:
    saved = savings_of(shown(api, *told([*CURVE[:3], CURVE[4]]), gpus=1))

    assert saved is not None
    assert (saved.epochs, saved.seconds) == (1, 1800.0)


def without_savings(api: ServedApi) -> None:
    """Leave the diagnosis as a Curvewatch did that kept no savings with it."""
    with api.services.store.write() as session:
        (row,) = session.scalars(select(RunRow))
        row.diagnosis = {name: value for name, value in (row.diagnosis or {}).items() if name != "savings"}


def answered(api: ServedApi) -> SavingsView | None:
    return savings_of(RunView.model_validate_json(api.request("GET", "/api/v1/runs/digits-1").content))


def test_who_asks_how_a_run_is_doing_has_no_record_read_but_the_latest(
    api: ServedApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = savings_of(shown(api, *told(CURVE), gpus=1))
    parse = Mock(side_effect=EpochRecord.model_validate_json)
    monkeypatch.setattr(EpochRecord, "model_validate_json", parse)

    assert answered(api) == saved
    assert saved is not None
    parse.assert_called_once()


def test_a_run_that_ended_before_savings_were_kept_has_them_still(api: ServedApi) -> None:
    saved = savings_of(shown(api, *told(CURVE), gpus=1))
    without_savings(api)

    assert saved is not None
    assert answered(api) == saved


def test_a_run_that_began_before_savings_were_kept_gets_them_with_its_next_epoch(api: ServedApi) -> None:
    shown(api, *told(CURVE), gpus=1)
    without_savings(api)
    api.services.store.ingest("digits-1", told([epoch(6, 0.9, (40.0, 90.0))]))

    diagnosis = api.services.store.run("digits-1").diagnosis
    assert diagnosis is not None
    assert diagnosis["savings"]["seconds"] == 3150.0


def test_an_epoch_with_the_lowest_loss_that_was_undone_makes_no_stop_cost_anything(api: ServedApi) -> None:
    back = epoch(5, 0.8, (60.0,)).model_copy(update={"rolled_back_to": 2})
    saved = savings_of(shown(api, *told([*CURVE[:3], epoch(4, 0.4, (600.0, 600.0)), back]), gpus=1))

    assert saved is not None
    assert (saved.stop_epoch, saved.epochs, saved.seconds, saved.loss) == (2, 3, 2460.0, 0.0)


def test_a_mean_over_the_samples_that_were_finite_makes_no_best_epoch(api: ServedApi) -> None:
    partial = epoch(4, 0.1, (600.0, 600.0))
    partial = partial.model_copy(
        update={"validation": partial.validation.model_copy(update={"nonfinite_samples": 3})}
    )
    run = shown(api, *told([*CURVE[:3], partial]), gpus=1)

    assert run.diagnosis is not None
    assert (run.diagnosis.verdict, run.diagnosis.best_epoch) == ("not_finite", 2)
    assert run.diagnosis.best_validation_loss == pytest.approx(0.5)
    assert savings_of(run) is not None
    epochs = EpochList.model_validate_json(api.request("GET", "/api/v1/runs/digits-1/epochs").content).epochs
    best = terminal.best_epoch(epochs)
    assert best is not None
    assert best.epoch == 2


SENTENCE = (
    "Stopping at the best epoch, 2, would have saved 3 epochs (51 min 00 s, 2.35 GPU-hours) and cost nothing."
)


def test_page_and_terminal_say_it(
    api: ServedApi, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shown(api, *told(CURVE), gpus=1)

    page = api.request("GET", "/runs/digits-1").text
    monkeypatch.setattr(
        "sys.argv", ["curvewatch", "show", run.run_id, "--server", api.url, "--token", api.token]
    )
    with pytest.raises(SystemExit) as ending:
        main()

    assert SENTENCE in page
    assert (ending.value.code or 0) == 0
    assert f"Savings: {SENTENCE}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("saved", "said"),
    [
        ({}, "1 epoch and cost nothing"),
        ({"epochs": 8, "seconds": 7800.0}, "8 epochs (2 h 10 min) and cost nothing"),
        ({"loss": 0.0125}, "1 epoch and cost 0.0125 of validation loss"),
        ({"loss": None}, "1 epoch and left no epoch with a finite validation loss"),
    ],
)
def test_what_is_not_known_is_not_said(saved: dict[str, float | None], said: str) -> None:
    fields = {"stop_epoch": 1, "epochs": 1, "seconds": None, "gpu_hours": None, "loss": 0.0, **saved}

    assert terminal.saved_and_cost(SavingsView.model_validate(fields)) == said
