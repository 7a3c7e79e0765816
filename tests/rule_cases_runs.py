"""Cases of the alerts on how runs get on, and on the exactness of their numbers."""

from __future__ import annotations

from dataclasses import replace

from rule_support import Case, Check, ScrapedRun, fires, quiet, resolves

STALLED, NO_FIRST = "CurvewatchRunStalled", "CurvewatchNoFirstEpoch"
RESTARTS, FAILED, STRAGGLER = "CurvewatchWorkerRestarts", "CurvewatchRunFailed", "CurvewatchStraggler"
NOT_EXACT, NOT_FAITHFUL = "CurvewatchReceiptNotExact", "CurvewatchResumeNotFaithful"
UNBALANCED = "CurvewatchShardsUnbalanced"

HEALTHY = ScrapedRun(
    train=tuple(1.0 / epoch for epoch in range(1, 31)),
    validation=tuple(1.1 / epoch for epoch in range(1, 31)),
    verdict="good_fit",
)
"""30 epochs of 30 s, then it has ended well."""
END = 30 * 30.0
HANGS = replace(HEALTHY, train=HEALTHY.train[:4], validation=HEALTHY.validation[:4], end_state="RUNNING")
"""Its 4th epoch, at 120 s, is the last that comes; after 600 s that is too long."""
NEVER_BEGINS = replace(HANGS, epoch_seconds=1e9)
"""Given to the cluster at time 0, and no epoch comes."""
LONG = 6 * 3600.0
DIES = replace(HEALTHY, restarts=(0,) * 10 + (1, 2, 3))
BREAKS = replace(HEALTHY, end_state="FAILED")
SLOW_RANK = replace(HEALTHY, slowness=(1.0, 1.7))
MISCOUNTS = replace(HEALTHY, exact=(True,) * 9 + (False,) + (True,))
UNFAITHFUL = replace(HEALTHY, differing=(0,) * 10 + (2,), faithful=False)
UNEVEN = replace(HEALTHY, shards=(60, 40))


def in_two_clusters(alert: str, run: ScrapedRun, at: float, **more: str) -> Case:
    """Make the case of two clusters that have a run of the same name and id, one of which fires."""
    here, there = replace(run, cluster="eu"), replace(HEALTHY, cluster="us")
    checks = (Check(seconds=at, firing=(here,), more=tuple(more.items())),)
    name = "two clusters with the same run, one of them fires"
    return Case(name=name, alert=alert, kind="fires", runs=(here, there), checks=checks)


RUN_CASES = (
    fires(STALLED, "no epoch after the 4th", HANGS, quiet=120 + 600, firing=120 + 630),
    fires(
        STALLED,
        "epochs of 6 h, and none for 60 h",
        replace(HANGS, epoch_seconds=LONG, wait_limit=10 * LONG),
        quiet=14 * LONG,
        firing=14 * LONG + 2 * 3600,
        step=3600,
    ),
    fires(STALLED, "epochs of 0.2 s", replace(HANGS, epoch_seconds=0.2), quiet=600, firing=645),
    in_two_clusters(STALLED, HANGS, at=800),
    quiet(STALLED, "every epoch comes", HEALTHY),
    quiet(
        STALLED,
        "an epoch of 6 h is on its way",
        replace(HANGS, epoch_seconds=LONG, wait_limit=10 * LONG),
        until=3600,
    ),
    quiet(STALLED, "the first epoch is what is missing", NEVER_BEGINS),
    quiet(STALLED, "the run has ended", replace(HANGS, end_state="SUCCEEDED")),
    quiet(STALLED, "a person stops it", replace(HANGS, stopping_from=4)),
    resolves(
        STALLED,
        "the next epoch comes after all",
        replace(HANGS, wait_limit=20, epoch_seconds=90, end_state="SUCCEEDED"),
        firing=90 + 75,
        over=180,
    ),
    fires(NO_FIRST, "nothing for its limit", NEVER_BEGINS, quiet=600, firing=630),
    in_two_clusters(NO_FIRST, NEVER_BEGINS, at=700),
    quiet(NO_FIRST, "a first epoch of 6 h, in a job that says so", replace(NEVER_BEGINS, wait_limit=LONG)),
    quiet(NO_FIRST, "it has had epochs", HANGS),
    quiet(NO_FIRST, "every epoch comes", HEALTHY),
    resolves(
        NO_FIRST,
        "the first epoch comes",
        replace(HEALTHY, epoch_seconds=150, wait_limit=60),
        firing=120,
        over=165,
    ),
    fires(RESTARTS, "three within the hour", DIES, quiet=11 * 30, firing=13 * 30),
    in_two_clusters(RESTARTS, DIES, at=13 * 30),
    quiet(RESTARTS, "no restart", HEALTHY),
    quiet(RESTARTS, "two within the hour", replace(HEALTHY, restarts=(0,) * 10 + (1, 2))),
    quiet(RESTARTS, "a person stops it", replace(DIES, stopping_from=10)),
    Case(
        name="three, one each 6 h",
        alert=RESTARTS,
        kind="quiet",
        runs=(replace(HEALTHY, epoch_seconds=LONG, restarts=(0, 1, 2, 3)),),
        checks=tuple(Check(seconds=index * 1800.0) for index in range(60)),
        step=1800,
    ),
    resolves(RESTARTS, "an hour without one", DIES, firing=13 * 30, over=12 * 30 + 3600 + 60),
    fires(FAILED, "it fails", BREAKS, quiet=END - 15, firing=END + 15),
    fires(FAILED, "it is lost", replace(HEALTHY, end_state="LOST"), quiet=END - 15, firing=END + 15),
    in_two_clusters(FAILED, BREAKS, at=END + 30),
    quiet(FAILED, "it ends well", HEALTHY, until=END + 600),
    quiet(FAILED, "a person stops it", replace(BREAKS, stopping_from=20), until=END + 600),
    resolves(
        FAILED,
        "run leaves after its linger",
        replace(BREAKS, leaves_at=END + 600),
        firing=END + 570,
        over=END + 600,
    ),
    fires(STRAGGLER, "rank 1 is slow", SLOW_RANK, quiet=2 * 30 + 15, firing=3 * 30 + 15, rank="1"),
    in_two_clusters(STRAGGLER, SLOW_RANK, at=END - 30, rank="1"),
    quiet(STRAGGLER, "a little slower", replace(HEALTHY, slowness=(1.0, 1.4))),
    quiet(STRAGGLER, "slow in its first two epochs", replace(SLOW_RANK, even_from=3)),
    quiet(STRAGGLER, "a person stops it", replace(SLOW_RANK, stopping_from=2)),
    resolves(
        STRAGGLER,
        "it is as fast as the other again",
        replace(SLOW_RANK, even_from=9),
        firing=8 * 30,
        over=9 * 30,
        rank="1",
    ),
)
"""Every case of every alert on how a run gets on."""

EXACTNESS_CASES = (
    fires(
        NOT_EXACT,
        "train is not exact",
        replace(HEALTHY, exact=(False,)),
        quiet=15,
        firing=30 + 15,
        split="train",
    ),
    in_two_clusters(NOT_EXACT, MISCOUNTS, at=10 * 30 + 15, split="train"),
    quiet(NOT_EXACT, "each sample once", HEALTHY),
    resolves(NOT_EXACT, "the next epoch is", MISCOUNTS, firing=10 * 30 + 15, over=11 * 30, split="train"),
    fires(NOT_FAITHFUL, "two epochs differ", UNFAITHFUL, quiet=9 * 30 + 15, firing=10 * 30 + 15),
    in_two_clusters(NOT_FAITHFUL, UNFAITHFUL, at=12 * 30),
    quiet(NOT_FAITHFUL, "replays give the same", replace(HEALTHY, restarts=(0, 1))),
    quiet(NOT_FAITHFUL, "they may differ", replace(UNFAITHFUL, faithful=True)),
    resolves(
        NOT_FAITHFUL,
        "run leaves after its linger",
        replace(UNFAITHFUL, leaves_at=END + 600),
        firing=END + 570,
        over=END + 600,
    ),
    fires(UNBALANCED, "60 samples and 40", UNEVEN, quiet=15, firing=30 + 15),
    in_two_clusters(UNBALANCED, UNEVEN, at=END - 30),
    quiet(UNBALANCED, "one sample more", replace(HEALTHY, shards=(51, 50))),
    quiet(UNBALANCED, "54 samples and 46", replace(HEALTHY, shards=(54, 46))),
    quiet(UNBALANCED, "one rank", replace(HEALTHY, shards=(100,), slowness=(1.0,))),
    resolves(UNBALANCED, "they are even again", replace(UNEVEN, even_from=9), firing=8 * 30, over=9 * 30),
)
"""Every case of every alert on the numbers themselves."""
