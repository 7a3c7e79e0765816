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


def test_what_took_long_to_find_is_given_up_later_than_the_verdict_says_that_it_gets_worse() -> None:
    validation = tuple(1 - 0.008 * min(epoch, 100) + 0.03 * max(0, epoch - 100) for epoch in range(160))
    train = tuple(0.97**epoch for epoch in range(160))
    said = list(diagnoses(Curve(train=train, validation=validation)))
    raised = next(epoch for epoch, one in enumerate(said, 1) if one.verdict is Verdict.OVERFITTING)

    assert raised < 101 + 26
    assert first_stop(Curve(train=train, validation=validation)) == 101 + 26


def test_a_run_that_jumps_about_is_stopped_when_its_best_is_old() -> None:
    losses = tuple(
        0.6 + 9.4 * math.exp(-epoch) + (epoch > 2 and epoch % 12 in (0, 5, 8)) - 0.02 * (epoch == 9)
        for epoch in range(80)
    )
    curve = Curve(train=losses, validation=losses)
    said = list(diagnoses(curve))

    assert {one.verdict for one in said[20:]} == {Verdict.UNSTABLE}
    # Until then the noise of so few epochs leaves room for a better one.
    assert first_stop(curve) == 10 + 31
    assert said[40].advice.startswith("Stop now and take epoch 10")
    # As much is left to hope for where the jumps are as large as all that was learned.
    small = tuple(0.6 + 0.3 * (epoch % 2) - 0.1 * (epoch == 9) for epoch in range(60))
    assert first_stop(Curve(train=small, validation=small)) is None


def test_a_good_fit_is_never_stopped() -> None:
    for seed in range(30):
        assert first_stop(make_curve(Verdict.GOOD_FIT, epochs=120, noise=0.03, seed=seed)) is None


def test_a_run_that_rests_high_up_is_stopped_when_its_best_is_old() -> None:
    losses = tuple(
        0.5 + 0.5 * math.exp(-epoch) + 1e-4 * (epoch == 8) - 2e-4 * (epoch == 12) for epoch in range(60)
    )

    assert first_stop(Curve(train=losses, validation=losses)) == 13 + 25


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
