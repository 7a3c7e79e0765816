"""When a stop is advised: while the loss gets worse, and where nothing is left to hope for."""

from __future__ import annotations

import math
import random

from curve_generator import make_curve
from curvewatch_workers.diagnosis import Curve, Verdict, diagnoses


def first_stop(curve: Curve) -> int | None:
    """Return the epoch after which a stop is first advised, reading epoch by epoch."""
    return next((epoch for epoch, said in enumerate(diagnoses(curve), start=1) if said.stop), None)


def best_of(curve: Curve) -> int:
    return curve.validation.index(min(curve.validation)) + 1


def test_a_run_that_overfits_is_stopped_after_its_best_epoch() -> None:
    for seed in range(30):
        curve = make_curve(Verdict.OVERFITTING, epochs=60, noise=0.02, seed=seed)
        stop = first_stop(curve)

        assert stop is not None
        assert best_of(curve) < stop <= best_of(curve) + 20


def test_a_good_fit_is_never_stopped() -> None:
    for seed in range(30):
        assert first_stop(make_curve(Verdict.GOOD_FIT, epochs=120, noise=0.03, seed=seed)) is None


def test_a_run_that_rests_high_up_is_stopped_when_its_best_is_old() -> None:
    losses = tuple(
        0.5 + 0.5 * math.exp(-epoch) + 1e-4 * (epoch == 8) - 2e-4 * (epoch == 12) for epoch in range(60)
    )

    assert first_stop(Curve(train=losses, validation=losses)) == 13 + 20


def noisy(fall: float, noise: float) -> Curve:
    """Losses that come down by a tenth at once, and then by `fall` in 150 epochs, under noise."""
    rng = random.Random(f"{fall}/{noise}")
    train = [0.9 + 0.1 * math.exp(-epoch) - fall * epoch / 150 for epoch in range(150)]
    return Curve(train=tuple(train), validation=tuple(loss + rng.gauss(0, noise) for loss in train))


def test_noise_that_leaves_room_for_a_fall_is_no_reason_to_stop() -> None:
    assert first_stop(noisy(fall=0.0, noise=0.03)) is None
    assert first_stop(noisy(fall=0.0, noise=0.0005)) is not None


def test_a_loss_that_is_not_finite_stops_at_once() -> None:
    assert first_stop(Curve(train=(1.0, 0.9, math.nan), validation=(1.0, 0.9, 0.8))) == 3
