"""The built dashboard: complete panels, queries that Prometheus takes, and Grafana's own schema."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator  # type: ignore[import-untyped]  # comes with Ray, without stubs

from curvewatch_dashboards import build
from curvewatch_dashboards.grafana import builders
from curvewatch_dashboards.knobs import Knobs
from curvewatch_dashboards.panels import Grid, number
from curvewatch_dashboards.run_dashboard import STATES, VERDICTS
from curvewatch_service.runs import RunState
from curvewatch_workers import series
from curvewatch_workers.diagnosis import Verdict
from rule_support import PROMTOOL, ScrapedRun, needs_promtool, run_promtool

ROOT = Path(__file__).parents[2]
SCHEMAS = ROOT.parent / "shared" / "schemas" / "grafana-foundation-sdk"
needs_schemas = pytest.mark.skipif(not SCHEMAS.is_dir(), reason=f"Grafana's schemas are not at {SCHEMAS}")
DASHBOARD: dict[str, Any] = json.loads(
    (ROOT / "dashboards/curvewatch_dashboards/built/run.json").read_text(encoding="utf-8")
)
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
by_title = pytest.mark.parametrize("panel", PANELS, ids=lambda panel: str(panel["title"]))


def expressions() -> Iterator[str]:
    for panel in PANELS:
        for target in panel["targets"]:
            yield target["expr"]


def test_the_dashboard_is_the_one_that_links_point_to_and_nobody_edits() -> None:
    assert (DASHBOARD["uid"], DASHBOARD["title"]) == ("curvewatch-run", "Curvewatch / Run")
    assert DASHBOARD["editable"] is False


def test_the_variables_lead_from_the_data_source_to_one_run() -> None:
    datasource, *queries = DASHBOARD["templating"]["list"]
    assert (datasource["name"], datasource["type"], datasource["query"]) == (
        "datasource",
        "datasource",
        "prometheus",
    )
    assert [variable["name"] for variable in queries] == ["cluster", "run", "run_id"]
    for variable in queries:
        assert variable["datasource"] == DATASOURCE
        assert variable["refresh"] == 2, "runs come and go: ask again when the time range changes"
        assert series.RUN_INFO.name in variable["query"]
        assert variable["query"].endswith(f", {variable['name']})")


def test_what_must_be_seen_of_a_run_is_there() -> None:
    shown = set(re.findall(r"curvewatch_\w+", " ".join(expressions())))
    needed = (
        series.LOSS,
        series.METRIC,
        series.GENERALIZATION_GAP,
        series.LOSS_SLOPE,
        series.VERDICT,
        series.BEST_EPOCH,
        series.EPOCHS_SINCE_BEST,
        series.EPOCH,
        series.EPOCHS_PLANNED,
        series.LEARNING_RATE,
        series.GRADIENT_NORM,
        series.SAMPLES_PER_SECOND,
        series.RANK_EPOCH_SECONDS,
        series.SHARD_SAMPLES,
        series.RECEIPT_EXACT,
        series.WORKER_RESTARTS,
        series.WORLD_SIZE,
    )
    assert {one.name for one in needed} <= shown


@by_title
def test_a_panel_is_complete(panel: dict[str, Any]) -> None:
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["datasource"] == DATASOURCE
    assert panel["type"] in {"timeseries", "stat", "state-timeline"}
    assert panel["targets"]
    for target in panel["targets"]:
        assert target["datasource"] == DATASOURCE
        assert target["legendFormat"]
        assert 'run_id="$run_id"' in target["expr"], "a panel shows the chosen run only"
    references = [target["refId"] for target in panel["targets"]]
    assert len(set(references)) == len(references)


def test_no_panel_lies_on_another_and_all_are_on_the_grid() -> None:
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    assert all(place["x"] >= 0 and place["x"] + place["w"] <= 24 for place in places)
    for one, other in combinations(places, 2):
        apart_x = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        apart_y = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert apart_x or apart_y, (one, other)


def test_panels_have_ids_and_titles_of_their_own() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    titles = [panel["title"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    assert len(set(titles)) == len(titles)


def test_queries_name_only_series_and_labels_of_the_table() -> None:
    for expr in expressions():
        selectors = re.findall(r"([a-z_:]+)\{([^}]*)\}", expr)
        assert selectors, f"no selector in {expr}"
        assert {name for name, _ in selectors} == set(re.findall(r"curvewatch_\w+", expr))
        for name, matchers in selectors:
            labels = set(re.findall(r"(\w+)\s*=", matchers))
            assert labels <= set(series.TABLE[name].labels), expr


@needs_promtool
def test_prometheus_parses_every_query(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:query:{index}", "expr": expr.replace("$run_id", "r-1")}
        for index, expr in enumerate(expressions())
    ]
    (tmp_path / "queries.yaml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    assert PROMTOOL is not None
    command = [PROMTOOL, "check", "rules", "queries.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(rules)} rules found" in done.stdout


def test_every_verdict_and_every_state_has_its_word() -> None:
    assert VERDICTS.keys() == {verdict.value for verdict in Verdict}
    assert STATES.keys() == {state.label for state in RunState}


@needs_promtool
@pytest.mark.parametrize("verdict", list(Verdict))
def test_the_band_of_verdicts_shows_the_word_of_the_current_one(verdict: Verdict, tmp_path: Path) -> None:
    (panel,) = (panel for panel in PANELS if panel["title"] == "Verdict")
    (target,) = panel["targets"]
    (mapping,) = panel["fieldConfig"]["defaults"]["mappings"]
    run = ScrapedRun(train=(1.0,) * 6, validation=(1.0,) * 6, verdict=verdict.value)
    value = next(
        int(key) for key, word in mapping["options"].items() if word["text"] == VERDICTS[verdict].text
    )
    labels = ",".join(f'{name}="{label}"' for name, label in run.labels.items())
    check = {
        "expr": target["expr"].replace("$run_id", run.run_id),
        "eval_time": "180s",
        "exp_samples": [{"labels": f"{{{labels}}}", "value": value}],
    }
    run_promtool(tmp_path, (run,), 180, 15, promql_expr_test=[check])


def test_a_row_takes_only_as_many_panels_as_share_the_grid_evenly() -> None:
    panels = [number("title", "Description.") for _ in range(5)]
    with pytest.raises(ValueError, match="5 panels do not share 24 columns evenly"):
        Grid(builders.Dashboard("a dashboard")).row(4, *panels)


@needs_schemas
def test_the_dashboard_keeps_to_grafanas_schema() -> None:
    assert _problems("dashboard", DASHBOARD) == []


@needs_schemas
@by_title
def test_the_parts_of_a_panel_keep_to_the_schemas_of_their_plugins(panel: dict[str, Any]) -> None:
    plugin = panel["type"].replace("-", "")
    assert _problems(plugin, panel["options"], "Options") == []
    custom = panel["fieldConfig"]["defaults"].get("custom")
    assert custom is None or _problems(plugin, custom, "FieldConfig") == []
    for target in panel["targets"]:
        assert _problems("prometheus", target) == []


def test_the_committed_files_are_up_to_date() -> None:
    assert build.differences(build.outputs(Knobs()), ROOT) == ""


def test_a_file_that_is_out_of_date_is_shown_as_a_diff(tmp_path: Path) -> None:
    files = build.outputs(Knobs())
    build.write(files, tmp_path)
    assert build.differences(files, tmp_path) == ""
    path = tmp_path / "dashboards/curvewatch_dashboards/built/rules.yaml"
    path.write_text(path.read_text().replace("for: 15s", "for: 1h", 1))
    diff = build.differences(files, tmp_path)
    assert "-    for: 1h" in diff
    assert "+    for: 15s" in diff


def test_the_command_fails_and_changes_nothing_when_a_file_is_out_of_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(build, "ROOT", tmp_path)
    assert build.main(["--check"]) == 2
    assert "is no source tree of Curvewatch" in capsys.readouterr().err
    (tmp_path / "pyproject.toml").touch()
    assert build.main(["--check"]) == 1
    assert "run `make build`" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["pyproject.toml"]
    assert build.main([]) == 0
    assert build.main(["--check"]) == 0


def _problems(schema: str, document: object, definition: str | None = None) -> list[str]:
    loaded = json.loads((SCHEMAS / f"{schema}.jsonschema.json").read_text())
    if definition is not None:
        loaded = {"$ref": f"#/definitions/{definition}", "definitions": loaded["definitions"]}
    return [f"{error.json_path}: {error.message}" for error in Draft7Validator(loaded).iter_errors(document)]
