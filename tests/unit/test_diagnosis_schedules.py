"""Learning-rate schedules and double descent are not mistaken for trouble, and hide none."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest

from curve_generator import SCHEDULES, make_double_descent, make_scheduled, scaled
from curvewatch_workers.diagnosis import Curve, Diagnosis, Verdict, diagnose, diagnoses

ALARMS = {
    Verdict.OVERFITTING,
    Verdict.OVERCONFIDENT,
    Verdict.UNSTABLE,
    Verdict.DIVERGING,
    Verdict.PLATEAU,
}
RESTARTS = ("restarts", "doubling_restarts")
LENGTHS = (20, 50, 100, 300, 1000)


def said_of(schedule: str, epochs: int, noise: float, seed: int, *, rates: bool) -> list[Diagnosis]:
    curve = make_scheduled(schedule, epochs=epochs, noise=noise, seed=seed, rates=rates)
    return list(diagnoses(curve))


def seeds(epochs: int) -> range:
    return range(8 if epochs < 1000 else 2)


@pytest.mark.parametrize("noise", [0.0, 0.02])
@pytest.mark.parametrize("epochs", LENGTHS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_no_epoch_under_a_known_schedule_raises_an_alarm(schedule: str, epochs: int, noise: float) -> None:
    plateaus = 0
    for seed in seeds(epochs):
        said = said_of(schedule, epochs, noise, seed, rates=True)

        assert not (ALARMS - {Verdict.PLATEAU}) & {one.verdict for one in said}, seed
        assert not any(one.stop for one in said), seed
        assert said[-1].verdict is Verdict.GOOD_FIT, seed
        plateaus += any(one.verdict is Verdict.PLATEAU for one in said)
    assert plateaus <= 1


@pytest.mark.parametrize("noise", [0.0, 0.02])
@pytest.mark.parametrize("epochs", LENGTHS)
@pytest.mark.parametrize("schedule", RESTARTS)
def test_restarts_that_nobody_told_of_are_hardly_ever_taken_for_trouble(
    schedule: str, epochs: int, noise: float
) -> None:
    wrong = 0
    for seed in seeds(epochs):
        said = said_of(schedule, epochs, noise, seed, rates=False)
        wrong += any(one.stop or one.verdict in ALARMS - {Verdict.PLATEAU} for one in said)

    assert wrong <= 1


@pytest.mark.parametrize("rates", [False, True])
@pytest.mark.parametrize("schedule", RESTARTS)
def test_restarts_of_a_loss_below_zero_are_no_trouble(schedule: str, rates: bool) -> None:
    for seed in range(8):
        curve = make_scheduled(schedule, epochs=100, noise=0.01, seed=seed, rates=rates)
        shift = 3 * max(curve.train)
        below = replace(
            curve,
            train=tuple(loss - shift for loss in curve.train),
            validation=tuple(loss - shift for loss in curve.validation),
        )
        said = list(diagnoses(below))

        assert not ALARMS & {one.verdict for one in said}, seed
        assert not any(one.stop for one in said), seed


@pytest.mark.parametrize("rates", [False, True])
@pytest.mark.parametrize("epochs", [50, 100, 300])
@pytest.mark.parametrize("schedule", RESTARTS)
def test_overfitting_under_warm_restarts_is_seen(schedule: str, epochs: int, rates: bool) -> None:
    missed = 0
    for noise, seed in itertools.product((0.0, 0.02), range(8)):
        curve = make_scheduled(schedule, epochs=epochs, noise=noise, seed=seed, rates=rates, overfits=True)
        said = list(diagnoses(curve))
        missed += not any(one.verdict is Verdict.OVERFITTING for one in said)
        if rates and said[-1].verdict is Verdict.OVERFITTING:
            assert said[-1].stop

    assert missed <= 1


def cycles(epochs: int, length: int = 10, *, rise: float = 0.0) -> Curve:
    """Cosine restarts from 0.1 to 0.001; from the third cycle on validation loss ends each cycle higher by `rise`."""
    rate = [0.001 + 0.099 * (1 + math.cos(math.pi * (i % length) / (length - 1))) / 2 for i in range(epochs)]
    train = [0.05 + 0.5 * math.exp(-i / length) + 4 * r for i, r in enumerate(rate)]
    validation = [loss + 0.05 + rise * max(i // length - 1, 0) for i, loss in enumerate(train)]
    return Curve(train=tuple(train), validation=tuple(validation), learning_rates=tuple(rate))


def test_what_was_said_before_a_restart_stands_until_the_rate_is_back() -> None:
    curve = cycles(60, rise=0.1)
    said = dict(enumerate(diagnoses(curve), start=1))

    assert said[20].verdict is Verdict.GOOD_FIT
    assert said[25].verdict is Verdict.GOOD_FIT
    assert "learning_rate_raised" in {evidence.rule for evidence in said[25].evidence}
    assert "after epoch 20, from 0.001 to 0.1" in said[25].evidence[-1].message
    assert said[30].verdict is Verdict.OVERFITTING
    assert said[30].stop
    assert {said[epoch].verdict for epoch in range(30, 61)} == {Verdict.OVERFITTING}


def test_overfitting_stands_through_restarts_although_the_best_epoch_had_a_high_rate() -> None:
    curve = cycles(60)
    # Epoch 24 is early in the third cycle: a restart does not double its rate, but that of the best train loss.
    validation = tuple(0.3 + 0.02 * abs(i - 23) for i in range(60))
    verdicts = [one.verdict for one in diagnoses(replace(curve, validation=validation))]
    first = verdicts.index(Verdict.OVERFITTING)

    assert first < 40
    assert set(verdicts[first:]) == {Verdict.OVERFITTING}


def test_a_new_best_in_the_middle_of_a_cycle_ends_what_was_said_before_it() -> None:
    curve = cycles(40, rise=0.1)
    falls = (0.04,) * 6
    validation = (*curve.validation[:31], *falls, *curve.validation[37:])
    said = list(diagnoses(replace(curve, validation=validation)))

    assert said[30].verdict is Verdict.OVERFITTING
    assert said[36].verdict is Verdict.GOOD_FIT
    assert not said[36].stop


def test_a_raised_rate_does_not_excuse_a_loss_that_jumps_while_the_rate_does_not() -> None:
    rates = (0.01,) * 20 + (0.1,) * 20
    calm = [0.1 + 0.9 * math.exp(-i / 4) for i in range(20)]
    losses = tuple(calm + [0.3 + 0.25 * (i % 2) for i in range(20)])
    curve = Curve(train=losses, validation=losses, learning_rates=rates)

    assert diagnose(curve).verdict is Verdict.UNSTABLE


def test_a_rate_that_stays_up_excuses_nothing_for_ever() -> None:
    rate = (0.01,) * 10 + (0.1,) * 60
    train = [0.05 + 0.9 * math.exp(-i / 3) for i in range(70)]
    validation = [loss + 0.1 + 0.02 * max(i - 9, 0) for i, loss in enumerate(train)]
    curve = Curve(train=tuple(train), validation=tuple(validation), learning_rates=rate)
    verdicts = [one.verdict for one in diagnoses(curve)]

    assert verdicts[39] is Verdict.GOOD_FIT
    assert set(verdicts[40:]) == {Verdict.OVERFITTING}


def test_a_raised_rate_does_not_excuse_a_loss_above_its_start() -> None:
    rate = tuple(0.05 * 1.2**i for i in range(30))
    train = tuple(math.exp(-i / 3) + 0.05 + 0.001 * math.exp(max(i - 9, 0)) for i in range(30))
    curve = Curve(train=train, validation=train, learning_rates=rate)
    first = next(i for i, one in enumerate(diagnoses(curve), 1) if one.verdict is Verdict.DIVERGING)

    assert first <= 21
    assert diagnose(curve).verdict is Verdict.DIVERGING


def test_a_jump_to_below_the_start_is_diverging_unless_it_comes_down_again() -> None:
    down = [0.05 + 0.95 * math.exp(-i / 5) for i in range(40)]
    stays = down + [0.6] * 12
    falls = down + [0.6 * (1 + math.cos(math.pi * i / 40)) / 2 + 0.03 for i in range(40)]

    def first(losses: list[float], rates: tuple[float, ...] = ()) -> int | None:
        curve = Curve(train=tuple(losses), validation=tuple(losses), learning_rates=rates)
        said = enumerate(diagnoses(curve), 1)
        return next((i for i, one in said if one.verdict is Verdict.DIVERGING), None)

    assert first(stays) == 50  # a quarter of 40 epochs later
    assert first(falls) is None
    assert first(stays, (0.1,) * 52) == 44  # no restart: at once, but for the smoothing


@pytest.mark.parametrize(("gap", "unstable"), [(2, True), (3, True), (5, False)])
def test_jumps_as_regular_as_restarts_are_none_from_four_epochs_on(gap: int, unstable: bool) -> None:
    losses = tuple(0.2 + 0.8 * math.exp(-i / 4) + 0.25 * (i % gap == gap - 1) for i in range(40))

    assert (diagnose(Curve(train=losses, validation=losses)).verdict is Verdict.UNSTABLE) is unstable


def test_jumps_where_the_rate_rose_are_none() -> None:
    losses = tuple(0.2 + 0.8 * math.exp(-i / 4) + 0.25 * (i % 3 == 2) for i in range(40))
    rates = tuple(0.1 if i % 3 == 2 else 0.01 for i in range(40))

    assert diagnose(Curve(train=losses, validation=losses)).verdict is Verdict.UNSTABLE
    curve = Curve(train=losses, validation=losses, learning_rates=rates)
    assert diagnose(curve).verdict is Verdict.GOOD_FIT


def test_a_plateau_is_not_stopped_while_the_schedule_is_still_to_come_down() -> None:
    losses = tuple(0.5 + 0.5 * math.exp(-i) + 1e-4 * (i == 8) - 2e-4 * (i == 12) for i in range(60))
    warm = (0.01, 0.03, *(0.1,) * 58)
    spent = (0.1,) * 12 + (0.0001,) * 48
    curve = Curve(train=losses, validation=losses)

    assert diagnose(curve).stop
    assert not diagnose(replace(curve, learning_rates=warm)).stop
    assert diagnose(replace(curve, learning_rates=spent)).stop
    assert diagnose(replace(curve, learning_rates=(0.1,) * 60)).stop


@pytest.mark.parametrize("noise", [0.0, 0.02])
@pytest.mark.parametrize("epochs", [20, 50, 100, 300])
def test_double_descent_is_overfitting_while_it_rises_and_good_when_it_is_down_again(
    epochs: int, noise: float
) -> None:
    for seed in range(12):
        verdicts = [
            one.verdict for one in diagnoses(make_double_descent(epochs=epochs, noise=noise, seed=seed))
        ]

        assert set(verdicts[-max(epochs // 10, 2) :]) == {Verdict.GOOD_FIT}, seed
        assert not {Verdict.DIVERGING, Verdict.UNSTABLE} & set(verdicts), seed
        if epochs >= 50:
            assert Verdict.OVERFITTING in verdicts, seed


def rising_after(before: int, first: float, then: float, *, low: float = 0.1) -> Curve:
    """Validation loss is at its best after some epochs, when the rate steps up for good, and rises from there."""
    rates = (1.0, *(first,) * (before - 1), *(then,) * (80 - before))
    train = tuple(0.05 + 0.9 * math.exp(-i / 3) for i in range(80))
    down = [1 - (1 - low) * i / (before - 1) for i in range(before)]
    validation = (*down, *(low + 0.05 * (i + 1) for i in range(80 - before)))
    return Curve(train=train, validation=validation, learning_rates=rates)


def first_overfitting(curve: Curve) -> int:
    said = enumerate(diagnoses(curve), start=1)
    return next(epoch for epoch, one in said if one.verdict is Verdict.OVERFITTING)


@pytest.mark.parametrize(
    ("first", "then", "excused"),
    [
        (0.1, 0.19, False),
        (0.1, 0.21, True),  # from twice the rate at the best epoch on
        (0.001, 0.009, False),
        (0.001, 0.011, True),  # and from a hundredth of the highest on, which is 1
    ],
)
def test_a_rate_is_raised_from_twice_that_of_the_best_epoch_on(
    first: float, then: float, excused: bool
) -> None:
    curve = rising_after(12, first, then)

    assert (first_overfitting(curve) > first_overfitting(replace(curve, learning_rates=()))) is excused


@pytest.mark.parametrize(("before", "until"), [(12, 48), (8, 32), (3, 13)])
def test_a_raised_rate_is_excused_for_three_times_the_epochs_before_it_and_at_least_ten(
    before: int, until: int
) -> None:
    assert first_overfitting(rising_after(before, 0.1, 0.9)) == until + 1


@pytest.mark.parametrize(("rise", "diverges"), [(0.02, False), (0.08, True)])
def test_a_jump_that_goes_on_rising_by_a_tenth_is_no_restart(rise: float, diverges: bool) -> None:
    down = [0.05 + 0.95 * math.exp(-i / 5) for i in range(40)]
    losses = tuple(down + [0.55 + rise * i / 7 for i in range(8)])
    verdict = diagnose(Curve(train=losses, validation=losses)).verdict

    assert (verdict is Verdict.DIVERGING) is diverges


def test_a_rest_at_a_higher_rate_than_when_it_began_is_no_plateau() -> None:
    losses = tuple(0.45 + 0.55 * math.exp(-i / 3) for i in range(40))
    halted = tuple(1 - 0.05 * min(i, 8) for i in range(30))
    for curve in (Curve(train=losses, validation=losses), Curve(train=halted, validation=halted)):
        epochs = len(curve)
        rising = tuple(0.1 + 0.001 * i for i in range(epochs))

        assert diagnose(curve).verdict is Verdict.PLATEAU
        assert diagnose(replace(curve, learning_rates=(0.1,) * epochs)).verdict is Verdict.PLATEAU
        assert diagnose(replace(curve, learning_rates=rising)).verdict is Verdict.GOOD_FIT


def test_rates_that_are_not_known_are_those_of_the_epoch_before() -> None:
    curve = cycles(30)
    rates = list(curve.learning_rates)
    rates[22] = rates[23] = math.nan
    gaps = replace(curve, learning_rates=tuple(rates))

    assert [one.verdict for one in diagnoses(gaps)] == [one.verdict for one in diagnoses(curve)]
    unknown = replace(curve, learning_rates=(math.nan, -1.0, math.inf) * 10)
    nothing = replace(curve, learning_rates=())
    assert list(diagnoses(unknown)) == list(diagnoses(nothing))


@pytest.mark.parametrize("rates", [False, True])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_neither_the_unit_of_the_loss_nor_that_of_the_rate_matters(schedule: str, rates: bool) -> None:
    for seed, factor in itertools.product(range(4), (0.0037, 41.0)):
        curve = make_scheduled(
            schedule, epochs=60, noise=0.01, seed=seed, rates=rates, overfits=seed % 2 == 0
        )
        other = scaled(curve, factor)
        other = replace(other, learning_rates=tuple(rate / factor for rate in curve.learning_rates))

        assert [(one.verdict, one.stop, one.best_epoch) for one in diagnoses(other)] == [
            (one.verdict, one.stop, one.best_epoch) for one in diagnoses(curve)
        ]


def test_learning_rates_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match="train has 2, learning_rates has 1"):
        Curve(train=(1.0, 0.9), validation=(1.0, 0.9), learning_rates=(0.1,))
