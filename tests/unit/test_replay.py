"""What a policy would have done on the records of a run, beside what it does while they come in."""

from __future__ import annotations

import math
from typing import Any

import pytest

from curvewatch_service.replay_table import replay_table, replay_total
from curvewatch_workers.contract import (
    Control,
    EpochRecord,
    JobSpec,
    MetricTotals,
    Outcome,
    PolicySpec,
)
from curvewatch_workers.decisions import Decisions
from curvewatch_workers.replay import PolicyMismatchError, replay, savings_of_run
from record_support import make_record
from store_support import job


def spec(**changes: Any) -> JobSpec:
    return job(training={"epochs": 30, "global_batch_size": 32}, **changes)


def run_of(losses: list[float]) -> list[EpochRecord]:
    return [
        make_record(epoch=epoch, train_loss=loss, validation_loss=loss)
        for epoch, loss in enumerate(losses, 1)
    ]


def policy(**fields: Any) -> PolicySpec:
    return PolicySpec.model_validate(fields)


FALLS = [0.9**epoch for epoch in range(30)]


def test_a_run_without_an_epoch_gives_a_policy_nothing_to_do() -> None:
    assert replay([], spec(), policy(early_stopping={"metric": "accuracy", "mode": "max"})) is None


@pytest.mark.parametrize("bad", [1, 12, 30])
def test_a_run_that_would_have_failed_is_said_to_also_in_its_last_epoch(bad: int) -> None:
    losses = [math.nan if epoch == bad else loss for epoch, loss in enumerate(FALLS, 1)]
    stops = policy(on_nonfinite="stop")
    found = replay(run_of(losses), spec(), stops)

    decisions = Decisions(spec().model_copy(update={"policy": stops}), ("accuracy",))
    for record in run_of(losses)[:bad]:
        decisions.take(record)
    ending = decisions.ending(Control.CONTINUE)
    assert ending is not None
    assert ending.outcome is Outcome.FAILED
    assert found is not None
    assert (found.deed, found.epoch, found.why) == ("fail", bad, ending.reason)


def test_the_last_epoch_is_no_early_end() -> None:
    assert replay(run_of(FALLS), spec(), policy(max_samples=30 * 200)) is None
    assert replay(run_of(FALLS[:1]), job(training={"epochs": 1, "global_batch_size": 2}), policy()) is None


@pytest.mark.parametrize("missing", [1, 7])
def test_epochs_are_replayed_up_to_the_first_that_is_missing(missing: int) -> None:
    records = [record for record in run_of(FALLS) if record.epoch != missing]
    found = replay(records, spec(), policy(max_samples=200 * 5))

    if missing == 1:
        assert found is None
    else:
        assert found is not None
        assert (found.epoch, found.savings) == (5, savings_of_run(run_of(FALLS)[:6], spec(), 5))
    assert replay(records, spec(), policy(max_samples=200 * 8)) is None


def test_a_number_that_some_epochs_lack_is_none_to_decide_by() -> None:
    records = run_of(FALLS)
    records[9] = records[9].model_copy(
        update={"validation": records[9].validation.model_copy(update={"metrics": {}})}
    )
    with pytest.raises(
        PolicyMismatchError, match=r"early_stopping.metric is 'accuracy', but .* measures: loss"
    ):
        replay(records, spec(), policy(early_stopping={"metric": "accuracy", "mode": "max", "patience": 30}))


def test_a_run_that_ranks_checkpoints_by_what_it_did_not_measure_is_told() -> None:
    ranked = spec(checkpoints={"best": {"metric": "f1", "mode": "max"}})
    with pytest.raises(PolicyMismatchError, match=r"checkpoints.best.metric is 'f1'"):
        replay(run_of(FALLS), ranked, policy(overfitting="stop"))
    assert replay(run_of(FALLS), ranked, policy(max_samples=600)) is not None


def test_a_metric_that_is_not_finite_is_no_best() -> None:
    records = [
        record.model_copy(
            update={
                "validation": record.validation.model_copy(
                    update={"metrics": {"accuracy": MetricTotals(total=0.0, count=0)}}
                )
            }
        )
        for record in run_of(FALLS)
    ]
    found = replay(
        records, spec(), policy(early_stopping={"metric": "accuracy", "mode": "max", "patience": 4})
    )

    assert found is not None
    assert found.epoch == 4


def answer(**changes: Any) -> dict[str, Any]:
    saved = {"epochs": 29, "seconds": 290.0, "gpu_hours": None, "loss": None}
    return {
        "run_id": "a-1",
        "name": "a",
        "state": "SUCCEEDED",
        "epochs": 30,
        "deed": "fail",
        "epoch": 1,
        "why": "",
        "savings": saved,
        "problem": None,
        **changes,
    }


def test_an_end_before_any_finite_loss_is_told_as_costly() -> None:
    table = replay_table([answer()])

    assert list(table.columns[-1].cells) == ["no finite loss"]
    assert "saved 29 of 30 epochs" in replay_total([answer()])
    assert "; 1 run of these found a better validation loss later." in replay_total([answer()])
