"""How sure a verdict is: more the further what was seen is over its bar, and the same in every unit."""

from __future__ import annotations

import pytest

from curve_generator import make_curve, prefix, scaled
from curvewatch_workers.diagnosis import Curve, Verdict, diagnose


def rising(slope: float) -> Curve:
    """A run whose validation loss turns upwards at epoch 10 of 30."""
    train = tuple(0.85**epoch for epoch in range(30))
    return Curve(train=train, validation=tuple(0.4 + slope * abs(epoch - 10) for epoch in range(30)))


def test_a_higher_rise_is_surer() -> None:
    said = [diagnose(rising(slope)) for slope in (0.003, 0.006, 0.024)]

    assert {one.verdict for one in said} == {Verdict.OVERFITTING}
    assert 0.5 <= said[0].confidence < said[1].confidence < said[2].confidence <= 1
    assert said[2].confidence > 0.95


@pytest.mark.parametrize("verdict", list(Verdict))
def test_confidence_is_from_a_half_to_one_in_every_unit(verdict: Verdict) -> None:
    for seed in range(10):
        curve = prefix(make_curve(verdict, epochs=60, noise=0.02, seed=seed), 60)
        said = diagnose(curve)

        assert 0.5 <= said.confidence <= 1
        assert diagnose(scaled(curve, 1000.0)).confidence == pytest.approx(said.confidence, abs=2e-3)


def test_a_clean_good_fit_is_sure_and_one_that_begins_to_rise_is_not() -> None:
    train = [0.5**epoch + 0.05 for epoch in range(20)]
    clean = [loss + 0.02 for loss in train]
    turning = [loss + 0.001 * max(epoch - 10, 0) for epoch, loss in enumerate(clean)]
    sure, unsure = (
        diagnose(Curve(train=tuple(train), validation=tuple(validation))) for validation in (clean, turning)
    )

    assert sure.verdict == unsure.verdict == Verdict.GOOD_FIT
    assert sure.confidence > 0.95
    assert unsure.confidence < sure.confidence
