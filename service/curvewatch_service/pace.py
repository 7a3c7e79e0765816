"""How a run gets on in time: how long its epochs take, and which of its ranks is slow. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median_low

from curvewatch_workers.contract import EpochRecord, JobSpec

SLOWNESS_EPOCHS = 10
"""Latest epochs over which the ranks are compared."""
LEAST_SECONDS = 0.5
"""Time of validation passes, over those epochs, below which a difference of ranks says nothing."""
FIRST_EPOCH_SECONDS = 3600.0
"""How long the first epoch may be awaited where the job says nothing."""
LONGER_THAN_LONGEST = 10.0
LEAST_WAIT_SECONDS = 600.0


def rank_slowness(records: Sequence[EpochRecord]) -> list[float] | None:
    """Compare the ranks: time a sample of each, by that of the median rank.

    The validation pass tells it: each rank goes through its own shard there and waits for none.

    Args:
        records: The latest epochs, in order; those before a change of the world size are left out.

    Returns:
        A ratio for each rank of the latest epoch, above 1 for a slow one; None with one rank, and where so little was
        measured that it says nothing.
    """
    if not records or (ranks := records[-1].world_size) < 2:
        return None
    seconds, samples = [0.0] * ranks, [0] * ranks
    for record in reversed(records):
        if record.world_size != ranks or record.rank_validation_seconds is None:
            break
        for rank in range(ranks):
            seconds[rank] += record.rank_validation_seconds[rank]
            samples[rank] += record.validation.ranks[rank].samples
    if not all(samples) or median_low(seconds) < LEAST_SECONDS:
        return None
    by_sample = [one / number for one, number in zip(seconds, samples, strict=True)]
    typical = median_low(by_sample)
    return [one / typical for one in by_sample]


def epoch_wait_limit(spec: JobSpec, longest_epoch_seconds: float | None) -> float:
    """Return how many seconds the next epoch of a run may be awaited before somebody should look.

    Args:
        spec: Its job.
        longest_epoch_seconds: Of its epochs so far; None before the first.
    """
    if spec.monitoring.stalled_after_seconds is not None:
        return spec.monitoring.stalled_after_seconds
    if longest_epoch_seconds is None:
        return FIRST_EPOCH_SECONDS
    return max(LEAST_WAIT_SECONDS, LONGER_THAN_LONGEST * longest_epoch_seconds)
