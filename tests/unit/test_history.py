"""The history of a run: what an epoch adds to it, and at which time."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curvewatch_service.history import history_samples, read_history, with_times
from curvewatch_service.samples import end_millisecond
from curvewatch_service.store import Store
from curvewatch_workers.contract import EpochFinished, EpochRecord
from curvewatch_workers.series import HISTORY_PATH, TABLE
from store_support import START, database_url, new_run, record, split

OF_HISTORY = {name for name, described in TABLE.items() if described.path == HISTORY_PATH}
START_MILLISECOND = 1_767_225_600_000


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(database_url(tmp_path))
    yield opened
    opened.close()


def _ended(epoch: int, microseconds: int) -> EpochRecord:
    finished_at = START + timedelta(microseconds=microseconds)
    return record(epoch).model_copy(update={"finished_at": finished_at})


def _values(store: Store, of: EpochRecord) -> dict[tuple[str, ...], float]:
    """The samples of an epoch, by name and by the labels that are not of the run."""
    samples = history_samples(store.run("digits-1"), of, cluster="lab")
    for sample in samples:
        assert set(sample.labels) == set(sample.series.labels)
        assert (sample.labels["run_id"], sample.labels["run"]) == ("digits-1", "digits")
    found = {
        (sample.series.name, *(sample.labels[label] for label in sample.series.labels[2:])): sample.value
        for sample in samples
    }
    assert len(found) == len(samples)
    return found


def test_an_epoch_has_every_series_of_the_table_and_no_other(store: Store) -> None:
    new_run(store)
    assert {name for name, *_ in _values(store, record(1))} == OF_HISTORY
    assert all(name.startswith("curvewatch_history_") for name in OF_HISTORY)


def test_the_values_are_those_of_the_record(store: Store) -> None:
    new_run(store)
    of = record(3)
    assert _values(store, of) == {
        ("curvewatch_history_info", "ada", "lab"): 1,
        ("curvewatch_history_loss", "train"): of.train.loss,
        ("curvewatch_history_loss", "validation"): of.validation.loss,
        ("curvewatch_history_metric", "train", "accuracy"): 0.75,
        ("curvewatch_history_metric", "validation", "accuracy"): 0.75,
        ("curvewatch_history_epoch",): 3,
        ("curvewatch_history_learning_rate",): 0.1,
        ("curvewatch_history_gradient_norm",): 0.5,
        ("curvewatch_history_epoch_duration_seconds",): 2,
    }


def test_what_is_not_known_is_left_out_and_what_is_not_finite_is_there(store: Store) -> None:
    new_run(store)
    values = _values(store, record(1, train=split(loss=0.0, nonfinite=100), gradient_norm=None))
    assert ("curvewatch_history_gradient_norm",) not in values
    assert math.isnan(values["curvewatch_history_loss", "train"])
    infinite = _values(store, record(1, gradient_norm=math.inf))
    assert infinite["curvewatch_history_gradient_norm",] == math.inf


def test_a_time_is_in_whole_milliseconds_whatever_its_zone() -> None:
    assert end_millisecond(_ended(1, 345_999)) == START_MILLISECOND + 345
    elsewhere = datetime(2026, 1, 1, 5, 30, tzinfo=timezone(timedelta(hours=5, minutes=30)))
    assert end_millisecond(record(1).model_copy(update={"finished_at": elsewhere})) == START_MILLISECOND


def test_epochs_of_one_millisecond_and_of_a_clock_that_went_back_follow_each_other() -> None:
    ends = [1_000, 5_000, 5_400, 5_999, 2_000, 90_000]
    records = [_ended(epoch, end) for epoch, end in enumerate(ends, 1)]
    timed = list(with_times(records))
    assert [time - START_MILLISECOND for time, _ in timed] == [1, 5, 6, 7, 8, 90]
    assert [one for _, one in timed] == records


@given(ends=st.lists(st.integers(0, 20_000), max_size=40))
def test_no_two_epochs_have_one_time_and_none_is_put_back(ends: list[int]) -> None:
    records = [_ended(epoch, end) for epoch, end in enumerate(ends, 1)]
    timed = list(with_times(records))
    times = [time for time, _ in timed]
    assert times == sorted(set(times))
    assert len(times) == len(records)
    for before, (time, one) in zip([-1, *times], timed, strict=False):
        assert time == max(end_millisecond(one), before + 1)


def test_a_long_run_is_read_a_few_records_at_a_time(store: Store) -> None:
    """In memory is what comes out, far less than the records."""
    new_run(store)
    epochs = range(1, 1501)
    store.ingest("digits-1", [EpochFinished(record=record(epoch)) for epoch in epochs])
    tracemalloc.start()
    try:
        records = store.epochs("digits-1")
        _, whole = tracemalloc.get_traced_memory()
        del records
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        found = read_history(store, "digits-1", cluster="lab")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [len(one.values) for one in found] == [len(epochs)] * 9
    assert peak - before < whole / 4
