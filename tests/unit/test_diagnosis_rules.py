"""Each rule at its border: what must raise it, and what looks like it and must not."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

import pytest

from curvewatch_workers.diagnosis import Curve, Diagnosis, Verdict, diagnose, diagnoses


def read(
    train: Sequence[float], validation: Sequence[float] | None = None, **metrics: Sequence[float]
) -> Diagnosis:
    return diagnose(
        Curve(
            train=tuple(train),
            validation=tuple(train if validation is None else validation),
            metrics={name: tuple(values) for name, values in metrics.items()},
        )
    )


def series(epochs: int, value: Callable[[int], float]) -> list[float]:
    return [value(epoch) for epoch in range(epochs)]


def decay(epochs: int, floor: float = 0.05, pace: float = 6.0) -> list[float]:
    return series(epochs, lambda epoch: floor + (1 - floor) * math.exp(-pace * epoch / epochs))


def noisy(values: Sequence[float], noise: float, seed: int = 0) -> list[float]:
    rng = random.Random(seed)
    return [value + rng.gauss(0, noise) for value in values]


def test_a_rise_that_noise_explains_is_no_overfitting() -> None:
    train = decay(40)
    floor = series(40, lambda epoch: 0.4 + 0.6 * math.exp(-epoch / 4))
    rise = [0.004 * max(epoch - 12, 0) for epoch in range(40)]
    rising = [low + high for low, high in zip(floor, rise, strict=True)]

    assert read(train, noisy(rising, 0.005)).verdict is Verdict.OVERFITTING
    assert read(train, noisy(rising, 0.09)).verdict is not Verdict.OVERFITTING


def test_a_rise_from_nearly_zero_is_no_overfitting() -> None:
    train = decay(30, floor=0.0001)
    validation = series(30, lambda epoch: 0.001 + math.exp(-epoch / 2) + 0.0001 * epoch)

    assert read(train, validation).verdict is Verdict.GOOD_FIT


def test_a_spike_of_one_epoch_is_no_overfitting() -> None:
    validation = decay(40, floor=0.2)
    validation[-1] = 0.9

    assert read(decay(40), validation).verdict is Verdict.GOOD_FIT


def test_validation_loss_that_recovers_to_a_new_best_is_a_good_fit() -> None:
    bump = series(60, lambda epoch: 0.3 * math.exp(-(((epoch - 30) / 6) ** 2)))
    validation = [low + high for low, high in zip(decay(60, floor=0.1, pace=4), bump, strict=True)]
    train = decay(60, floor=0.02, pace=5)

    assert read(train[:36], validation[:36]).verdict is Verdict.OVERFITTING
    assert read(train, validation).verdict is Verdict.GOOD_FIT


def test_rising_validation_beside_a_train_loss_at_rest_is_diverging_and_not_overfitting() -> None:
    train = series(40, lambda epoch: 0.5 + 0.5 * math.exp(-3 * epoch))
    validation = series(40, lambda epoch: 0.5 + math.exp(-epoch) + 0.03 * epoch)

    diagnosis = read(train, validation)

    assert diagnosis.verdict is Verdict.DIVERGING
    assert diagnosis.evidence[0].rule == "validation_rises"


def test_validation_loss_that_explodes_is_diverging_although_train_loss_falls() -> None:
    validation = series(30, lambda epoch: 0.5 * 1.5 ** max(epoch - 5, 0))

    diagnosis = read(decay(30), validation)

    assert diagnosis.verdict is Verdict.DIVERGING
    assert diagnosis.evidence[0].rule == "validation_explodes"


def test_calibration_that_gets_better_is_no_overconfidence() -> None:
    train = decay(40, floor=0.02)
    validation = series(40, lambda epoch: 0.3 + 0.7 * math.exp(-epoch / 3) + 0.01 * max(epoch - 10, 0))
    accuracy = series(40, lambda epoch: 0.9 - 0.5 * math.exp(-epoch / 3))
    worse = series(40, lambda epoch: 0.02 + 0.004 * epoch)
    found = read(train, validation, accuracy=accuracy, calibration_error=worse)

    assert found.verdict is Verdict.OVERCONFIDENT
    told = next(one for one in found.evidence if one.rule == "calibration")
    best = found.best_epoch
    assert told.epochs == (best, 40)
    assert told.values == (worse[(best or 0) - 1], worse[-1])
    assert read(train, validation, accuracy=accuracy, ece=worse[::-1]).verdict is Verdict.OVERFITTING


def test_accuracy_tells_overconfident_from_overfitting() -> None:
    train = decay(40, floor=0.01)
    validation = series(40, lambda epoch: 0.4 + 0.6 * math.exp(-epoch) + 0.01 * epoch)
    kept = series(40, lambda epoch: 0.8 - 0.5 * math.exp(-epoch / 2))
    lost = [value - 0.003 * epoch for epoch, value in enumerate(kept)]

    assert read(train, validation, accuracy=kept).verdict is Verdict.OVERCONFIDENT
    assert read(train, validation, accuracy=lost).verdict is Verdict.OVERFITTING
    assert read(train, validation).verdict is Verdict.OVERFITTING
    assert read(train, validation, mae=kept).verdict is Verdict.OVERFITTING
    assert read(train, validation, accuracy=[math.nan, *kept[1:]]).verdict is Verdict.OVERFITTING


def test_overfitting_names_the_best_epoch_in_its_evidence_and_advice() -> None:
    validation = [1.0, 0.7, 0.5, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75]

    diagnosis = read(decay(10), validation)

    assert diagnosis.verdict is Verdict.OVERFITTING
    assert diagnosis.evidence[0].epochs == (4, 10)
    assert diagnosis.evidence[0].values == (0.45, 0.75)
    assert "0.45 at epoch 4" in diagnosis.evidence[0].message
    assert "epoch 4 " in diagnosis.advice


def test_validation_loss_that_never_came_down_while_train_loss_did_is_overfitting() -> None:
    diagnosis = read(decay(20), noisy([0.98] * 20, 0.002))

    assert diagnosis.verdict is Verdict.OVERFITTING
    assert diagnosis.evidence[0].rule == "validation_left_behind"


def test_regularised_train_loss_above_validation_loss_is_not_underfitting() -> None:
    train = series(30, lambda epoch: 0.75 + 0.25 * math.exp(-epoch / 4))

    assert read(train).verdict is Verdict.UNDERFITTING
    assert read(train, decay(30, floor=0.1)).verdict is Verdict.GOOD_FIT


def test_high_accuracy_is_no_underfitting_however_high_the_loss() -> None:
    train = series(30, lambda epoch: 0.75 + 0.25 * math.exp(-epoch / 4))

    assert read(train, train, accuracy=[0.97] * 30).verdict is Verdict.GOOD_FIT


def test_low_accuracy_is_underfitting_although_the_loss_came_down_from_a_wild_start() -> None:
    train = noisy(series(30, lambda epoch: 2.4 + 6 * math.exp(-3 * epoch)), 0.01)

    assert read(train, train, accuracy=[0.1] * 30).verdict is Verdict.UNDERFITTING


def test_a_loss_that_never_moved_is_underfitting() -> None:
    assert read([0.693] * 20).verdict is Verdict.UNDERFITTING
    assert read(noisy([0.693] * 200, 0.003)).verdict is Verdict.UNDERFITTING


def test_learning_that_stops_all_at_once_is_a_plateau_however_high_the_loss() -> None:
    diagnosis = read(series(30, lambda epoch: 2.3 - 0.05 * min(epoch, 6)))

    assert diagnosis.verdict is Verdict.PLATEAU
    assert diagnosis.evidence[0].rule == "train_halts"
    assert "epoch 7 " in diagnosis.summary


def test_the_drop_after_a_lower_learning_rate_is_no_plateau() -> None:
    train = series(60, lambda epoch: (0.4 if epoch < 30 else 0.15) + 0.6 * math.exp(-epoch / 4))

    assert read(train).verdict is Verdict.GOOD_FIT


@pytest.mark.parametrize("bump", [0.1, 0.2, 0.3])
def test_a_learning_rate_that_warms_up_is_not_diverging(bump: float) -> None:
    warm_up = series(5, lambda epoch: 1 + bump * math.sin(math.pi * (epoch + 1) / 5))
    train = [*warm_up, *decay(25)]

    for epochs in range(1, 31):
        assert read(train[:epochs]).verdict is not Verdict.DIVERGING, epochs


def test_warm_restarts_are_neither_diverging_nor_overfitting() -> None:
    train = series(60, lambda epoch: 0.1 + 0.8 * math.exp(-epoch / 6) + 0.15 * (1 - (epoch % 15) / 15) ** 2)

    for epochs in range(20, 61):
        assert read(train[:epochs]).verdict is Verdict.GOOD_FIT, epochs


def test_train_loss_that_blows_up_late_and_stays_there_is_diverging() -> None:
    train = [*decay(20), *([0.8] * 5)]

    assert read(train).verdict is Verdict.DIVERGING
    assert read([*train, 0.3, 0.1, 0.06, 0.05]).verdict is not Verdict.DIVERGING


def test_negative_losses_are_read_by_their_shape() -> None:
    falling = [loss - 5 for loss in decay(30)]
    validation = series(30, lambda epoch: -4.6 + math.exp(-epoch / 2) + 0.02 * max(epoch - 8, 0))

    assert read(falling).verdict is Verdict.GOOD_FIT
    assert read(falling, validation).verdict is Verdict.OVERFITTING
    assert read([-loss for loss in series(30, lambda epoch: 5 - 0.5 * epoch)]).verdict is Verdict.DIVERGING


def test_a_wild_first_epoch_does_not_hide_what_follows() -> None:
    validation = [1e6, *series(39, lambda epoch: 0.4 + 0.5 * math.exp(-epoch / 2) + 0.01 * epoch)]

    assert read(decay(40, floor=0.01), validation).verdict is Verdict.OVERFITTING


def test_a_few_jumps_are_not_unstable_and_many_are() -> None:
    calm = decay(40, floor=0.2)
    few, many = list(calm), list(calm)
    few[25] = few[33] = 0.5
    many[21::3] = [0.5] * len(many[21::3])

    assert read(few).verdict is Verdict.GOOD_FIT
    diagnosis = read(many)
    assert diagnosis.verdict is Verdict.UNSTABLE
    assert diagnosis.evidence[0].epochs == tuple(range(22, 41, 3))


def test_a_falling_loss_that_is_still_high_after_few_epochs_is_too_early_to_judge() -> None:
    assert read([2.30, 2.29, 2.27, 2.24, 2.20]).verdict is Verdict.TOO_EARLY


def test_the_first_bad_epoch_is_named() -> None:
    losses = [1.0, 0.8, 0.7, math.nan, 0.6, math.inf]
    diagnosis = read([1.0] * 6, losses)

    assert diagnosis.verdict is Verdict.NOT_FINITE
    assert diagnosis.evidence[0].epochs == (4,)
    assert "epoch 4" in diagnosis.advice


@pytest.mark.parametrize(
    ("later", "best", "recovered"),
    [([0.9, 0.6, 0.7], 6, True), ([0.9, 0.9, 0.9], 3, False), ([math.nan] * 3, 3, False)],
)
def test_a_run_that_recovers_has_its_best_epoch_after_the_bad_one(
    later: list[float], best: int, recovered: bool
) -> None:
    diagnosis = read([1.0, 0.9, 0.8, math.nan, 0.7, 0.6, 0.5], [1.0, 0.8, 0.7, math.nan, *later])

    assert diagnosis.verdict is Verdict.NOT_FINITE
    assert diagnosis.stop
    assert diagnosis.best_epoch == best
    assert diagnosis.evidence[0].epochs == (4,)
    assert [one.rule for one in diagnosis.evidence[1:]] == ["recovered"] * recovered
    if recovered:
        assert (diagnosis.evidence[1].epochs, diagnosis.evidence[1].values) == ((best,), (0.6,))


def test_a_flagged_epoch_is_not_finite_although_its_mean_is() -> None:
    curve = Curve(train=(1.0, 0.9), validation=(1.0, 0.9), nonfinite=(False, True))

    diagnosis = diagnose(curve)

    assert diagnosis.verdict is Verdict.NOT_FINITE
    assert diagnosis.evidence[0].epochs == (2,)


def wobbling(seed: int, rise: float) -> list[float]:
    """Come down to 0.4, then wobble by 0.03, more than a rise has to measure; and rise over 40 epochs."""
    clean = series(60, lambda epoch: 0.4 + 0.6 * math.exp(-epoch / 4) + rise * max(epoch - 20, 0) / 40)
    return noisy(clean, 0.03, seed)


def test_noise_alone_hardly_ever_looks_like_overfitting_at_any_epoch() -> None:
    train = series(60, lambda epoch: 0.05 + 0.95 * math.exp(-epoch / 20))
    alarms = 0
    for seed in range(100):
        validation = wobbling(seed, 0.0)
        alarms += any(
            read(train[:epochs], validation[:epochs]).verdict is Verdict.OVERFITTING
            for epochs in range(5, 61)
        )

    assert alarms <= 5


def test_a_slow_rise_is_seen_through_the_noise() -> None:
    train = series(60, lambda epoch: 0.05 + 0.95 * math.exp(-epoch / 20))

    seen = sum(read(train, wobbling(seed, 0.15)).verdict is Verdict.OVERFITTING for seed in range(50))

    assert seen >= 45


@pytest.mark.parametrize(
    ("error", "verdict"), [(math.nan, "overfitting"), (0.1, "overfitting"), (0.3, "good_fit")]
)
def test_a_rise_within_one_standard_error_is_none(error: float, verdict: str) -> None:
    """Another validation set of the same size may well show none."""
    train = tuple(0.8**epoch for epoch in range(20))
    validation = tuple(0.5 + abs(epoch - 8) / 50 for epoch in range(20))  # rises by 0.22

    curve = Curve(train=train, validation=validation, validation_errors=(error,) * 20)

    assert diagnose(curve).verdict == verdict


def raised(train: Sequence[float], validation: Sequence[float]) -> set[Verdict]:
    """Return every verdict that is raised at any epoch."""
    return {one.verdict for one in diagnoses(Curve(train=tuple(train), validation=tuple(validation)))}


@pytest.mark.parametrize("pace", [20, 50])
def test_a_slow_fall_is_not_taken_for_rest_because_noise_hides_it(pace: float) -> None:
    fall = series(100, lambda epoch: 0.05 + 0.95 * math.exp(-epoch / pace))
    at_rest = 0
    for seed in range(60):
        noise = random.Random(seed)
        train = [loss * (1 + noise.gauss(0, 0.025)) for loss in fall]
        validation = [loss * (1 + noise.gauss(0, 0.05)) for loss in fall]
        at_rest += not raised(train, validation).isdisjoint({Verdict.UNDERFITTING, Verdict.PLATEAU})

    assert at_rest <= 6


def test_a_root_that_falls_ever_slower_is_no_plateau_because_noise_hides_it() -> None:
    fall = series(60, lambda epoch: 0.1 + 0.9 / math.sqrt(1 + epoch))
    for seed in range(40):
        noise = random.Random(seed)
        train = [loss * (1 + noise.gauss(0, 0.025)) for loss in fall]
        validation = [loss * (1 + noise.gauss(0, 0.05)) for loss in fall]
        assert Verdict.PLATEAU not in raised(train, validation)


def test_a_noisy_loss_that_rests_high_up_is_seen_in_time() -> None:
    rest = series(20, lambda epoch: 0.8 + 0.2 * math.exp(-epoch / 2))
    seen = sum(
        read(noisy(rest, 0.012, seed), noisy(rest, 0.03, seed + 100)).verdict is Verdict.UNDERFITTING
        for seed in range(60)
    )

    assert seen >= 56


def test_a_line_shows_a_fall_that_the_noise_of_two_epochs_hides() -> None:
    fall = series(40, lambda epoch: 1 - 0.008 * epoch)
    slow = sum(
        read(noisy(fall, 0.03, seed), noisy(fall, 0.03, seed + 100)).verdict is Verdict.SLOW_CONVERGENCE
        for seed in range(60)
    )

    assert slow >= 57
