"""The curves for Prometheus: every epoch of a short run, a bounded and steady choice of a long one."""

from __future__ import annotations

import math
import shutil
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from sqlalchemy import update

from curvewatch_service.export_curves import CurveCollector, spread
from curvewatch_service.settings import Settings
from curvewatch_service.store import Store
from curvewatch_service.tables import EpochRow
from curvewatch_workers.contract import EpochFinished
from curvewatch_workers.series import COLLECTOR_ERRORS, CURVES_PATH, TABLE
from store_support import attempt_message, database_url, epoch_message, new_run, record, split

PROMTOOL = shutil.which("promtool")
ON_CURVES = {name: described for name, described in TABLE.items() if described.path == CURVES_PATH}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(database_url(tmp_path))
    yield opened
    opened.close()


def _registry(store: Store, *, later: timedelta = timedelta(0)) -> CollectorRegistry:
    registry = CollectorRegistry()
    settings = Settings(data_dir=Path("/nowhere"), linger_seconds=600)
    registry.register(CurveCollector(store, settings, clock=lambda: datetime.now(UTC) + later))
    return registry


def _value(store: Store, name: str, **labels: str) -> float | None:
    return _registry(store).get_sample_value(name, {"run_id": "digits-1", "run": "digits", **labels})


def _epochs(store: Store, split_name: str, *, run_id: str = "digits-1") -> list[int]:
    return [
        int(sample.labels["epoch"])
        for family in _registry(store).collect()
        for sample in family.samples
        if (sample.name, sample.labels["split"]) == ("curvewatch_epoch_loss", split_name)
        and sample.labels["run_id"] == run_id
    ]


def test_every_epoch_is_there_with_the_labels_type_and_help_of_the_table(store: Store) -> None:
    new_run(store)
    store.ingest("digits-1", [epoch_message(epoch) for epoch in (1, 2, 3)])
    families = list(_registry(store).collect())
    assert {family.name for family in families} == set(ON_CURVES)
    for family in families:
        described = ON_CURVES[family.name]
        assert (family.type, family.documentation) == (described.kind.value, described.help)
        assert all(set(sample.labels) == set(described.labels) for sample in family.samples)
    second = record(2)
    assert _value(store, "curvewatch_epoch_loss", split="train", epoch="2") == second.train.loss
    assert _value(store, "curvewatch_epoch_loss", split="validation", epoch="2") == second.validation.loss
    assert _value(store, "curvewatch_epoch_metric", split="validation", epoch="3", metric="accuracy") == 0.75


def test_of_a_replayed_epoch_the_highest_attempt_counts(store: Store) -> None:
    new_run(store)
    store.ingest("digits-1", [attempt_message(1), epoch_message(1), epoch_message(2)])
    store.ingest("digits-1", [attempt_message(2, resumed_after_epoch=1), epoch_message(2, attempt=2)])
    assert _epochs(store, "train") == [1, 2]
    assert _value(store, "curvewatch_epoch_loss", split="train", epoch="2") == record(2, attempt=2).train.loss


def test_a_loss_that_is_not_finite_is_exported_as_such(store: Store) -> None:
    new_run(store)
    lost = record(1, train=split(loss=0.0, nonfinite=100))
    store.ingest("digits-1", [EpochFinished(record=lost)])
    loss = _value(store, "curvewatch_epoch_loss", split="train", epoch="1")
    assert loss is not None
    assert math.isnan(loss)


def test_a_long_curve_has_a_hundred_points_with_the_first_the_last_and_the_best(store: Store) -> None:
    new_run(store)
    best = 333
    messages = [
        EpochFinished(record=record(epoch, validation=split(loss=0.1 if epoch == best else 1.0)))
        for epoch in range(1, 702)
    ]
    store.ingest("digits-1", messages)
    for name in ("train", "validation"):
        shown = _epochs(store, name)
        assert 50 < len(shown) <= 100
        assert {1, best, 701} <= set(shown)
        assert shown == sorted(shown)


def test_a_run_lingers_and_leaves_as_it_does_on_metrics(store: Store) -> None:
    new_run(store)
    store.ingest("digits-1", [epoch_message(1)])
    store.stop("digits-1", actor="ada")
    assert list(_registry(store, later=timedelta(seconds=590)).collect())
    assert list(_registry(store, later=timedelta(seconds=610)).collect()) == []


def test_a_run_that_cannot_be_exported_is_counted_and_the_others_are_there(store: Store) -> None:
    for run_id in ("digits-1", "digits-2"):
        new_run(store, run_id)
        store.ingest(run_id, [epoch_message(1, run_id=run_id)])
    with store.write() as session:
        session.execute(update(EpochRow).where(EpochRow.run_id == "digits-1").values(record="{broken"))
    assert _epochs(store, "train", run_id="digits-2") == [1]
    assert store.counters.value(COLLECTOR_ERRORS) == 1


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian package prometheus)")
def test_promtool_finds_nothing_to_say(store: Store) -> None:
    assert PROMTOOL is not None
    new_run(store)
    store.ingest("digits-1", [epoch_message(epoch) for epoch in (1, 2)])
    text = generate_latest(_registry(store))
    assert text.count(b"curvewatch_epoch_loss{") == 4
    checked = subprocess.run(
        [PROMTOOL, "check", "metrics"], input=text, capture_output=True, check=False, timeout=60
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


@given(
    epochs=st.lists(st.integers(1, 2**53), unique=True, max_size=400).map(sorted),
    best=st.none() | st.integers(1, 400),
    most=st.integers(3, 100),
)
def test_a_choice_is_bounded_and_keeps_what_matters(epochs: list[int], best: int | None, most: int) -> None:
    chosen = spread(epochs, best=best, most=most)
    assert len(chosen) <= most
    assert chosen == sorted(set(chosen) & set(epochs))
    assert {*epochs[:1], *epochs[-1:], *({best} & set(epochs))} <= set(chosen)
    if len(epochs) <= most:
        assert chosen == epochs


def test_points_stay_where_they_are_while_a_curve_grows() -> None:
    """Each that moved would be a new time series: besides the last, a point goes only when the step doubles."""
    gone = [
        length
        for length in range(1, 2000)
        if set(spread(range(1, length + 1), best=7)) - {length} - set(spread(range(1, length + 2), best=7))
    ]
    assert gone == [100, 196, 392, 784, 1568]
