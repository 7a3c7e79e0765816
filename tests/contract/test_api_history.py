"""The history of a run over HTTP: its visible curve, whole, as OpenMetrics text."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse
from sqlalchemy import update

from api_support import ServedApi, serve_api
from curvewatch_service.tables import EpochRow
from curvewatch_workers.contract import EpochFinished
from curvewatch_workers.series import HISTORY_PATH, TABLE
from store_support import attempt_message, epoch_message, new_run, record

OF_HISTORY = {name: described for name, described in TABLE.items() if described.path == HISTORY_PATH}


@pytest.fixture
def api(tmp_path: Path) -> Iterator[ServedApi]:
    with serve_api(tmp_path, cluster_name="lab") as served:
        new_run(served.services.store)
        yield served


def _path(run_id: str = "digits-1") -> str:
    return HISTORY_PATH.format(run_id=run_id)


def _losses(text: str) -> list[tuple[float, float]]:
    """Time and train loss of each epoch."""
    families = {family.name: family for family in parse(text)}  # type: ignore[no-untyped-call]
    return [
        (float(sample.timestamp), sample.value)
        for sample in families["curvewatch_history_loss"].samples
        if sample.labels["split"] == "train"
    ]


def test_every_series_of_the_table_is_there_and_no_other(api: ServedApi) -> None:
    api.services.store.ingest("digits-1", [attempt_message(1), epoch_message(1), epoch_message(2)])
    answer = api.request("GET", _path())
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    families = {family.name: family for family in parse(answer.text)}  # type: ignore[no-untyped-call]
    assert families.keys() == OF_HISTORY.keys()
    samples = 0
    for name, family in families.items():
        described = OF_HISTORY[name]
        assert (family.type, family.documentation) == (described.kind.value, described.help)
        for sample in family.samples:
            samples += 1
            assert set(sample.labels) == set(described.labels)
    assert answer.headers["Curvewatch-Samples"] == str(samples)
    (info, _) = families["curvewatch_history_info"].samples
    assert info.labels == {"run_id": "digits-1", "run": "digits", "owner": "ada", "cluster": "lab"}


def test_of_a_replayed_epoch_the_highest_attempt_counts_and_more_are_read_than_at_once(
    api: ServedApi,
) -> None:
    store, epochs = api.services.store, range(1, 502)
    store.ingest("digits-1", [attempt_message(1), *(epoch_message(epoch) for epoch in epochs)])
    again = record(501, attempt=2).model_copy(
        update={"finished_at": record(501).finished_at + timedelta(seconds=100)}
    )
    store.ingest("digits-1", [attempt_message(2, resumed_after_epoch=500), EpochFinished(record=again)])
    expected = [*(record(epoch) for epoch in epochs[:-1]), again]
    assert _losses(api.request("GET", _path()).text) == [
        (one.finished_at.timestamp(), one.train.loss) for one in expected
    ]


def test_a_run_without_an_epoch_has_an_empty_history(api: ServedApi) -> None:
    answer = api.request("GET", _path())
    assert (answer.text, answer.headers["Curvewatch-Samples"]) == ("# EOF\n", "0")


def test_an_unknown_run_is_told(api: ServedApi) -> None:
    answer = api.request("GET", _path("nobody"))
    assert answer.status_code == 404
    assert "there is no run 'nobody'" in answer.json()["detail"]


def test_a_record_that_cannot_be_read_is_an_error_and_not_half_an_answer(api: ServedApi) -> None:
    api.services.store.ingest("digits-1", [attempt_message(1), epoch_message(1), epoch_message(2)])
    with api.services.store.write() as session:
        session.execute(update(EpochRow).where(EpochRow.epoch == 2).values(record="{broken"))
    answer = api.request("GET", _path())
    assert answer.status_code == 500
    assert answer.headers["Content-Type"] == "application/problem+json"


def test_no_scrape_shows_the_history(api: ServedApi) -> None:
    api.services.store.ingest("digits-1", [attempt_message(1), epoch_message(1)])
    for path in ("/metrics", "/metrics/curves"):
        text = api.request("GET", path).text
        assert "digits-1" in text
        assert "curvewatch_history" not in text
