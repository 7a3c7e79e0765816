"""`/metrics` over HTTP: open, in the format that the scraper asks for, and each app its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from api_support import ServedApi, serve_api
from curvewatch_workers.series import CURVES_PATH, TABLE
from store_support import attempt_message, epoch_message


@pytest.fixture
def api(tmp_path: Path) -> Iterator[ServedApi]:
    with serve_api(tmp_path, cluster_name="lab") as served:
        yield served


def test_a_run_is_on_metrics_from_its_queue_to_its_epochs(api: ServedApi) -> None:
    run_id = api.submit().json()["run_id"]
    assert f'curvewatch_run_state{{run="digits",run_id="{run_id}",state="QUEUED"}} 1.0' in _scrape(api)
    api.services.store.begin_submission(run_id)
    api.tell(run_id, attempt_message(1), epoch_message(1, run_id=run_id))
    text = _scrape(api)
    assert f'curvewatch_epoch{{run="digits",run_id="{run_id}"}} 1.0' in text
    assert 'curvewatch_ingested_messages_total{kind="epoch"} 1.0' in text
    assert 'cluster="lab"' in text
    ours = {
        sample.name
        for family in parse_text(text)
        for sample in family.samples
        if sample.name.startswith("curvewatch_")
    }
    assert ours <= set(TABLE)


def test_the_curves_are_at_an_address_of_their_own(api: ServedApi) -> None:
    run_id = api.submit().json()["run_id"]
    api.tell(run_id, attempt_message(1), epoch_message(1, run_id=run_id), epoch_message(2, run_id=run_id))
    answer = api.request("GET", CURVES_PATH, token="")
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    points = {
        (sample.labels["epoch"], sample.labels["split"])
        for family in parse_text(answer.text)
        for sample in family.samples
        if sample.name == "curvewatch_epoch_loss" and sample.labels["run_id"] == run_id
    }
    assert points == {(epoch, name) for epoch in "12" for name in ("train", "validation")}
    assert "curvewatch_epoch_loss" not in _scrape(api)


def test_the_scraper_chooses_the_format(api: ServedApi) -> None:
    plain = api.request("GET", "/metrics", token="")
    assert plain.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
    answer = api.request("GET", "/metrics", token="", headers={"Accept": accept})
    assert answer.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    names = {family.name for family in parse_openmetrics(answer.text)}  # type: ignore[no-untyped-call]
    assert "curvewatch_runs_finished" in names
    assert answer.text.endswith("# EOF\n")


def test_two_services_in_one_process_do_not_mix(api: ServedApi, tmp_path: Path) -> None:
    run_id = api.submit().json()["run_id"]
    with serve_api(tmp_path / "other") as other:
        assert run_id in _scrape(api)
        assert run_id not in _scrape(other)


def _scrape(api: ServedApi) -> str:
    return api.request("GET", "/metrics", token="").text
