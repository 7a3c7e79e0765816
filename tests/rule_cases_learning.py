"""Cases of the alerts on learning curves: each fires on its own, not on the innocent one next to it, and ends."""

from __future__ import annotations

import math
from dataclasses import replace

from rule_support import Case, Check, ScrapedRun, fires, quiet, resolves

OVERFITTING, DIVERGING = "CurvewatchOverfitting", "CurvewatchValidationLossDiverging"
NOT_FINITE, TRAIN_DIVERGING = "CurvewatchLossNotFinite", "CurvewatchTrainLossDiverging"
OVERCONFIDENT = "CurvewatchOverconfident"
STANDING = {
    "CurvewatchPlateau": "plateau",
    "CurvewatchUnderfitting": "underfitting",
    "CurvewatchSlowConvergence": "slow_convergence",
    "CurvewatchUnstable": "unstable",
}
"""Alerts on a verdict that stands for the patience."""

FALLING = tuple(1.0 / epoch for epoch in range(1, 31))
U_SHAPED = tuple(1.0 + 0.02 * abs(epoch - 10) for epoch in range(1, 31))
"""Lowest at epoch 10, then it rises by 0.02 an epoch."""
OVERFIT = ScrapedRun(train=FALLING, validation=U_SHAPED, verdict="overfitting", verdict_from=13)
EXPLODING = tuple(1.0 / epoch if epoch <= 10 else 0.1 * 2.0 ** (epoch - 10) for epoch in range(1, 21))
DIVERGED = ScrapedRun(
    train=EXPLODING, validation=EXPLODING, verdict="diverging", verdict_from=11, patience=10
)
END = 31 * 30.0
"""A moment after the last epoch of these runs."""


def changed(values: tuple[float, ...], *, epoch: int, to: float) -> tuple[float, ...]:
    """Return the losses with another one from an epoch on."""
    return values[: epoch - 1] + (to,) * (len(values) - epoch + 1)


NOT_A_NUMBER = changed(U_SHAPED, epoch=14, to=math.nan)
RECOVERS = changed(U_SHAPED, epoch=22, to=0.5)
AT_ITS_BEST = changed(U_SHAPED, epoch=14, to=1.0)
FALLS_BACK = (0.1, *(9.0 / epoch for epoch in range(1, 20)))
COMES_BACK = changed(EXPLODING, epoch=18, to=0.05)
IN_EUROPE = replace(OVERFIT, cluster="eu")
IN_AMERICA = replace(OVERFIT, cluster="us", run_id="r-2", owner="bob")
NOT_OVERFIT = (
    replace(OVERFIT, cluster="us", verdict="good_fit"),
    replace(OVERFIT, cluster="ap", validation=FALLING),
    replace(OVERFIT, cluster="af", stopping_from=12),
)
"""The same ids too, as after a database was copied; each lacks another part of the condition."""
DIVERGED_IN_EUROPE = replace(DIVERGED, cluster="eu")
NOT_DIVERGED = (
    replace(DIVERGED, cluster="us", verdict="good_fit"),
    replace(DIVERGED, cluster="ap", validation=FALLING[:20]),
    replace(DIVERGED, cluster="af", patience=4, validation=FALLS_BACK, verdict_from=14),
)

LOST = replace(OVERFIT, train=changed(FALLING, epoch=14, to=math.nan), validation=NOT_A_NUMBER)
"""A run whose weights are lost in epoch 14."""
OVERFLOWN = replace(OVERFIT, validation=changed(U_SHAPED, epoch=14, to=math.inf))
BAD_BATCHES = replace(OVERFIT, partly_nonfinite=(14, 15))
RESCUED = replace(
    OVERFIT,
    train=(*FALLING[:13], math.nan, *FALLING[14:]),
    validation=(*U_SHAPED[:13], math.nan, *U_SHAPED[14:]),
)
SURE_OF_MISTAKES = replace(OVERFIT, verdict="overconfident")
RISING_TRAIN = replace(DIVERGED, verdict_until=17)
HOURS = 3600


def long(run: ScrapedRun) -> ScrapedRun:
    """The same run with epochs of 6 h."""
    return replace(run, epoch_seconds=6 * HOURS)


def short(run: ScrapedRun) -> ScrapedRun:
    """The same run with epochs of 0.2 s, all of them between two scrapes; it leaves after its linger."""
    return replace(run, epoch_seconds=0.2, leaves_at=606)


def of_any_length(alert: str, run: ScrapedRun, *, epoch: int) -> tuple[Case, ...]:
    """Make the cases of a run that fires from an epoch on, with epochs of any length."""
    step = float(HOURS)
    before, after = (epoch - 1) * 6 * HOURS + HOURS, epoch * 6 * HOURS + HOURS
    return (
        fires(alert, "epochs of 30 s", run, quiet=(epoch - 1) * 30 + 15, firing=epoch * 30 + 15),
        fires(alert, "epochs of 6 h", long(run), quiet=before, firing=after, step=step),
        fires(alert, "epochs of 0.2 s", short(run), quiet=0, firing=30),
    )


def in_two_clusters(alert: str, run: ScrapedRun, innocent: ScrapedRun, *, at: float) -> Case:
    """Make the case of two clusters that have a run of the same name and id, one of which fires."""
    here, there = replace(run, cluster="eu"), replace(innocent, cluster="us")
    checks = (Check(seconds=at, firing=(here,)),)
    name = "two clusters with the same run, one of them fires"
    return Case(name=name, alert=alert, kind="fires", runs=(here, there), checks=checks)


def of_a_standing_verdict(alert: str, verdict: str) -> tuple[Case, ...]:
    """Make the cases of an alert on a verdict that stands for the patience, which is 5."""
    stands = replace(OVERFIT, verdict=verdict, verdict_from=7)
    return (
        *of_any_length(alert, stands, epoch=11),
        in_two_clusters(alert, stands, replace(stands, verdict="good_fit"), at=12 * 30),
        quiet(alert, "another verdict", replace(stands, verdict="good_fit")),
        quiet(alert, "the verdict has just changed", replace(stands, verdict_until=10)),
        quiet(alert, "the run is more patient", replace(stands, patience=25)),
        quiet(alert, "a person stops the run", replace(stands, stopping_from=10)),
        resolves(
            alert, "another verdict", replace(stands, verdict_until=20), firing=20 * 30, over=21 * 30 + 15
        ),
    )


LEARNING_CASES = (
    # The best is epoch 10 and patience is 5: epoch 15 meets it, epoch 16 exceeds it.
    fires(OVERFITTING, "epochs of 30 s", OVERFIT, quiet=15 * 30 + 15, firing=16 * 30 + 15),
    fires(
        OVERFITTING,
        "epochs of 6 h",
        replace(OVERFIT, epoch_seconds=6 * 3600),
        quiet=15 * 6 * 3600 + 3600,
        firing=16 * 6 * 3600 + 3600,
        step=3600,
    ),
    fires(
        OVERFITTING,
        "epochs of 0.2 s, over between two scrapes",
        replace(OVERFIT, epoch_seconds=0.2, leaves_at=606),
        quiet=0,
        firing=30,
    ),
    fires(
        OVERFITTING,
        "memorised train set whose slope is a little above zero",
        replace(OVERFIT, train=tuple(1e-6 + 1e-9 * epoch for epoch in range(30))),
        quiet=15 * 30 + 15,
        firing=16 * 30 + 15,
    ),
    fires(
        OVERFITTING,
        "losses below zero",
        replace(OVERFIT, train=tuple(x - 9 for x in FALLING), validation=tuple(x - 9 for x in U_SHAPED)),
        quiet=15 * 30 + 15,
        firing=16 * 30 + 15,
    ),
    quiet(OVERFITTING, "patience not reached", replace(OVERFIT, patience=25)),
    quiet(
        OVERFITTING,
        "early stopping ends the run as patience is met",
        replace(OVERFIT, train=FALLING[:15], validation=U_SHAPED[:15]),
    ),
    quiet(OVERFITTING, "good fit on a noisy floor", replace(OVERFIT, verdict="good_fit")),
    quiet(OVERFITTING, "accuracy is kept: overconfident", replace(OVERFIT, verdict="overconfident")),
    quiet(OVERFITTING, "back at its best, to the last digit", replace(OVERFIT, validation=AT_ITS_BEST)),
    quiet(OVERFITTING, "train loss rises as well", replace(OVERFIT, train=U_SHAPED)),
    quiet(OVERFITTING, "early noisy rise", replace(OVERFIT, verdict_from=31)),
    quiet(OVERFITTING, "validation loss is NaN", replace(OVERFIT, validation=NOT_A_NUMBER)),
    quiet(OVERFITTING, "train slope is not known", replace(OVERFIT, train=(math.nan,) * 30)),
    quiet(OVERFITTING, "a person stops the run", replace(OVERFIT, stopping_from=15)),
    resolves(
        OVERFITTING, "new best", replace(OVERFIT, validation=RECOVERS), firing=21 * 30, over=22 * 30 + 15
    ),
    resolves(
        OVERFITTING, "run leaves after its linger", replace(OVERFIT, leaves_at=END), firing=END - 30, over=END
    ),
    Case(
        name="two clusters with the same run, one overfits",
        alert=OVERFITTING,
        kind="fires",
        runs=(IN_EUROPE, *NOT_OVERFIT),
        checks=(Check(seconds=END, firing=(IN_EUROPE,)),),
    ),
    Case(
        name="two clusters with the same run, both overfit",
        alert=OVERFITTING,
        kind="fires",
        runs=(IN_EUROPE, IN_AMERICA),
        checks=(Check(seconds=END, firing=(IN_EUROPE, IN_AMERICA)),),
    ),
    # The best is epoch 10: the third epoch without a new best is epoch 13, long before the patience of 10.
    fires(DIVERGING, "both losses explode", DIVERGED, quiet=12 * 30 + 15, firing=13 * 30 + 15),
    fires(
        DIVERGING,
        "epochs of 6 h",
        replace(DIVERGED, epoch_seconds=6 * 3600),
        quiet=12 * 6 * 3600 + 3600,
        firing=13 * 6 * 3600 + 3600,
        step=3600,
    ),
    fires(
        DIVERGING,
        "epochs of 0.2 s, over between two scrapes",
        replace(DIVERGED, epoch_seconds=0.2, leaves_at=604),
        quiet=0,
        firing=30,
    ),
    fires(
        DIVERGING,
        "losses below zero",
        replace(
            DIVERGED, train=tuple(x - 200 for x in EXPLODING), validation=tuple(x - 200 for x in EXPLODING)
        ),
        quiet=12 * 30 + 15,
        firing=13 * 30 + 15,
    ),
    quiet(DIVERGING, "good fit on a noisy floor", replace(DIVERGED, verdict="good_fit")),
    quiet(DIVERGING, "early noisy rise", replace(DIVERGED, verdict_from=31)),
    quiet(
        DIVERGING,
        "one bad epoch, then a new best",
        replace(DIVERGED, validation=changed(changed(EXPLODING, epoch=12, to=9.0), epoch=13, to=0.09)),
    ),
    quiet(
        DIVERGING,
        "falls back towards its best",
        replace(
            DIVERGED, patience=4, verdict_from=14, validation=(0.1, *(9.0 / epoch for epoch in range(1, 20)))
        ),
    ),
    quiet(
        DIVERGING,
        "validation loss is NaN",
        replace(DIVERGED, validation=changed(EXPLODING, epoch=11, to=math.nan)),
    ),
    quiet(DIVERGING, "a person stops the run", replace(DIVERGED, stopping_from=12)),
    resolves(
        DIVERGING, "new best", replace(DIVERGED, validation=COMES_BACK), firing=17 * 30, over=18 * 30 + 15
    ),
    resolves(
        DIVERGING, "run leaves after its linger", replace(DIVERGED, leaves_at=END), firing=END - 30, over=END
    ),
    Case(
        name="two clusters with the same run, one diverges",
        alert=DIVERGING,
        kind="fires",
        runs=(DIVERGED_IN_EUROPE, *NOT_DIVERGED),
        checks=(Check(seconds=END, firing=(DIVERGED_IN_EUROPE,)),),
    ),
    *of_any_length(NOT_FINITE, LOST, epoch=14),
    in_two_clusters(NOT_FINITE, LOST, OVERFIT, at=15 * 30),
    fires(NOT_FINITE, "validation loss overflows", OVERFLOWN, quiet=13 * 30 + 15, firing=14 * 30 + 15),
    fires(NOT_FINITE, "bad batches, epoch after epoch", BAD_BATCHES, quiet=14 * 30 + 15, firing=15 * 30 + 15),
    quiet(NOT_FINITE, "one bad batch", replace(OVERFIT, partly_nonfinite=(14,))),
    quiet(NOT_FINITE, "large losses", replace(OVERFIT, train=(1e300,) * 30, validation=(1e300,) * 30)),
    quiet(NOT_FINITE, "a person stops the run", replace(LOST, stopping_from=13)),
    resolves(NOT_FINITE, "rescued", RESCUED, firing=14 * 30 + 15, over=15 * 30),
    resolves(NOT_FINITE, "batches are fine again", BAD_BATCHES, firing=15 * 30 + 15, over=16 * 30),
    *of_any_length(TRAIN_DIVERGING, DIVERGED, epoch=13),
    in_two_clusters(TRAIN_DIVERGING, DIVERGED, replace(DIVERGED, verdict="unstable"), at=14 * 30),
    quiet(TRAIN_DIVERGING, "validation loss alone diverges", replace(DIVERGED, train=FALLING[:20])),
    quiet(TRAIN_DIVERGING, "two epochs of it", replace(DIVERGED, verdict_until=12)),
    quiet(TRAIN_DIVERGING, "another verdict", replace(DIVERGED, verdict="unstable")),
    quiet(TRAIN_DIVERGING, "train loss is NaN", replace(DIVERGED, train=(math.nan,) * 20)),
    quiet(TRAIN_DIVERGING, "a person stops the run", replace(DIVERGED, stopping_from=12)),
    resolves(TRAIN_DIVERGING, "another verdict", RISING_TRAIN, firing=17 * 30, over=18 * 30 + 15),
    *of_any_length(OVERCONFIDENT, SURE_OF_MISTAKES, epoch=16),
    in_two_clusters(OVERCONFIDENT, SURE_OF_MISTAKES, OVERFIT, at=17 * 30),
    quiet(OVERCONFIDENT, "the metric falls too: overfitting", OVERFIT),
    quiet(OVERCONFIDENT, "patience not reached", replace(SURE_OF_MISTAKES, patience=25)),
    quiet(OVERCONFIDENT, "a person stops the run", replace(SURE_OF_MISTAKES, stopping_from=15)),
    resolves(
        OVERCONFIDENT,
        "new best",
        replace(SURE_OF_MISTAKES, validation=RECOVERS),
        firing=21 * 30,
        over=22 * 30 + 15,
    ),
    *(case for alert, verdict in STANDING.items() for case in of_a_standing_verdict(alert, verdict)),
)
"""Every case of every alert on a curve."""
