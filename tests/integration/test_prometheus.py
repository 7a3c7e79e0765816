"""The service with a filled store under a real Prometheus: alerts fire and end, panels find their data."""

from __future__ import annotations

import functools
import json
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from curvewatch_service.api import create_app
from curvewatch_service.auth import TokenStore
from curvewatch_service.code import CodeStore
from curvewatch_service.runs import RunState
from curvewatch_service.services import Services
from curvewatch_service.settings import Settings
from curvewatch_service.store import Store
from curvewatch_service.testing import FakeCluster
from curvewatch_workers.contract import EpochFinished, MetricTotals, MonitoringSpec, SplitRecord, TrainingSpec
from prometheus_support import RULES, Prometheus, needs_prometheus, scraping
from store_support import attempt_message, database_url, new_run, record, split

EPOCHS = 30
LINGER_SECONDS = 3.0
FALLING = [1.0 / epoch for epoch in range(1, EPOCHS + 1)]
U_SHAPED = [1.0 + 0.1 * abs(epoch - 10) for epoch in range(1, EPOCHS + 1)]
DASHBOARD = RULES.parent / "run.json"
pytestmark = needs_prometheus


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(database_url(tmp_path))
    yield opened
    opened.close()


@pytest.fixture
def prometheus(store: Store, tmp_path: Path) -> Iterator[Prometheus]:
    settings = Settings(data_dir=tmp_path / "data", linger_seconds=LINGER_SECONDS)
    services = Services(
        settings=settings,
        store=store,
        code=CodeStore(tmp_path / "code"),
        tokens=TokenStore(store),
        cluster=FakeCluster(),
    )
    with _served(services) as target, scraping(target, tmp_path / "prometheus") as running:
        yield running


@contextmanager
def _served(services: Services) -> Iterator[str]:
    """Serve the app on a free port of loopback; gives `host:port`."""
    server = uvicorn.Server(
        uvicorn.Config(create_app(services), log_config=None, timeout_graceful_shutdown=5)
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        host, port = listener.getsockname()
        yield f"{host}:{port}"
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


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
    assert {one["labels"]["run_id"] for one in prometheus.alerts()} == {"overfit-1"}

    _end(store, "overfit-1")
    assert _fires(prometheus, "overfit-1"), "a run that has ended still counts while it lingers"
    ended = prometheus.wait("the alert ends", lambda: not _fires(prometheus, "overfit-1"), seconds=60)
    assert ended
    assert prometheus.query('curvewatch_epoch{run_id="good-1"}'), "the other run is still there"


def test_every_panel_finds_data_of_the_chosen_run_only(store: Store, prometheus: Prometheus) -> None:
    _train(store, "overfit-1", U_SHAPED)
    _train(store, "good-1", FALLING)
    prometheus.wait("both are scraped", lambda: len(prometheus.query("curvewatch_epoch")) == 2, seconds=60)
    panels = json.loads(DASHBOARD.read_text())["panels"]
    targets = [(panel["title"], target) for panel in panels for target in panel.get("targets", ())]
    assert len(targets) > 20
    for title, target in targets:
        query = target["expr"].replace("$run_id", "overfit-1")
        # A scrape that a busy machine does not finish in time takes all series away until the next.
        samples = prometheus.wait(
            f"panel {title!r} has data for {query}", functools.partial(prometheus.query, query), seconds=30
        )
        assert {sample.labels["run_id"] for sample in samples} == {"overfit-1"}
        legends = {_legend(target["legendFormat"], dict(sample.labels)) for sample in samples}
        assert len(legends) == len(samples), f"panel {title!r}: two lines of one name"
        assert "" not in legends


def test_the_variables_of_the_dashboard_lead_to_the_run(store: Store, prometheus: Prometheus) -> None:
    _train(store, "overfit-1", U_SHAPED)
    prometheus.wait("the run is scraped", lambda: prometheus.query("curvewatch_run_info"), seconds=60)
    chosen: dict[str, str] = {}
    for variable in json.loads(DASHBOARD.read_text())["templating"]["list"][1:]:
        query, label = variable["query"].removeprefix("label_values(").removesuffix(")").rsplit(", ", 1)
        for name, value in chosen.items():
            query = query.replace(f'"${name}"', f'"{value}"')
        found = functools.partial(prometheus.query, query)
        (sample,) = prometheus.wait(f"{query} has data", found, seconds=30)
        chosen[variable["name"]] = sample.labels[label]
    assert chosen == {"cluster": "embedded", "run": "digits", "run_id": "overfit-1"}


def _legend(template: str, labels: dict[str, str]) -> str:
    for name, value in labels.items():
        template = template.replace(f"{{{{{name}}}}}", value)
    return template
