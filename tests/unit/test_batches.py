from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curvewatch_workers.batches import BatchPlan, index_checksum, validation_shares

PLANS = st.builds(
    BatchPlan,
    samples=st.integers(1, 300),
    global_batch_size=st.integers(1, 64),
    seed=st.integers(0, 2**40),
)


@given(plan=PLANS, epoch=st.integers(1, 50), world_size=st.integers(1, 9))
def test_each_sample_is_drawn_once_and_ranks_take_equal_steps(
    plan: BatchPlan, epoch: int, world_size: int
) -> None:
    shares = [list(plan.shares(epoch, rank, world_size)) for rank in range(world_size)]

    assert {len(one) for one in shares} == {plan.steps}
    drawn = np.concatenate([share for one in shares for share in one])
    assert sorted(drawn.tolist()) == list(range(plan.samples))


@given(plan=PLANS, epoch=st.integers(1, 50), world_size=st.integers(2, 9))
def test_a_step_holds_the_same_samples_on_any_number_of_ranks(
    plan: BatchPlan, epoch: int, world_size: int
) -> None:
    alone = list(plan.shares(epoch, 0, 1))
    shares = [list(plan.shares(epoch, rank, world_size)) for rank in range(world_size)]

    for step, batch in enumerate(alone):
        assert len(batch) == plan.step_samples(step)
        together = np.concatenate([one[step] for one in shares])
        assert together.tolist() == batch.tolist()
        sizes = [len(one[step]) for one in shares]
        assert max(sizes) - min(sizes) <= 1
        # The factor of each rank's sum, world size / samples of the step, averages to the mean over the batch.
        assert sum(sizes) / plan.step_samples(step) == pytest.approx(1.0)


def test_order_changes_with_epoch_and_seed_only() -> None:
    plan = BatchPlan(samples=100, global_batch_size=7, seed=1)

    assert plan.order(1).tolist() == plan.order(1).tolist()
    assert plan.order(1).tolist() != plan.order(2).tolist()
    assert plan.order(1).tolist() != BatchPlan(samples=100, global_batch_size=7, seed=2).order(1).tolist()


@given(samples=st.integers(1, 200), world_size=st.integers(1, 9), batch_size=st.integers(1, 50))
def test_validation_is_unpadded(samples: int, world_size: int, batch_size: int) -> None:
    shards = [
        np.concatenate([np.empty(0, np.int64), *validation_shares(samples, rank, world_size, batch_size)])
        for rank in range(world_size)
    ]

    assert sorted(np.concatenate(shards).tolist()) == list(range(samples))


def test_checksum_adds_up_over_any_split_and_tells_sets_of_equal_size_apart() -> None:
    indices = np.arange(361)

    assert index_checksum(indices[:100]) + index_checksum(indices[100:]) == index_checksum(indices)
    swapped = indices.copy()
    swapped[17] = 18  # one sample twice, one never: the count alone would not see it
    assert index_checksum(swapped) != index_checksum(indices)
    assert index_checksum(np.empty(0, np.int64)) == 0


def test_checksum_of_a_large_dataset_stays_exact_in_float64() -> None:
    largest_hash = 2**20 - 1

    assert largest_hash * 2**33 < 2**53
    assert index_checksum(np.arange(1_000_000)) == int(float(index_checksum(np.arange(1_000_000))))
