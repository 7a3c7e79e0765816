"""The Prometheus export: every series of the table, counters from 0, scrapes that one run cannot fail."""

from __future__ import annotations

import math
import shutil
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder, generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from sqlalchemy import update

from curvewatch_service.export import RunCollector
from curvewatch_service.runs import RunState
from curvewatch_service.settings import Settings
from curvewatch_service.store import Store
from curvewatch_service.tables import EpochRow, RunRow
from curvewatch_workers.contract import EpochFinished, IngestMessage
from curvewatch_workers.series import HTTP_REQUESTS, HTTP_SECONDS, RECONCILE_ERRORS, TABLE, Kind
from store_support import (
    attempt_message,
    database_url,
    epoch_message,
    new_run,
    record,
    run_with_everything,
    split,
)

PROMTOOL = shutil.which("promtool")
OF_HTTP = {HTTP_REQUESTS.name, HTTP_SECONDS.name}
"""What the app counts itself; tests of the API have them."""
ON_METRICS = {name for name, described in TABLE.items() if described.path == "/metrics"} - OF_HTTP


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(database_url(tmp_path))
    yield opened
    opened.close()


def _registry(store: Store, *, later: timedelta = timedelta(0)) -> CollectorRegistry:
    registry = CollectorRegistry()
    settings = Settings(data_dir=Path("/nowhere"), linger_seconds=600)
    registry.register(RunCollector(store, settings, clock=lambda: datetime.now(UTC) + later))
    return registry


def _value(store: Store, name: str, run_id: str = "digits-1", **labels: str) -> float | None:
    return _registry(store).get_sample_value(name, {"run_id": run_id, "run": "digits", **labels})


def _names(store: Store, *, later: timedelta = timedelta(0), run_id: str = "digits-1") -> set[str]:
    return {
        sample.name
        for family in _registry(store, later=later).collect()
        for sample in family.samples
        if sample.labels.get("run_id") == run_id
    }


def test_every_series_of_the_table_is_emitted_and_no_other(store: Store) -> None:
    run_with_everything(store)
    emitted = {sample.name for family in _registry(store).collect() for sample in family.samples}
    assert emitted == ON_METRICS


def test_each_series_has_the_labels_type_and_help_of_the_table(store: Store) -> None:
    run_with_everything(store)
    for family in _registry(store).collect():
        for sample in family.samples:
            described = TABLE[sample.name]
            fixed = {label for label in sample.labels if not label.startswith("label_")}
            assert (fixed, family.type, family.documentation) == (
                set(described.labels),
                described.kind.value,
                described.help,
            )


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian package prometheus)")
def test_promtool_finds_nothing_to_say(store: Store) -> None:
    assert PROMTOOL is not None
    run_with_everything(store)
    text = generate_latest(_registry(store))
    checked = subprocess.run(
        [PROMTOOL, "check", "metrics"], input=text, capture_output=True, check=False, timeout=60
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


def test_the_openmetrics_form_is_valid_too(store: Store) -> None:
    run_with_everything(store)
    encode, content_type = choose_encoder("application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    text = encode(_registry(store)).decode()
    names = {family.name for family in parse_openmetrics(text)}  # type: ignore[no-untyped-call]
    assert names == {name.removesuffix("_total") for name in ON_METRICS}


def test_values_are_those_of_the_latest_epoch(store: Store) -> None:
    run_with_everything(store)
    third = record(3)
    assert _value(store, "curvewatch_loss", split="train") == third.train.loss
    assert _value(store, "curvewatch_loss", split="validation") == third.validation.loss
    assert _value(store, "curvewatch_metric", split="validation", metric="accuracy") == 0.75
    assert _value(store, "curvewatch_epoch") == 3
    assert _value(store, "curvewatch_epochs_planned") == 10
    assert _value(store, "curvewatch_best_epoch") == 3
    assert _value(store, "curvewatch_best_validation_loss") == third.validation.loss
    assert _value(store, "curvewatch_epochs_since_best") == 0
    assert _value(store, "curvewatch_generalization_gap") == pytest.approx(0.1, abs=1e-12)
    assert _value(store, "curvewatch_patience_epochs") == 3
    assert _value(store, "curvewatch_samples_per_second") == 70
    assert _value(store, "curvewatch_epoch_duration_seconds") == 2
    assert _value(store, "curvewatch_last_epoch_timestamp_seconds") == third.finished_at.timestamp()
    assert _value(store, "curvewatch_shard_samples", rank="1") == 50
    assert _value(store, "curvewatch_rank_epoch_seconds", rank="1") == 1.5
    assert _value(store, "curvewatch_rank_slowness_ratio", rank="0") == 2
    assert _value(store, "curvewatch_rank_slowness_ratio", rank="1") == 1
    assert _value(store, "curvewatch_verdict_epochs") == 3
    assert _value(store, "curvewatch_gpu_memory_peak_bytes", rank="1") == 2e9
    assert _value(store, "curvewatch_gpu_seconds_total") == 3 * 2.0 * 2
    assert _value(store, "curvewatch_samples_total") == 300
    assert _value(store, "curvewatch_run_state", state="RUNNING") == 1
    assert _value(store, "curvewatch_run_state", state="QUEUED") == 0
    verdicts = [
        sample.value
        for family in _registry(store).collect()
        for sample in family.samples
        if sample.name == "curvewatch_verdict"
    ]
    assert sorted(verdicts) == [0] * 9 + [1]


def test_the_facts_of_a_run_carry_its_free_labels(store: Store) -> None:
    new_run(store, labels={"team": 'a"b\\c'})
    info = next(family for family in _registry(store).collect() if family.name == "curvewatch_run_info")
    assert [(sample.labels, sample.value) for sample in info.samples] == [
        (
            {
                "run_id": "digits-1",
                "run": "digits",
                "owner": "ada",
                "cluster": "embedded",
                "task": "digits:build",
                "page": "http://127.0.0.1:8420/runs/digits-1",
                "label_team": 'a"b\\c',
            },
            1,
        )
    ]


def test_before_the_first_epoch_counters_are_zero_and_values_are_left_out(store: Store) -> None:
    new_run(store)
    names = _names(store)
    counters = {
        name
        for name, described in TABLE.items()
        if described.kind is Kind.COUNTER and "run_id" in described.labels
    }
    assert names == counters | {
        "curvewatch_run_info",
        "curvewatch_run_state",
        "curvewatch_epoch",
        "curvewatch_epochs_planned",
        "curvewatch_patience_epochs",
    }
    for name in counters - {"curvewatch_nonfinite_samples_total", "curvewatch_replay_mismatches_total"}:
        assert _value(store, name) == 0
    for reason in ("resume_not_faithful", "replay_differs"):
        assert _value(store, "curvewatch_replay_mismatches_total", reason=reason) == 0
    for part in ("train", "validation"):
        assert _value(store, "curvewatch_nonfinite_samples_total", split=part) == 0


def test_an_empty_store_shows_all_counts_from_zero(store: Store) -> None:
    registry = _registry(store)
    for outcome in ("succeeded", "failed", "stopped", "lost"):
        assert registry.get_sample_value("curvewatch_runs_finished_total", {"outcome": outcome}) == 0
    for kind in ("attempt_started", "epoch", "event", "finished"):
        assert registry.get_sample_value("curvewatch_ingested_messages_total", {"kind": kind}) == 0
    for name in ("ingest_errors", "collector_errors", "reconcile_errors"):
        assert registry.get_sample_value(f"curvewatch_{name}_total") == 0
    assert registry.get_sample_value("curvewatch_runs", {"state": "QUEUED"}) == 0


def test_a_run_without_a_gpu_has_no_gpu_memory(store: Store) -> None:
    new_run(store)
    store.ingest("digits-1", [epoch_message(1)])
    assert "curvewatch_gpu_memory_peak_bytes" not in _names(store)
    assert _value(store, "curvewatch_gpu_seconds_total") == 0


def test_a_loss_that_is_not_finite_is_exported_as_such(store: Store) -> None:
    new_run(store)
    lost = record(1, train=split(loss=0.0, nonfinite=100), gradient_norm=math.inf)
    store.ingest("digits-1", [EpochFinished(record=lost)])
    loss = _value(store, "curvewatch_loss", split="train")
    assert loss is not None
    assert math.isnan(loss)
    assert _value(store, "curvewatch_gradient_norm") == math.inf
    assert _value(store, "curvewatch_nonfinite_samples_total", split="train") == 100
    assert _value(store, "curvewatch_verdict", verdict="not_finite") == 1
    assert b'curvewatch_loss{run="digits",run_id="digits-1",split="train"} NaN' in generate_latest(
        _registry(store)
    )


def test_a_receipt_that_is_not_exact_is_exported_as_zero(store: Store) -> None:
    new_run(store)
    store.ingest("digits-1", [EpochFinished(record=record(1, train=split(loss=1.0, seen=99)))])
    assert _value(store, "curvewatch_receipt_exact", split="train") == 0
    assert _value(store, "curvewatch_receipt_exact", split="validation") == 1


def test_a_replay_counts_once_and_a_restart_is_counted(store: Store) -> None:
    new_run(store)
    store.begin_submission("digits-1")
    story: list[IngestMessage] = [attempt_message(1), epoch_message(1), epoch_message(2)]
    replay: list[IngestMessage] = [attempt_message(2, resumed_after_epoch=1), epoch_message(2, attempt=2)]
    store.ingest("digits-1", story)
    before = _value(store, "curvewatch_samples_total")
    for _ in range(2):
        store.ingest("digits-1", replay)
    assert before == _value(store, "curvewatch_samples_total") == 200
    assert _value(store, "curvewatch_worker_restarts_total") == 1
    assert _value(store, "curvewatch_loss", split="train") == record(2, attempt=2).train.loss
    assert _value(store, "curvewatch_replay_mismatches_total", reason="resume_not_faithful") == 1
    assert _value(store, "curvewatch_replay_mismatches_total", reason="replay_differs") == 0


def test_a_run_that_has_ended_lingers_and_leaves_and_stays_counted(store: Store) -> None:
    new_run(store)
    store.stop("digits-1", actor="ada")
    assert _value(store, "curvewatch_run_state", state="STOPPED") == 1
    assert _names(store, later=timedelta(seconds=590))
    assert _names(store, later=timedelta(seconds=610)) == set()
    late = _registry(store, later=timedelta(days=1))
    assert late.get_sample_value("curvewatch_runs_finished_total", {"outcome": "stopped"}) == 1
    assert late.get_sample_value("curvewatch_runs", {"state": "STOPPED"}) == 1


def test_a_run_that_cannot_be_exported_is_counted_and_the_others_are_there(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    new_run(store)
    new_run(store, "digits-2")
    store.ingest("digits-1", [epoch_message(1)])
    with store.write() as session:
        session.execute(update(EpochRow).values(record="{broken"))
    for errors in (1, 2):
        registry = _registry(store)
        families = {family.name: family for family in registry.collect()}
        assert {sample.labels["run_id"] for sample in families["curvewatch_epoch"].samples} == {"digits-2"}
        assert families["curvewatch_collector_errors"].samples[0].value == errors
    logged = [entry for entry in caplog.records if getattr(entry, "action", "") == "export_failed"]
    assert {getattr(entry, "run_id", None) for entry in logged} == {"digits-1"}


def test_a_number_that_is_too_large_for_a_float_costs_its_own_run_only(store: Store) -> None:
    new_run(store)
    new_run(store, "digits-2")
    store.ingest("digits-1", [epoch_message(1)])
    with store.write() as session:
        row = session.get_one(RunRow, "digits-1")
        row.diagnosis = {**(row.diagnosis or {}), "best_epoch": 10**400}
    families = {family.name: family for family in _registry(store).collect()}

    assert {sample.labels["run_id"] for sample in families["curvewatch_epoch"].samples} == {"digits-2"}
    assert families["curvewatch_collector_errors"].samples[0].value == 1


def test_counts_of_this_process_are_exported(store: Store) -> None:
    store.counters.add(RECONCILE_ERRORS, amount=3)
    assert _registry(store).get_sample_value("curvewatch_reconcile_errors_total") == 3
    new_run(store)
    store.ingest("digits-1", [attempt_message(1), epoch_message(1), epoch_message(2), epoch_message(2)])
    told = _registry(store).get_sample_value("curvewatch_ingested_messages_total", {"kind": "epoch"})
    assert told == 2


def test_to_register_the_collector_reads_nothing(store: Store) -> None:
    store.close()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "shown_since", lambda _since: pytest.fail("the store was read"))
        _registry(store)


def test_every_state_has_a_place(store: Store) -> None:
    new_run(store)
    states = {
        sample.labels["state"]
        for family in _registry(store).collect()
        for sample in family.samples
        if sample.name == "curvewatch_run_state"
    }
    assert states == {state.label for state in RunState}
