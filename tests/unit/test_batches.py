from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curvewatch_workers.batches import BatchPlan, IndexCounter, index_checksum, shuffled, validation_shares

PLANS = st.builds(
    BatchPlan,
    samples=st.integers(1, 300),
    global_batch_size=st.integers(1, 64),
    micro_batches=st.integers(1, 4),
)


@given(plan=PLANS, epoch=st.integers(1, 50), world_size=st.integers(1, 9))
def test_each_sample_is_drawn_once_and_ranks_take_equal_steps(
    plan: BatchPlan, epoch: int, world_size: int
) -> None:
    order = shuffled(plan.samples, seed=0, epoch=epoch)
    shares = [list(plan.shares(order, rank, world_size)) for rank in range(world_size)]

    assert {len(one) for one in shares} == {plan.steps * plan.micro_batches}
    drawn = np.concatenate([share for one in shares for share in one])
    assert sorted(drawn.tolist()) == list(range(plan.samples))
    assert {len(share) for one in shares for share in one} == plan.share_sizes(world_size)


@given(plan=PLANS, epoch=st.integers(1, 50), world_size=st.integers(2, 9))
def test_a_step_holds_the_same_samples_on_any_number_of_ranks(
    plan: BatchPlan, epoch: int, world_size: int
) -> None:
    order = shuffled(plan.samples, seed=0, epoch=epoch)
    alone = list(plan.shares(order, 0, 1))
    shares = [list(plan.shares(order, rank, world_size)) for rank in range(world_size)]

    for step in range(plan.steps):
        scaled = 0.0
        for number in range(step * plan.micro_batches, (step + 1) * plan.micro_batches):
            together = np.concatenate([one[number] for one in shares])
            assert together.tolist() == alone[number].tolist()
            sizes = [len(one[number]) for one in shares]
            assert max(sizes) - min(sizes) <= 1
            # What each rank's sum is scaled by, world size / samples of the step, and DDP's average over ranks.
            scaled += sum(size * world_size / plan.step_samples(step) for size in sizes) / world_size
        assert scaled == pytest.approx(1.0)


def test_order_changes_with_epoch_and_seed_only() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return [int(index) for index in shuffled(100, seed=seed, epoch=epoch)]

    assert order(1, 1) == order(1, 1)
    assert order(1, 1) != order(1, 2)
    assert order(1, 1) != order(2, 1)


@given(sizes=st.lists(st.integers(0, 7), max_size=600))
def test_the_counter_counts_what_it_was_given(sizes: list[int]) -> None:
    counter, given_indices = IndexCounter(), np.arange(sum(sizes))
    for part in np.split(given_indices, np.cumsum(sizes)):
        counter.add(part)

    assert counter.seen.samples == sum(sizes)
    assert counter.seen.checksum == index_checksum(given_indices)


@given(samples=st.integers(1, 200), world_size=st.integers(1, 9), batch_size=st.integers(1, 50))
def test_validation_is_unpadded(samples: int, world_size: int, batch_size: int) -> None:
    shards = [
        np.concatenate(
            [np.empty(0, np.int64), *validation_shares(np.arange(samples), rank, world_size, batch_size)]
        )
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
