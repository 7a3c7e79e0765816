from __future__ import annotations

import math

import pytest

from curvewatch_workers.contract import BestSpec, Control, EarlyStoppingSpec, EpochRecord, Outcome
from curvewatch_workers.decisions import (
    EarlyStopper,
    NeverStops,
    ending_after,
    make_stopper,
    restarts_left,
)
from curvewatch_workers.ranking import Best, best_of
from engine_support import make_spec
from record_support import make_record


def fed(stopper: EarlyStopper, losses: list[float]) -> list[bool]:
    return [
        stopper.should_stop(make_record(epoch=i, validation_loss=v)) is not None
        for i, v in enumerate(losses, 1)
    ]


def test_patience_counts_epochs_since_the_best() -> None:
    stopper = EarlyStopper(EarlyStoppingSpec(patience=2))

    assert fed(stopper, [1.0, 0.5, 0.6, 0.5, 0.4]) == [False, False, False, True, False]


def test_min_delta_is_what_counts_as_better() -> None:
    stopper = EarlyStopper(EarlyStoppingSpec(patience=2, min_delta=0.1))

    assert fed(stopper, [1.0, 0.95, 0.92]) == [False, False, True]


def test_metrics_may_be_watched_for_their_maximum() -> None:
    stopper = EarlyStopper(EarlyStoppingSpec(metric="accuracy", mode="max", patience=1))
    first, second = (make_record(epoch=i, validation_loss=1.0, accuracy=a) for i, a in ((1, 0.5), (2, 0.4)))

    assert stopper.should_stop(first) is None
    assert "best 0.5 at epoch 1, now 0.4" in (stopper.should_stop(second) or "")


def test_not_a_number_is_no_improvement() -> None:
    stopper = EarlyStopper(EarlyStoppingSpec(patience=2))

    assert fed(stopper, [1.0, math.nan, math.nan]) == [False, False, True]


def test_a_job_without_early_stopping_never_stops() -> None:
    stopper = make_stopper(make_spec(), ())

    assert isinstance(stopper, NeverStops)
    assert stopper.should_stop(make_record(epoch=1, validation_loss=math.nan)) is None


def test_the_users_word_goes_first_then_the_end_then_early_stopping_then_pause() -> None:
    spec = make_spec(epochs=5)

    def outcome(record: EpochRecord, control: Control, plateau: str | None) -> Outcome | None:
        ending = ending_after([record], spec, control, plateau)
        return ending.outcome if ending else None

    middle, last = make_record(epoch=2), make_record(epoch=5)
    assert outcome(middle, Control.CONTINUE, None) is None
    assert outcome(middle, Control.STOP, "flat") is Outcome.STOPPED
    assert outcome(last, Control.STOP, None) is Outcome.STOPPED
    assert outcome(last, Control.PAUSE, None) is Outcome.SUCCEEDED
    assert outcome(middle, Control.PAUSE, "flat") is Outcome.SUCCEEDED
    assert outcome(middle, Control.PAUSE, None) is Outcome.PAUSED


def test_what_is_not_finite_goes_before_the_users_word() -> None:
    spec = make_spec(epochs=5, policy={"on_nonfinite": "stop"})
    spoilt = make_record(epoch=2, train_loss=math.nan)

    ending = ending_after([spoilt], spec, Control.STOP, "flat")

    assert ending is not None
    assert ending.outcome is Outcome.FAILED
    assert not ending.keep
    assert "200 samples was NaN or infinite in epoch 2" in ending.reason
    assert ending_after([spoilt], make_spec(epochs=5), Control.CONTINUE, None) is None


def test_budgets_end_a_run_by_numbers_that_every_rank_has() -> None:
    records = [make_record(epoch=epoch, seconds=2.0) for epoch in (1, 2, 3)]

    def reason(**policy: object) -> str | None:
        ending = ending_after(records, make_spec(epochs=9, policy=policy), Control.CONTINUE, None)
        return ending.reason if ending else None

    assert "trained for 6.0 s, policy.max_seconds is 6" in (reason(max_seconds=6) or "")
    assert reason(max_seconds=6.1) is None
    assert "on 600 samples, policy.max_samples is 600" in (reason(max_samples=600) or "")
    assert reason(max_samples=601) is None


def test_warm_up_epochs_do_not_count_against_patience() -> None:
    stopper = EarlyStopper(EarlyStoppingSpec(patience=2, warmup_epochs=3))

    assert fed(stopper, [1.0, 1.1, 1.2, 1.3, 1.4]) == [False, False, False, False, True]


def test_the_best_epoch_is_known() -> None:
    stopper = EarlyStopper(EarlyStoppingSpec(patience=9))
    records = [make_record(epoch=i, validation_loss=v) for i, v in enumerate([1.0, 0.5, 0.7], 1)]
    best = []
    for record in records:
        stopper.should_stop(record)
        best.append(stopper.is_best(record))

    assert best == [True, True, False]


@pytest.mark.parametrize(
    ("attempts", "deaths", "left"),
    [
        (1, 1, 2),  # the next group is the first restart
        (3, 1, 0),  # Ray Train had restarted twice: the next one is the last
        (4, 1, -1),
        (0, 1, 2),  # it died before any group had started
        (0, 3, 0),
        (0, 4, -1),
        (2, 3, 0),
    ],
)
def test_restarts_are_counted_over_all_controllers(attempts: int, deaths: int, left: int) -> None:
    assert restarts_left(3, attempts=attempts, deaths=deaths) == left


def test_a_job_without_restarts_ends_with_its_controller() -> None:
    assert restarts_left(0, attempts=1, deaths=1) < 0
    assert restarts_left(0, attempts=0, deaths=1) < 0


def test_an_epoch_in_which_some_losses_overflow_is_never_the_best() -> None:
    stopper = EarlyStopper(EarlyStoppingSpec(patience=1))
    sound, spoilt = make_record(epoch=1, validation_loss=0.5), make_record(epoch=2, validation_loss=0.001)
    validation = spoilt.validation.model_copy(update={"nonfinite_samples": 1})
    spoilt = spoilt.model_copy(update={"validation": validation})

    assert stopper.should_stop(sound) is None
    assert "best 0.5 at epoch 1, now nan" in (stopper.should_stop(spoilt) or "")
    assert best_of([sound, spoilt], BestSpec()) == Best(0.5, 1)
