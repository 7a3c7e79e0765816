"""Each threshold, a little below and a little above: curves without noise that differ in one size."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest

from curvewatch_workers.diagnosis import Curve, Verdict, diagnose

DECAY = [0.02 + 0.98 * math.exp(-epoch / 4) for epoch in range(40)]


def verdict(
    train: Sequence[float], validation: Sequence[float], accuracy: Sequence[float] | None = None
) -> Verdict:
    metrics = {} if accuracy is None else {"accuracy": tuple(accuracy)}
    return diagnose(Curve(train=tuple(train), validation=tuple(validation), metrics=metrics)).verdict


def down_and_up(low: float, rise: float, *, turn: int = 10, epochs: int = 40) -> list[float]:
    """Fall in a straight line from 1 to the lowest loss, then rise to the end."""
    down = [1 + (low - 1) * epoch / turn for epoch in range(turn)]
    up = epochs - turn - 1
    return down + [low + rise * epoch / up for epoch in range(up + 1)]


@pytest.mark.parametrize(
    ("rise", "expected"), [(0.03, Verdict.GOOD_FIT), (0.04, Verdict.OVERFITTING), (0.2, Verdict.OVERFITTING)]
)
def test_a_rise_counts_from_five_percent_of_the_yardstick(rise: float, expected: Verdict) -> None:
    # Level 0.4 and 0.98 learned by train loss: the yardstick is 0.63, five percent of it 0.031.
    assert verdict(DECAY, down_and_up(0.4, rise)) is expected


@pytest.mark.parametrize(("rise", "expected"), [(0.09, Verdict.GOOD_FIT), (0.2, Verdict.OVERFITTING)])
def test_a_steady_rise_in_a_few_epochs_counts_from_twenty_percent(rise: float, expected: Verdict) -> None:
    # The kink alone would pass for noise. Yardstick 0.66, twenty percent of it 0.13.
    assert verdict(DECAY[:5], [1.0, 0.5, 0.44, 0.44 + rise / 2, 0.44 + rise]) is expected


@pytest.mark.parametrize(("rises", "expected"), [(2, Verdict.GOOD_FIT), (3, Verdict.OVERFITTING)])
def test_a_rise_in_a_few_epochs_counts_when_it_lasts_as_long_as_the_fall(
    rises: int, expected: Verdict
) -> None:
    validation = [1.0, 0.6, 0.4, 0.33, *(0.33 + 0.1 * (epoch + 1) for epoch in range(rises))]

    assert verdict(DECAY[: len(validation)], validation) is expected


@pytest.mark.parametrize(("fall", "overfits"), [(0.008, False), (0.012, True)])
def test_train_loss_must_fall_for_overfitting(fall: float, overfits: bool) -> None:
    # Yardstick of train loss 0.5, two percent of it 0.01.
    train = [*(1 - 0.05 * epoch for epoch in range(10)), *(0.5 - fall * epoch / 29 for epoch in range(30))]

    assert (verdict(train, down_and_up(0.4, 0.15)) is Verdict.OVERFITTING) is overfits


@pytest.mark.parametrize(("rest", "expected"), [(0.04, Verdict.GOOD_FIT), (0.015, Verdict.OVERFITTING)])
def test_a_train_set_known_by_heart_need_not_fall_further(rest: float, expected: Verdict) -> None:
    train = [*(1 - (1 - rest) * epoch / 8 for epoch in range(8)), *([rest] * 32)]

    assert verdict(train, down_and_up(0.4, 0.15)) is expected


@pytest.mark.parametrize(("rise", "diverges"), [(0.15, False), (0.35, True), (0.6, True)])
def test_train_loss_diverges_from_a_quarter_of_its_start(rise: float, diverges: bool) -> None:
    # So sudden a rise to below the start may be a warm restart, for a quarter of the epochs before it.
    train = down_and_up(0.5, rise, turn=30)[:35] + [0.5 + rise] * 12

    assert (verdict(train, train) is Verdict.DIVERGING) is diverges


@pytest.mark.parametrize(("rise", "diverges"), [(0.35, False), (0.8, True)])
def test_the_first_epochs_may_rise_by_half(rise: float, diverges: bool) -> None:
    train = [1 + rise * min(epoch / 5, 1) for epoch in range(8)]

    assert (verdict(train, train) is Verdict.DIVERGING) is diverges


def test_train_loss_that_comes_apart_is_diverging_whatever_validation_loss_does() -> None:
    train = [1 - 0.08 * epoch for epoch in range(10)] + [0.2 + 0.07 * epoch for epoch in range(1, 21)]

    assert verdict(train, [1 - 0.03 * epoch for epoch in range(30)]) is Verdict.DIVERGING


@pytest.mark.parametrize(("back_to", "diverges"), [(1.2, False), (1.7, True)])
def test_a_loss_that_has_come_half_way_back_diverges_no_more(back_to: float, diverges: bool) -> None:
    # From 0.2 up to 3, of which smoothing leaves some 2.6: half of the way back is 1.4.
    fall, rise = [1 - 0.08 * epoch for epoch in range(11)], [0.2 + 2.8 * epoch / 5 for epoch in range(1, 6)]
    back = [3 - (3 - back_to) * epoch / 5 for epoch in range(1, 6)]
    losses = [*fall, *rise, *back, *[back_to] * 6]

    assert (verdict(losses, losses) is Verdict.DIVERGING) is diverges


@pytest.mark.parametrize(("step", "seen"), [(0.15, 0), (0.45, 20)])
def test_a_step_up_is_seen_by_its_height(step: float, seen: int) -> None:
    train = [0.9**epoch for epoch in range(40)]

    def overfits(seed: int) -> bool:
        rng = random.Random(seed)
        clean = [1 - 0.03 * epoch for epoch in range(20)] + [0.43 + step] * 20
        return verdict(train, [loss + rng.gauss(0, 0.03) for loss in clean]) is Verdict.OVERFITTING

    assert sum(overfits(seed) for seed in range(20)) == seen


def test_the_first_epochs_end_at_the_tenth() -> None:
    train = [1 + 0.4 * min(epoch / 5, 1) for epoch in range(16)]

    assert verdict(train[:9], train[:9]) is not Verdict.DIVERGING
    assert verdict(train, train) is Verdict.DIVERGING


@pytest.mark.parametrize(("end", "expected"), [(7.0, Verdict.OVERFITTING), (15.0, Verdict.DIVERGING)])
def test_validation_loss_explodes_from_ten_times_its_start(end: float, expected: Verdict) -> None:
    validation = [*down_and_up(0.5, 0.0, epochs=20), *(0.5 + (end - 0.5) * (i + 1) / 10 for i in range(10))]

    assert verdict(DECAY, [*validation, *([end] * 10)]) is expected


@pytest.mark.parametrize(("gain", "expected"), [(0.1, Verdict.OVERFITTING), (0.35, Verdict.GOOD_FIT)])
def test_validation_loss_is_left_behind_below_a_fifth(gain: float, expected: Verdict) -> None:
    validation = [1 - gain * (1 - math.exp(-epoch)) for epoch in range(40)]

    assert verdict(DECAY, validation) is expected


@pytest.mark.parametrize(("lost", "expected"), [(0.012, Verdict.OVERCONFIDENT), (0.035, Verdict.OVERFITTING)])
def test_two_points_of_accuracy_may_be_lost(lost: float, expected: Verdict) -> None:
    accuracy = [0.7 * min(epoch / 10, 1) - lost * max(epoch - 10, 0) / 29 for epoch in range(40)]

    assert verdict(DECAY, down_and_up(0.4, 0.2), accuracy) is expected


@pytest.mark.parametrize(("jumps", "expected"), [(2, Verdict.GOOD_FIT), (4, Verdict.UNSTABLE)])
@pytest.mark.parametrize("epochs", [40, 20])
def test_a_sixth_of_the_later_epochs_must_jump(epochs: int, jumps: int, expected: Verdict) -> None:
    losses = [0.2 + 0.8 * math.exp(-epoch / 3) for epoch in range(epochs)]
    for index in range(jumps):
        losses[epochs // 2 + 1 + 2 * index] += 0.25

    assert verdict(losses, losses) is expected


@pytest.mark.parametrize(("jumps", "expected"), [(7, Verdict.GOOD_FIT), (8, Verdict.UNSTABLE)])
def test_in_a_long_run_fifteen_percent_of_the_later_epochs_must_jump(jumps: int, expected: Verdict) -> None:
    losses = [0.2 + 0.8 * math.exp(-epoch / 3) for epoch in range(100)]
    for index in range(jumps):
        losses[51 + 2 * index + index // 3] += 0.25

    assert verdict(losses, losses) is expected


@pytest.mark.parametrize(("size", "expected"), [(0.07, Verdict.GOOD_FIT), (0.1, Verdict.UNSTABLE)])
def test_a_jump_is_a_fifth_of_the_yardstick(size: float, expected: Verdict) -> None:
    # Level 0.2 and 0.8 learned: the yardstick is 0.4, a fifth of it 0.08.
    losses = [0.2 + 0.8 * math.exp(-epoch / 3) + size * (epoch % 2) for epoch in range(40)]

    assert verdict(losses, losses) is expected


@pytest.mark.parametrize(
    ("accuracy", "expected"),
    [(0.35, Verdict.UNDERFITTING), (0.7, Verdict.PLATEAU), (0.95, Verdict.GOOD_FIT)],
)
def test_accuracy_settles_what_a_loss_half_way_means(accuracy: float, expected: Verdict) -> None:
    losses = [0.45 + 0.55 * math.exp(-epoch / 3) for epoch in range(40)]

    assert verdict(losses, losses, [accuracy] * 40) is expected


@pytest.mark.parametrize(
    ("left", "expected"), [(0.2, Verdict.GOOD_FIT), (0.45, Verdict.PLATEAU), (0.75, Verdict.UNDERFITTING)]
)
def test_what_is_left_tells_good_fit_plateau_and_underfitting(left: float, expected: Verdict) -> None:
    losses = [left + (1 - left) * math.exp(-epoch / 3) for epoch in range(40)]

    assert verdict(losses, losses) is expected


@pytest.mark.parametrize(("pace", "expected"), [(2.5, Verdict.SLOW_CONVERGENCE), (3.5, Verdict.UNDERFITTING)])
def test_a_high_loss_that_still_falls_is_slow_and_one_at_rest_underfits(
    pace: float, expected: Verdict
) -> None:
    losses = [0.8 + 0.2 * math.exp(-pace * epoch / 40) for epoch in range(40)]

    assert verdict(losses, losses) is expected


@pytest.mark.parametrize(("epochs", "halted"), [(10, False), (12, True)])
def test_a_halt_must_last_five_epochs(epochs: int, halted: bool) -> None:
    losses = [1 - 0.04 * min(epoch, 6) for epoch in range(epochs)]

    assert (verdict(losses, losses) is Verdict.PLATEAU) is halted
