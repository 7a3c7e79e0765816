"""The numbers that alerts compare."""

from __future__ import annotations

import math

import pytest

from curvewatch_workers.diagnosis import Curve, CurveSummary, summarize


def test_a_curve_in_numbers() -> None:
    curve = Curve(train=(1.0, 0.8, 0.6, 0.4, 0.2), validation=(1.0, 0.5, 0.75, 1.0, 1.25))

    summary = summarize(curve, window=3)

    assert (summary.best_epoch, summary.best_validation_loss, summary.epochs_since_best) == (2, 0.5, 3)
    assert summary.train_slope == pytest.approx(-0.2)
    assert summary.validation_slope == pytest.approx(0.25)
    assert summary.generalization_gap == pytest.approx(1.05)


def test_no_epochs_tell_nothing() -> None:
    assert summarize(Curve(train=(), validation=()), window=5) == CurveSummary(
        best_epoch=None,
        best_validation_loss=None,
        epochs_since_best=None,
        train_slope=None,
        validation_slope=None,
        generalization_gap=None,
    )


def test_one_epoch_has_a_best_and_no_slope() -> None:
    summary = summarize(Curve(train=(1.0,), validation=(2.0,)), window=5)

    assert (summary.best_epoch, summary.epochs_since_best, summary.generalization_gap) == (1, 0, 1.0)
    assert summary.train_slope is None
    assert summary.validation_slope is None


def test_a_window_of_one_epoch_takes_two_because_one_has_no_slope() -> None:
    summary = summarize(Curve(train=(9.0, 1.0, 3.0), validation=(9.0, 1.0, 0.0)), window=1)

    assert (summary.train_slope, summary.validation_slope) == (2.0, -1.0)


def test_the_first_of_equal_bests_counts() -> None:
    assert summarize(Curve(train=(1.0,) * 4, validation=(2.0, 1.0, 1.0, 3.0)), window=2).best_epoch == 2


def test_a_flat_loss_has_a_slope_of_exactly_zero() -> None:
    summary = summarize(Curve(train=(0.1,) * 7, validation=(0.3,) * 7), window=7)

    assert (summary.train_slope, summary.validation_slope) == (0.0, 0.0)


def test_losses_that_are_not_finite_are_passed_over() -> None:
    curve = Curve(train=(4.0, 3.0, math.nan, 1.0), validation=(2.0, math.inf, 1.0, math.nan))

    summary = summarize(curve, window=4)

    assert (summary.best_epoch, summary.epochs_since_best) == (3, 1)
    assert summary.train_slope == pytest.approx(-1.0)
    assert summary.validation_slope == pytest.approx(-0.5)
    assert summary.generalization_gap is None


def test_the_largest_floats_do_not_overflow() -> None:
    summary = summarize(Curve(train=(1.7e308,) * 3, validation=(1.6e308, 1.7e308, 1.7e308)), window=3)

    assert summary.train_slope == 0.0
    assert summary.validation_slope == pytest.approx(5e306)


def test_a_window_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 epoch, got 0"):
        summarize(Curve(train=(), validation=()), window=0)
