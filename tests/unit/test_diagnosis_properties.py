"""What holds of every curve, whatever is in it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curve_generator import prefix, scaled
from curvewatch_workers.diagnosis import Curve, Verdict, diagnose, diagnoses, summarize

ANY = st.floats(width=64)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
# Far from the ends of the floats, so that a power of two scales without rounding.
USUAL = st.one_of(st.just(0.0), st.floats(1e-3, 1e3), st.floats(-1e3, -1e-3))
RATES = st.one_of(st.sampled_from((0.0, 1e-5, 0.001, 0.1, 1.0)), ANY)


@st.composite
def curves(draw: st.DrawFn, losses: st.SearchStrategy[float] = ANY, least: int = 0) -> Curve:
    epochs = draw(st.integers(least, 200))

    def series(values: st.SearchStrategy[float]) -> tuple[float, ...]:
        # A few values repeated over and over make long curves cheap to draw.
        palette = draw(st.lists(values, min_size=1, max_size=40))
        return tuple(palette[index % len(palette)] for index in range(epochs))

    metrics = {"accuracy": series(st.floats(0, 1))} if draw(st.booleans()) else {}
    rates = series(RATES) if draw(st.booleans()) else ()
    return Curve(train=series(losses), validation=series(losses), metrics=metrics, learning_rates=rates)


@settings(max_examples=300)
@given(curves())
def test_no_floats_make_it_raise(curve: Curve) -> None:
    diagnosis = diagnose(curve)
    summarize(curve, window=5)

    for evidence in diagnosis.evidence:
        assert evidence.epochs
        assert list(evidence.epochs) == sorted(set(evidence.epochs))
        assert 1 <= evidence.epochs[0] <= evidence.epochs[-1] <= len(curve)
        assert len(evidence.values) == len(evidence.epochs)


@settings(max_examples=200)
@given(curves(FINITE, least=5))
def test_finite_curves_are_never_called_not_finite(curve: Curve) -> None:
    assert diagnose(curve).verdict is not Verdict.NOT_FINITE


@settings(max_examples=200)
@given(curves(USUAL), st.integers(-60, 60))
def test_a_change_of_unit_changes_nothing(curve: Curve, power: int) -> None:
    factor = 2.0**power
    here, there = diagnose(curve), diagnose(scaled(curve, factor))

    assert (here.verdict, here.stop, here.best_epoch) == (there.verdict, there.stop, there.best_epoch)
    # What there is to gain is told in the curve's unit.
    assert here.advice.split("since its best: ")[0] == there.advice.split("since its best: ")[0]
    assert [(e.rule, e.epochs) for e in here.evidence] == [(e.rule, e.epochs) for e in there.evidence]


@settings(max_examples=100)
@given(curves(), st.data())
def test_a_curve_read_epoch_by_epoch_gets_what_each_beginning_gets(curve: Curve, data: st.DataObject) -> None:
    said = list(diagnoses(curve))
    epochs = data.draw(st.integers(0, len(curve)))

    assert len(said) == len(curve)
    if epochs:
        assert repr(said[epochs - 1]) == repr(diagnose(prefix(curve, epochs)))


@settings(max_examples=200)
@given(curves())
def test_the_best_epoch_is_the_summarys_and_a_stop_is_advised_in_words_too(curve: Curve) -> None:
    diagnosis = diagnose(curve)

    assert diagnosis.best_epoch == summarize(curve, window=2).best_epoch
    assert ("Stop now" in diagnosis.advice) is diagnosis.stop


@settings(max_examples=100)
@given(curves())
def test_the_same_curve_gets_the_same_diagnosis(curve: Curve) -> None:
    again = replace(curve, metrics=dict(curve.metrics))

    assert repr(diagnose(curve)) == repr(diagnose(again))


@settings(max_examples=100)
@given(curves(FINITE, least=1), st.data())
def test_a_bad_loss_is_told_at_its_epoch(curve: Curve, data: st.DataObject) -> None:
    bad = data.draw(st.integers(0, len(curve) - 1))
    spoilt = list(curve.train)
    spoilt[bad] = data.draw(st.sampled_from([math.nan, math.inf, -math.inf]))
    flags = tuple(index == bad for index in range(len(curve)))

    for other in (
        Curve(train=tuple(spoilt), validation=curve.validation),
        Curve(train=curve.validation, validation=tuple(spoilt)),
        Curve(train=curve.train, validation=curve.validation, nonfinite=flags),
    ):
        diagnosis = diagnose(other)
        assert diagnosis.verdict is Verdict.NOT_FINITE
        assert diagnosis.evidence[0].epochs == (bad + 1,)
        assert diagnose(prefix(other, bad)).verdict is not Verdict.NOT_FINITE


def test_series_of_different_lengths_are_refused_with_their_names_and_lengths() -> None:
    with pytest.raises(ValueError, match="train has 2, validation has 1"):
        Curve(train=(1.0, 2.0), validation=(1.0,))
    with pytest.raises(ValueError, match="train has 1, nonfinite has 2"):
        Curve(train=(1.0,), validation=(1.0,), nonfinite=(False, True))
    with pytest.raises(ValueError, match=r"train has 1, metrics\['accuracy'\] has 0"):
        Curve(train=(1.0,), validation=(1.0,), metrics={"accuracy": ()})
