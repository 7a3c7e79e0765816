"""The diagnosis is right on curves of a known verdict, whole and in the middle of the run."""

from __future__ import annotations

import time

import pytest

from curve_generator import LENGTHS, make_curve, prefix, scaled
from curvewatch_workers.diagnosis import Curve, Verdict, diagnose

ALARMS = {Verdict.OVERFITTING, Verdict.OVERCONFIDENT, Verdict.UNSTABLE, Verdict.DIVERGING, Verdict.NOT_FINITE}


@pytest.mark.parametrize(
    ("verdict", "epochs"), [(verdict, epochs) for verdict, lengths in LENGTHS.items() for epochs in lengths]
)
def test_the_verdict_is_right_with_hardly_any_noise(verdict: Verdict, epochs: int) -> None:
    seen = {
        (noise, seed): diagnose(make_curve(verdict, epochs=epochs, noise=noise, seed=seed)).verdict
        for noise in (0.0, 0.005)
        for seed in range(8)
    }

    assert set(seen.values()) == {verdict}, seen


@pytest.mark.parametrize("noise", [0.02, 0.04])
@pytest.mark.parametrize("verdict", LENGTHS)
def test_the_verdict_survives_noise(verdict: Verdict, noise: float) -> None:
    curves = [
        make_curve(verdict, epochs=epochs, noise=noise, seed=seed)
        for epochs in LENGTHS[verdict]
        if epochs >= 15 or verdict is Verdict.TOO_EARLY
        for seed in range(12)
    ]

    right = sum(diagnose(curve).verdict is verdict for curve in curves)

    assert right >= 0.9 * len(curves), f"{right} of {len(curves)}"


@pytest.mark.parametrize("noise", [0.0, 0.01, 0.03, 0.06])
@pytest.mark.parametrize("epochs", [10, 30, 100])
def test_no_epoch_of_a_good_run_raises_an_alarm(epochs: int, noise: float) -> None:
    for seed in range(12):
        curve = make_curve(Verdict.GOOD_FIT, epochs=epochs, noise=noise, seed=seed)
        seen = [diagnose(prefix(curve, count)).verdict for count in range(epochs + 1)]

        assert not ALARMS & set(seen), (seed, seen)


@pytest.mark.parametrize("epochs", [15, 40, 100])
def test_overfitting_is_raised_after_the_best_epoch_and_stays(epochs: int) -> None:
    for seed in range(8):
        curve = make_curve(Verdict.OVERFITTING, epochs=epochs, noise=0.005, seed=seed)
        best = curve.validation.index(min(curve.validation)) + 1
        raised = [
            count
            for count in range(1, epochs + 1)
            if diagnose(prefix(curve, count)).verdict in {Verdict.OVERFITTING, Verdict.OVERCONFIDENT}
        ]

        assert raised[0] > best - 0.05 * epochs
        assert raised[0] <= best + 0.4 * epochs
        assert raised == list(range(raised[0], epochs + 1))


@pytest.mark.parametrize("verdict", LENGTHS)
@pytest.mark.parametrize("factor", [1e-150, 0.0037, 41.0, 1e150])
def test_the_unit_of_the_loss_does_not_matter(verdict: Verdict, factor: float) -> None:
    for epochs in LENGTHS[verdict][:4]:
        curve = make_curve(verdict, epochs=epochs, noise=0.01, seed=3)

        assert diagnose(scaled(curve, factor)).verdict is diagnose(curve).verdict


@pytest.mark.parametrize("verdict", LENGTHS)
def test_every_verdict_comes_with_its_reasons(verdict: Verdict) -> None:
    epochs = LENGTHS[verdict][-1]
    diagnosis = diagnose(make_curve(verdict, epochs=epochs, noise=0.0, seed=1))

    assert diagnosis.advice
    assert "{" not in diagnosis.advice
    assert "checkpoint of epoch" not in diagnosis.advice  # there need not be one
    assert diagnosis.summary.endswith(".")
    assert diagnosis.evidence
    for evidence in diagnosis.evidence:
        assert evidence.message.endswith(".")
        assert any(character.isdigit() for character in evidence.message)
        assert len(evidence.epochs) == len(evidence.values)


def test_an_epoch_costs_less_than_a_training_step_even_late_in_a_long_run() -> None:
    curve = make_curve(Verdict.OVERFITTING, epochs=1000, noise=0.03, seed=0)
    diagnose(curve)
    started = time.process_time()
    for _ in range(20):
        diagnose(curve)

    # Measured: 3 ms. The bound leaves room for a slow machine, and none for work that grows with the square.
    assert (time.process_time() - started) / 20 < 0.05


def test_the_cost_grows_with_the_epochs_and_not_with_their_square() -> None:
    def cost(epochs: int) -> float:
        curve = make_curve(Verdict.OVERFITTING, epochs=epochs, noise=0.03, seed=0)
        started = time.process_time()
        for _ in range(10):
            diagnose(curve)
        return time.process_time() - started

    cost(500)

    assert min(cost(8000) for _ in range(3)) < 40 * min(cost(500) for _ in range(3))


def test_a_run_without_epochs_is_too_early() -> None:
    diagnosis = diagnose(Curve(train=(), validation=()))

    assert diagnosis.verdict is Verdict.TOO_EARLY
    assert diagnosis.evidence == ()
