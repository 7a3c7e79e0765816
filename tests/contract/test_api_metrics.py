"""`/metrics` over HTTP: open, in the format that the scraper asks for, and each app its own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from api_support import ServedApi, serve_api
from curvewatch_workers.series import CURVES_PATH, HTTP_REQUESTS, HTTP_SECONDS, TABLE
from store_support import attempt_message, epoch_message, run_with_everything

_OURS = re.compile(r"curvewatch_")


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


def test_the_service_emits_the_series_of_the_table_and_no_other_of_its_name(api: ServedApi) -> None:
    run_with_everything(api.services.store)
    # What an answer adds is counted once it is given.
    _scrape(api)
    families = {family.name: family for family in parse_text(_scrape(api)) if _OURS.match(family.name)}
    described = {one.name.removesuffix("_total"): one for one in TABLE.values() if one.path == "/metrics"}
    assert families.keys() == described.keys()
    for name, family in families.items():
        assert (family.type, family.documentation) == (described[name].kind.value, described[name].help)
        for sample in family.samples:
            fixed = {label for label in sample.labels if not label.startswith("label_")} - {"le"}
            assert fixed == set(described[name].labels), sample


def test_answers_are_counted_by_route_and_status_and_timed(api: ServedApi) -> None:
    for path in ("/api/v1/runs/nobody", "/api/v1/runs/nobody-else", "/no/such/page", "/nor/this"):
        assert api.request("GET", path).status_code == 404
    api.request("BREW", "/healthz")
    counted = {
        (sample.labels["method"], sample.labels["route"], sample.labels["status"]): sample.value
        for family in parse_text(_scrape(api))
        for sample in family.samples
        if sample.name == HTTP_REQUESTS.name
    }
    assert counted == {
        ("GET", "/api/v1/runs/{run_id}", "404"): 2,
        ("GET", "none", "404"): 2,
        ("other", "/healthz", "405"): 1,
    }
    timed = {
        sample.name.removeprefix(HTTP_SECONDS.name): sample.value
        for family in parse_text(_scrape(api))
        for sample in family.samples
        if sample.labels.get("route") == "/api/v1/runs/{run_id}" and "le" not in sample.labels
    }
    assert timed["_count"] == 2
    assert 0 < timed["_sum"] < 20


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


def test_a_scraper_that_can_unpack_gets_less(api: ServedApi) -> None:
    run_id = api.submit().json()["run_id"]
    packed = api.request("GET", "/metrics", token="", headers={"Accept-Encoding": "gzip"})
    assert packed.headers["Content-Encoding"] == "gzip"
    assert "Accept-Encoding" in packed.headers["Vary"]
    assert run_id in packed.text
    plain = api.request("GET", "/metrics", token="", headers={"Accept-Encoding": "identity"})
    assert "Content-Encoding" not in plain.headers
    assert run_id in plain.text
    assert int(packed.headers["Content-Length"]) < len(plain.content) / 3


OPENMETRICS, PLAIN = "application/openmetrics-text; version=1.0.0", "text/plain; version=0.0.4"


@pytest.mark.parametrize(
    ("accept", "format_of_answer"),
    [
        ("", PLAIN),
        ("*/*", PLAIN),
        ("text/html", PLAIN),
        (";;,=", PLAIN),
        ("application/openmetrics-text", OPENMETRICS),
        ("Application/OpenMetrics-Text;Version=1.0.0", OPENMETRICS),
        # Prometheus 2 and 3, and Prometheus 3 that is told to prefer plain text.
        (
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;"
            "version=0.0.4;q=0.5,*/*;q=0.1",
            OPENMETRICS,
        ),
        (
            "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.7,"
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,text/plain;version=0.0.4;q=0.2",
            OPENMETRICS,
        ),
        ("text/plain;version=0.0.4;q=0.6,application/openmetrics-text;version=1.0.0;q=0.5,*/*;q=0.1", PLAIN),
        ("application/openmetrics-text;q=0, text/plain", PLAIN),
        ("text/plain;q=0.1, application/openmetrics-text;q=0.9", OPENMETRICS),
        # What is not spoken here is passed over.
        ("application/openmetrics-text;version=abc", PLAIN),
        (
            "application/openmetrics-text;version=9.0.0,application/openmetrics-text;version=1.0.0;q=0.5",
            OPENMETRICS,
        ),
        ("application/openmetrics-text;q=much", PLAIN),
    ],
)
def test_a_scraper_gets_the_format_that_it_likes_best(
    api: ServedApi, accept: str, format_of_answer: str
) -> None:
    for path in ("/metrics", CURVES_PATH):
        answer = api.request("GET", path, token="", headers={"Accept": accept})
        assert answer.status_code == 200
        assert answer.headers["Content-Type"].startswith(format_of_answer)
        assert answer.text.endswith("# EOF\n") == (format_of_answer is OPENMETRICS)


def test_two_services_in_one_process_do_not_mix(api: ServedApi, tmp_path: Path) -> None:
    run_id = api.submit().json()["run_id"]
    with serve_api(tmp_path / "other") as other:
        assert run_id in _scrape(api)
        assert run_id not in _scrape(other)


def _scrape(api: ServedApi) -> str:
    return api.request("GET", "/metrics", token="").text
