"""What the policy answers to a verdict, from records alone."""

from __future__ import annotations

import math
from typing import Any

import pytest

from curvewatch_workers.contract import (
    Control,
    EpochRecord,
    JobSpec,
    Outcome,
    SpecError,
    parse_job_spec,
    standing,
)
from curvewatch_workers.decisions import Decisions
from curvewatch_workers.diagnosis import Verdict
from curvewatch_workers.policy import Action, VerdictPolicy
from engine_support import make_spec
from record_support import make_record

FALLS = [1.0, 0.8, 0.66, 0.56, 0.5, 0.46, 0.44, 0.42]
BLOWS_UP = [0.5, 0.9, 1.7, 3.0, 6.0, 12.0]
OVERFITS = [(0.9 * 0.75**n, 0.55 + 0.4 * 0.6**n + max(0, n - 6) * 0.05) for n in range(20)]


def spec(epochs: int = 40, **policy: Any) -> JobSpec:
    return make_spec(epochs=epochs, policy=policy)


def curve(losses: list[float], first: int = 1) -> list[EpochRecord]:
    return [
        make_record(epoch=epoch, train_loss=loss, validation_loss=loss)
        for epoch, loss in enumerate(losses, first)
    ]


def overfits() -> list[EpochRecord]:
    return [
        make_record(
            epoch=epoch,
            train_loss=train,
            validation_loss=validation,
            accuracy=0.9 - 0.02 * max(0, epoch - 7),
        )
        for epoch, (train, validation) in enumerate(OVERFITS, 1)
    ]


def answers(job: JobSpec, records: list[EpochRecord]) -> list[Action]:
    policy = VerdictPolicy(job)
    return [action for record in records if (action := policy.take(record)) is not None]


def back(record: EpochRecord, to: int) -> EpochRecord:
    return record.model_copy(update={"rolled_back_to": to})


def test_what_is_observed_is_told_once_and_ends_nothing() -> None:
    told = answers(spec(), overfits())

    assert [(action.deed, action.observed, action.verdict) for action in told] == [
        ("stop", True, Verdict.OVERFITTING)
    ]
    assert "`policy.overfitting: stop` would act here; it says `observe`" in told[0].message

    decisions = Decisions(spec(), ())
    for record in overfits():
        decisions.take(record)
        assert decisions.ending(Control.CONTINUE) is None


def test_overfitting_ends_a_run_with_its_best_weights() -> None:
    decisions = Decisions(spec(overfitting="stop"), ())
    for record in overfits():
        decisions.take(record)
        ending = decisions.ending(Control.CONTINUE)
        if ending is not None:
            break

    assert ending is not None
    assert ending.outcome is Outcome.SUCCEEDED
    assert ending.restore_best
    assert "stopped by its verdict, overfitting" in ending.reason
    validation = [record.validation.loss for record in decisions.records]
    assert (
        decisions.stopper.best_epoch
        == validation.index(min(validation)) + 1
        < len(validation)
        < len(OVERFITS)
    )


def test_a_curve_that_cannot_be_read_costs_no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_policy: VerdictPolicy, _record: EpochRecord) -> Action | None:
        raise ZeroDivisionError

    monkeypatch.setattr(VerdictPolicy, "take", fails)
    decisions = Decisions(spec(overfitting="stop", early_stopping={"patience": 3}), ())
    for record in overfits()[:9]:
        decisions.take(record)
        assert decisions.ending(Control.CONTINUE) is None
    for record in overfits()[9:]:
        decisions.take(record)

    ending = decisions.ending(Control.CONTINUE)
    assert ending is not None
    assert not ending.by_verdict


def test_a_good_run_is_answered_by_nothing() -> None:
    losses = [0.1 + 0.9 * 0.85**n for n in range(60)]

    assert answers(spec(60, overfitting="stop", diverging="rescue", plateau="stop"), curve(losses)) == []


def test_the_users_word_goes_before_the_verdict_and_the_verdict_before_early_stopping() -> None:
    decisions = Decisions(spec(overfitting="stop", early_stopping={"patience": 1, "restore_best": False}), ())
    policy = VerdictPolicy(spec(overfitting="stop"))
    for record in overfits():
        decisions.take(record)
        if policy.take(record) is not None:
            break

    stopped, by_verdict = decisions.ending(Control.STOP), decisions.ending(Control.CONTINUE)
    assert stopped is not None
    assert stopped.outcome is Outcome.STOPPED
    assert not stopped.by_verdict
    assert by_verdict is not None
    assert by_verdict.by_verdict


@pytest.mark.parametrize(("metric", "mode", "answered"), [("loss", "min", True), ("accuracy", "max", False)])
def test_being_overconfident_ends_only_a_run_that_is_ranked_by_its_loss(
    metric: str, mode: str, answered: bool
) -> None:
    job = make_spec(
        epochs=40, policy={"overfitting": "stop"}, checkpoints={"best": {"metric": metric, "mode": mode}}
    )
    records = [
        make_record(epoch=epoch, train_loss=train, validation_loss=validation, accuracy=0.8)
        for epoch, (train, validation) in enumerate(OVERFITS, 1)
    ]

    assert [action.verdict for action in answers(job, records)[:1]] == [Verdict.OVERCONFIDENT] * answered


def test_a_rescue_goes_back_behind_the_rise() -> None:
    told = answers(spec(diverging="rescue"), curve(FALLS + BLOWS_UP))

    assert told[0].deed == "rescue"
    assert told[0].good_epochs == set(range(1, 9))
    assert (
        "It goes back to the last checkpoint up to epoch 8, with 0.1 of its learning rate." in told[0].message
    )


@pytest.mark.parametrize(("before", "good"), [(FALLS, 8), ([], 0)])
def test_a_loss_that_is_nan_is_answered_at_once(before: list[float], good: int) -> None:
    told = answers(spec(diverging="rescue"), curve([*before, math.nan]))

    assert [(action.epoch, action.verdict) for action in told] == [(good + 1, Verdict.NOT_FINITE)]
    assert told[0].good_epochs == set(range(1, good + 1))
    assert ("the initial weights" in told[0].message) is (good == 0)


@pytest.mark.parametrize("rise", [[2e38], [9.0, 2e38], [0.9]])
def test_no_epoch_that_has_risen_is_a_place_to_go_back_to_where_the_loss_becomes_nan(
    rise: list[float],
) -> None:
    told = answers(spec(diverging="rescue"), curve([*FALLS, *rise, math.nan]))

    assert told[-1].verdict is Verdict.NOT_FINITE
    assert told[-1].good_epochs == set(range(1, 9))


def test_an_epoch_that_is_a_little_worse_than_the_best_is_a_place_to_go_back_to() -> None:
    told = answers(spec(diverging="rescue"), curve([*FALLS, 0.45, math.nan]))

    assert told[0].good_epochs == set(range(1, 10))


def test_no_epoch_that_has_risen_is_a_place_to_go_back_to_where_its_train_loss_was_the_lowest() -> None:
    # Train loss is measured before the last steps of an epoch, validation loss after them.
    records = [
        make_record(epoch=epoch, train_loss=train, validation_loss=validation)
        for epoch, (train, validation) in enumerate(
            zip([*FALLS, 0.4, 3.0, 9.0, 30.0], [*FALLS, 3.0, 9.0, 30.0, 90.0], strict=True), 1
        )
    ]
    told = answers(spec(diverging="rescue"), records)

    assert told
    assert [action.good_epochs for action in told] == [set(range(1, 9))] * len(told)


def test_a_few_samples_without_a_finite_loss_are_no_reason_for_a_rescue() -> None:
    records = curve(FALLS)
    spoilt = records[4].validation.model_copy(update={"nonfinite_samples": 1, "samples_seen": 101})
    records[4] = records[4].model_copy(update={"validation": spoilt})

    assert answers(spec(diverging="rescue"), records) == []


def test_what_a_rescue_undid_counts_no_more_and_is_no_place_to_go_back_to() -> None:
    first = curve(FALLS + BLOWS_UP[:4])
    after = curve([0.42, 0.41, 0.4, 0.39], first=13)
    after[0] = back(after[0], 8)
    again = curve(BLOWS_UP, first=17)

    told = answers(spec(diverging="rescue"), first + after + again)

    # The rise is seen anew at each epoch; a rescue that is carried out ends it.
    epochs = [action.epoch for action in told]
    assert all(epoch <= 12 or epoch >= 17 for epoch in epochs)
    assert told[-1].good_epochs == {*range(1, 9), *range(13, 17)}


def test_after_its_last_rescue_a_run_that_diverges_has_failed() -> None:
    decisions = Decisions(spec(diverging="rescue", max_interventions=1), ())
    records = curve(FALLS + BLOWS_UP[:4])
    after = curve(FALLS[-1:] + BLOWS_UP, first=13)
    after[0] = back(after[0], 8)
    endings = []
    for record in records + after:
        decisions.take(record)
        endings.append(decisions.ending(Control.CONTINUE))

    assert endings[:12] == [None] * 12
    given_up = next(ending for ending in endings if ending is not None)
    assert given_up.outcome is Outcome.FAILED
    assert "It has been rescued 1 times (policy.max_interventions: 1)" in given_up.reason


def test_a_rescue_goes_before_early_stopping() -> None:
    for diverging in ("rescue", "observe"):
        decisions = Decisions(spec(diverging=diverging, early_stopping={"patience": 1}), ())
        for record in curve([*FALLS, math.nan]):
            decisions.take(record)

        assert (decisions.ending(Control.CONTINUE) is None) is (diverging == "rescue")


def test_patience_begins_anew_after_a_rescue() -> None:
    decisions = Decisions(spec(diverging="rescue", early_stopping={"patience": 6}), ())
    records = curve(FALLS + BLOWS_UP[:4])
    after = curve([0.43] * 5, first=13)
    after[0] = back(after[0], 8)
    for record in records + after:
        decisions.take(record)
        assert decisions.ending(Control.CONTINUE) is None


def rests(epochs: int) -> list[EpochRecord]:
    """A curve that comes down to a third within an epoch or two and rests there."""
    return curve([1.0, 0.8, 0.65, 0.53, *(0.45 + 1e-4 * (n % 3) for n in range(epochs - 4))])


def test_a_plateau_lowers_the_learning_rate_once_in_each_patience() -> None:
    job = make_spec(
        epochs=60, policy={"plateau": "reduce_lr", "max_interventions": 2}, monitoring={"patience_epochs": 7}
    )
    told = answers(job, rests(60))

    assert [action.deed for action in told] == ["reduce_lr", "reduce_lr"]
    assert told[0].epoch >= 8
    assert told[1].epoch == told[0].epoch + 7
    assert "is waited for over 7 epochs" in told[0].message


@pytest.mark.parametrize("setting", ["observe", "stop"])
def test_a_plateau_may_end_a_run(setting: str) -> None:
    told = answers(spec(90, plateau=setting), rests(90))

    assert told[0].deed == "stop"
    assert told[0].observed is (setting == "observe")
    # The advice to stop waits for twenty epochs without a better one.
    assert told[0].epoch >= 25


def test_the_same_records_lead_to_the_same_answers_wherever_a_run_is_interrupted() -> None:
    job = spec(diverging="rescue", overfitting="stop")
    after = curve([0.42, 0.4, 0.38, 0.5, 0.9, 1.8, 3.0, 6.0], first=13)
    after[0] = back(after[0], 8)
    records = curve(FALLS + BLOWS_UP[:4]) + after
    whole = VerdictPolicy(job)
    expected = [whole.take(record) for record in records]

    for cut in range(1, len(records)):
        resumed = VerdictPolicy(job)
        for record in records[:cut]:
            resumed.take(record)
        assert [resumed.take(record) for record in records[cut:]] == expected[cut:]


def test_a_curve_stands_as_the_weights_that_came_back() -> None:
    records = curve([1.0, 0.5, 0.4, 9.0, 99.0, 0.38, 0.36])
    records[5] = back(records[5], 3)
    from_the_start = back(records[5], 0)

    assert [record.epoch for record in standing(records)] == [1, 2, 3, 3, 3, 6, 7]
    assert [record.epoch for record in standing(records[:5])] == [1, 2, 3, 4, 5]
    assert [record.epoch for record in standing([*records[:5], from_the_start])] == [6] * 6
    assert standing([]) == []


def test_a_second_rescue_may_go_back_behind_the_first() -> None:
    records = curve([1.0, 0.5, 9.0, 0.48, 0.47, 9.0, 0.49])
    records[3] = back(records[3], 2)
    records[6] = back(records[6], 1)

    assert [record.epoch for record in standing(records)] == [1, 1, 1, 1, 1, 1, 7]


@pytest.mark.parametrize("to", [4, 5])
def test_a_record_goes_back_to_an_earlier_epoch_only(to: int) -> None:
    with pytest.raises(ValueError, match=rf"rolled_back_to is {to}, which is not before epoch 4"):
        EpochRecord.model_validate({**make_record(epoch=5).model_dump(), "rolled_back_to": to})


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("overfitting: rescue", "policy.overfitting: input should be 'observe' or 'stop', got 'rescue'"),
        ("diverging: stop", "policy.diverging: input should be 'observe' or 'rescue', got 'stop'"),
        ("learning_rate_factor: 2", "policy.learning_rate_factor: input should be less than 1, got 2"),
        (
            "max_interventions: 0",
            "policy.max_interventions: input should be greater than or equal to 1, got 0",
        ),
        ("overfiting: stop", "policy.overfiting: unknown field; did you mean `overfitting`?"),
    ],
)
def test_a_wrong_policy_is_told(line: str, problem: str) -> None:
    job = f"name: a\ncode: {{task: a:b}}\ntraining: {{epochs: 1, global_batch_size: 1}}\npolicy: {{{line}}}\n"

    with pytest.raises(SpecError, match=problem.replace("?", r"\?")):
        parse_job_spec(job)
