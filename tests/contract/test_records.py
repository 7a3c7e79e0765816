from __future__ import annotations

import json
import math

import pytest

from curvewatch_workers.contract import EpochRecord, IngestRequest, RankShare, SplitRecord
from record_support import make_record, make_split


def test_records_round_trip_through_json_even_when_not_finite() -> None:
    record = make_record(validation_loss=math.nan).model_copy(update={"gradient_norm": math.inf})

    again = EpochRecord.model_validate_json(record.model_dump_json())

    assert again == record
    assert math.isnan(again.validation.loss)
    assert again.gradient_norm == math.inf


def test_sums_must_be_finite() -> None:
    with pytest.raises(ValueError, match="finite"):
        RankShare(loss_sum=math.nan, weight_sum=1.0, samples=1)


def test_one_entry_for_each_rank_is_required() -> None:
    data = make_record(world_size=2).model_dump()
    data["rank_seconds"] = (1.0,)
    with pytest.raises(ValueError, match="rank_seconds has 1 entries for a world size of 2"):
        EpochRecord.model_validate(data)


def changed(**changes: object) -> SplitRecord:
    return SplitRecord.model_validate({**make_split(0.5, world_size=2).model_dump(), **changes})


def test_a_receipt_is_exact_only_if_each_sample_was_counted_once() -> None:
    assert changed().exact
    assert not changed(samples_seen=101).exact  # one too many
    assert not changed(samples_seen=99).exact
    assert not changed(checksum_seen=8).exact  # as many as there should be, but not the same ones
    assert not changed(samples_expected=101).exact
    assert not changed(reported_by="keras").exact  # a mean, of nobody knows which samples


def test_spread_over_ranks_leaves_out_ranks_without_samples() -> None:
    ranks = (
        RankShare(loss_sum=10.0, weight_sum=10.0, samples=10),
        RankShare(loss_sum=15.0, weight_sum=10.0, samples=10),
        RankShare(loss_sum=0.0, weight_sum=0.0, samples=0),
    )

    assert changed(ranks=ranks).rank_loss_spread == pytest.approx(0.5)


def test_standard_error_of_one_sample_is_unknown() -> None:
    assert math.isnan(make_split(0.5, samples=1).standard_error)


def test_standard_error_of_a_loss_whose_square_overflows_is_unknown() -> None:
    huge = changed(loss_sum=5e201, weight_sum=100.0, loss_square_sum=1e308)

    assert huge.loss == pytest.approx(5e199)
    assert math.isnan(huge.standard_error)


def test_an_ingest_may_be_empty_and_unknown_fields_are_refused() -> None:
    assert IngestRequest.model_validate_json('{"messages": []}').messages == ()
    with pytest.raises(ValueError, match="Extra inputs"):
        IngestRequest.model_validate_json('{"messages": [], "more": 1}')


@pytest.mark.parametrize("count", [2**53 + 1, 10**400])
@pytest.mark.parametrize(
    "place",
    [("train", "samples_seen"), ("validation", "nonfinite_samples"), ("gpu_memory_peak_bytes", 0)],
)
def test_a_number_that_no_export_can_hold_is_refused(place: tuple[str, str | int], count: int) -> None:
    fields = make_record().model_copy(update={"gpu_memory_peak_bytes": (0,)}).model_dump(mode="json")
    fields[place[0]][place[1]] = count

    with pytest.raises(ValueError, match="less than or equal to 9007199254740992") as refused:
        EpochRecord.model_validate_json(json.dumps(fields))
    assert str(place[-1]) in str(refused.value)


def test_the_largest_number_is_taken() -> None:
    fields = make_record().model_dump(mode="json")
    fields["gpu_memory_peak_bytes"] = [2**53]

    assert EpochRecord.model_validate_json(json.dumps(fields)).gpu_memory_peak_bytes == (2**53,)
