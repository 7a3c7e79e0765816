"""What a stop saves and costs."""

from __future__ import annotations

import math

import pytest

from curvewatch_workers.diagnosis import Curve, Savings, savings

RUN = Curve(train=(1.0,) * 5, validation=(0.9, 0.6, 0.7, 0.5, 0.8))


def test_a_stop_after_the_best_epoch_costs_nothing() -> None:
    saved = savings(RUN, 4, seconds=(10, 10, 10, 10, 1800), gpus=(4, 4, 4, 4, 2))

    assert saved == Savings(epochs=1, seconds=1800, gpu_hours=1.0, loss=0.0)


def test_a_stop_before_it_costs_what_the_loss_still_fell() -> None:
    assert savings(RUN, 3) == Savings(epochs=2, seconds=None, gpu_hours=None, loss=0.6 - 0.5)


def test_losses_that_are_not_finite_are_no_gain() -> None:
    curve = Curve(train=(1.0, 1.0, 1.0), validation=(math.nan, 0.5, -math.inf))

    assert savings(curve, 2).loss == 0.0
    assert savings(curve, 1).loss == math.inf


@pytest.mark.parametrize("stop", [0, 6])
def test_an_epoch_that_there_is_not_is_told(stop: int) -> None:
    with pytest.raises(ValueError, match=f"epochs 1 to 5, but was to stop after epoch {stop}"):
        savings(RUN, stop)


def test_a_series_of_another_length_is_told() -> None:
    with pytest.raises(ValueError, match="seconds has 2 numbers for 5 epochs"):
        savings(RUN, 1, seconds=(1, 2))
