"""The service with a filled store under a real Prometheus: an alert fires and ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from curvewatch_service.runs import RunState
from curvewatch_service.store import Store
from curvewatch_workers.contract import EpochFinished, MetricTotals, MonitoringSpec, SplitRecord, TrainingSpec
from prometheus_support import Prometheus, needs_prometheus, scraping
from served_support import served, services_over
from store_support import attempt_message, database_url, new_run, record, split

EPOCHS = 30
LINGER_SECONDS = 3.0
FALLING = [1.0 / epoch for epoch in range(1, EPOCHS + 1)]
U_SHAPED = [1.0 + 0.1 * abs(epoch - 10) for epoch in range(1, EPOCHS + 1)]
pytestmark = needs_prometheus


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(database_url(tmp_path))
    yield opened
    opened.close()


@pytest.fixture
def prometheus(store: Store, tmp_path: Path) -> Iterator[Prometheus]:
    services = services_over(store, tmp_path, linger_seconds=LINGER_SECONDS)
    with served(services) as target, scraping(target, tmp_path / "prometheus") as running:
        yield running


def _train(store: Store, run_id: str, validation: Sequence[float]) -> None:
    """Fill the store with a run that has trained all its epochs and still holds its workers."""
    training = TrainingSpec(epochs=EPOCHS, global_batch_size=32)
    new_run(store, run_id, training=training, monitoring=MonitoringSpec(patience_epochs=5))
    assert store.begin_submission(run_id) is not None
    records = (
        record(epoch, run_id=run_id, train=_split(train), validation=_split(rest))
        for epoch, (train, rest) in enumerate(zip(FALLING, validation, strict=True), start=1)
    )
    store.ingest(run_id, [attempt_message(1), *(EpochFinished(record=one) for one in records)])


def _split(loss: float) -> SplitRecord:
    """A split whose accuracy goes the way of its loss: one that is kept would make it overconfidence."""
    accuracy = MetricTotals(total=100 / (1 + loss), count=100)
    return split(loss=loss).model_copy(update={"metrics": {"accuracy": accuracy}})


def _end(store: Store, run_id: str) -> None:
    expected = {RunState.RUNNING}
    assert store.transition(run_id, RunState.SUCCEEDED, expected=expected, reason="done", message="done")


def _fires(prometheus: Prometheus, run_id: str) -> dict[str, Any] | None:
    alert = prometheus.alert("CurvewatchOverfitting", run_id)
    return alert if alert is not None and alert["state"] == "firing" else None


def test_overfitting_fires_for_the_run_that_overfits_and_ends_after_its_linger(
    store: Store, prometheus: Prometheus
) -> None:
    _train(store, "overfit-1", U_SHAPED)
    _train(store, "good-1", FALLING)
    alert = prometheus.wait("overfitting fires", lambda: _fires(prometheus, "overfit-1"), seconds=60)
    labels = {"run": "digits", "owner": "ada", "severity": "warning", "component": "learning"}
    assert labels.items() <= alert["labels"].items()
    assert alert["annotations"]["description"] == (
        "Run digits (overfit-1) of ada has had no new best validation loss for 20 epochs, and allows 5. "
        "Best: 1 at epoch 10. At epoch 30 of 30: validation 3, train 0.03333."
    )
    assert prometheus.rule_errors() == []
    # Its epochs ended long ago, so that both runs seem to have stalled as well.
    on_curves = [one for one in prometheus.alerts() if one["labels"]["component"] == "learning"]
    assert {one["labels"]["run_id"] for one in on_curves} == {"overfit-1"}

    _end(store, "overfit-1")
    assert _fires(prometheus, "overfit-1"), "a run that has ended still counts while it lingers"
    ended = prometheus.wait("the alert ends", lambda: not _fires(prometheus, "overfit-1"), seconds=60)
    assert ended
    assert prometheus.query('curvewatch_epoch{run_id="good-1"}'), "the other run is still there"
