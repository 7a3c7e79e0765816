"""Advice follows from what was seen: rates to try, what to regularise, what there is to gain."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest

from curvewatch_workers.diagnosis import Curve, Diagnosis, Verdict, diagnose


def series(epochs: int, value: Callable[[int], float]) -> tuple[float, ...]:
    return tuple(value(epoch) for epoch in range(epochs))


def said(curve: Curve, verdict: Verdict, rates: tuple[float, ...] = ()) -> Diagnosis:
    diagnosis = diagnose(replace(curve, learning_rates=rates))
    assert diagnosis.verdict is verdict
    return diagnosis


def both(losses: tuple[float, ...]) -> Curve:
    return Curve(train=losses, validation=losses)


MIDWAY = both(series(40, lambda i: 0.45 + 0.55 * math.exp(-i / 3)))
HIGH = both(series(40, lambda i: 0.8 + 0.2 * math.exp(-i / 3)))
SLOW = both(series(40, lambda i: 1 - 0.004 * i))
JUMPY = series(40, lambda i: 0.2 + 0.8 * math.exp(-i / 3) + 0.2 * (i % 2))
CONSTANT = (0.1,) * 40
SPENT = series(40, lambda i: 0.1 if i < 10 else 1e-4)


def overfit(train_at_end: float, turn: int = 15, rise: float = 0.3, **metrics: tuple[float, ...]) -> Curve:
    down = series(turn, lambda i: 1 - 0.6 * i / turn)
    up = series(40 - turn, lambda i: 0.4 + rise * i / (39 - turn))
    train = series(40, lambda i: train_at_end + (1 - train_at_end) * math.exp(-i / 6))
    return Curve(train=train, validation=down + up, metrics=metrics)


def test_a_plateau_names_rates_to_try_or_the_schedule() -> None:
    assert "from 0.1: try 0.03 or 0.01." in said(MIDWAY, Verdict.PLATEAU, CONSTANT).advice
    diagnosis = said(MIDWAY, Verdict.PLATEAU, SPENT)
    assert diagnosis.evidence[-1].rule == "schedule_ended"
    assert (diagnosis.evidence[-1].epochs, diagnosis.evidence[-1].values) == ((1, 40), (0.1, 1e-4))
    ended = diagnosis.advice
    assert "from 0.1 to 0.0001, where nothing moves" in ended
    assert "not below 0.01" in ended
    assert "three to ten times" in said(MIDWAY, Verdict.PLATEAU).advice


def test_a_slow_run_is_told_higher_rates_or_to_wait_for_its_warm_up() -> None:
    assert "from 0.1: try 0.3 or 1 " in said(SLOW, Verdict.SLOW_CONVERGENCE, CONSTANT).advice
    warming = series(40, lambda i: 1e-5 * (i + 1))
    assert said(SLOW, Verdict.SLOW_CONVERGENCE, warming).advice.startswith("Wait: ")
    assert "three to ten times" in said(SLOW, Verdict.SLOW_CONVERGENCE).advice


def test_underfitting_is_told_what_holds_the_loss_up() -> None:
    assert "more capacity" in said(HIGH, Verdict.UNDERFITTING, CONSTANT).advice
    assert "has not gone to 0 too soon" in said(HIGH, Verdict.UNDERFITTING).advice
    assert said(HIGH, Verdict.UNDERFITTING, SPENT).advice.startswith("The schedule had taken")
    flat = both((0.693,) * 15)
    assert "rates of 1 and 0.01 instead of 0.1" in said(flat, Verdict.UNDERFITTING, (0.1,) * 15).advice
    regularised = Curve(train=HIGH.train, validation=tuple(0.9 * loss for loss in HIGH.train))
    assert "111 % of validation loss, so regularisation" in said(regularised, Verdict.UNDERFITTING).advice


def test_regularisation_follows_the_gap() -> None:
    large, moderate = overfit(0.01), overfit(0.35)

    assert "regularise strongly" in said(large, Verdict.OVERFITTING).advice
    assert "dropout" not in said(moderate, Verdict.OVERFITTING).advice
    assert "early stopping gets most of it" in said(moderate, Verdict.OVERFITTING).advice


def test_a_best_epoch_that_comes_early_asks_for_a_lower_rate() -> None:
    assert "freeze" not in said(overfit(0.01), Verdict.OVERFITTING, CONSTANT).advice
    early = said(overfit(0.01, turn=3), Verdict.OVERFITTING, CONSTANT).advice
    assert "as early as 4" in early
    assert "0.03 instead of 0.1" in early


def test_losses_below_zero_have_no_ratio() -> None:
    above = overfit(0.01)
    below = Curve(train=tuple(x - 5 for x in above.train), validation=tuple(x - 5 for x in above.validation))

    assert "%" not in said(below, Verdict.OVERFITTING).advice


def test_a_validation_loss_that_was_left_behind_asks_for_a_look_at_the_splits() -> None:
    train = series(20, lambda i: 0.05 + 0.95 * math.exp(-i / 3))
    advice = said(Curve(train=train, validation=(0.98,) * 20), Verdict.OVERFITTING).advice

    assert "both splits are made alike" in advice


def test_an_overconfident_model_is_told_what_calibration_may_gain() -> None:
    curve = overfit(0.01, accuracy=series(40, lambda i: 0.8 * min(i / 10, 1)))
    advice = said(curve, Verdict.OVERCONFIDENT).advice

    assert "temperature" in advice
    # Smoothed over 3 epochs: 0.4 + 0.3 * 23 / 24.
    assert advice.endswith("at most what validation loss has risen by since its best: 0.287 (41.8 %).")


def test_an_unstable_run_is_told_where_it_jumps() -> None:
    calm = series(40, lambda i: 0.2 + 0.8 * math.exp(-i / 3))
    train_jumps = said(both(JUMPY), Verdict.UNSTABLE, CONSTANT).advice
    validation_jumps = said(Curve(train=calm, validation=JUMPY), Verdict.UNSTABLE, CONSTANT).advice

    assert train_jumps.startswith("Lower the learning rate from 0.1: try 0.03 or 0.01")
    assert validation_jumps.startswith("Train loss does not jump: look at the size of the validation set")


@pytest.mark.parametrize(("turn", "warm_up"), [(5, True), (25, False)])
def test_a_run_that_diverges_early_is_told_to_warm_up(turn: int, warm_up: bool) -> None:
    losses = series(40, lambda i: max(1 - 0.03 * i, 1 - 0.03 * turn) + 0.1 * max(i - turn, 0))
    advice = said(both(losses), Verdict.DIVERGING, CONSTANT).advice

    assert f"Stop now and take epoch {turn + 1} or the nearest one" in advice
    assert "ten times, from 0.1 to 0.01" in advice
    assert ("over the first 5 epochs" in advice) is warm_up


def test_a_loss_that_is_not_finite_leads_back_to_an_epoch_that_was() -> None:
    curve = Curve(train=(1.0, 0.9, math.nan), validation=(1.0, 0.8, 0.7), learning_rates=(0.5,) * 3)
    diagnosis = diagnose(curve)

    assert diagnosis.best_epoch == 3
    assert "take epoch 2 or the nearest one" in diagnosis.advice
    assert "from before epoch 3" in diagnosis.advice
    assert "from 0.5 to 0.05" in diagnosis.advice
    assert "no epoch before it" in diagnose(Curve(train=(math.nan,), validation=(1.0,))).advice


def test_a_good_fit_that_still_falls_under_a_spent_rate_is_told_the_schedule() -> None:
    falls = both(series(40, lambda i: 1 - 0.02 * i))
    rests = both(series(40, lambda i: 0.05 + 0.95 * math.exp(-i)))

    assert (
        "longer schedule: the learning rate is already down to 0.0001"
        in said(falls, Verdict.GOOD_FIT, SPENT).advice
    )
    assert said(falls, Verdict.GOOD_FIT, CONSTANT).advice.endswith("so train longer.")
    assert said(rests, Verdict.GOOD_FIT, CONSTANT).advice.endswith("More epochs would gain little.")
