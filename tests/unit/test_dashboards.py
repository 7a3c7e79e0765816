"""The built dashboards: complete panels, queries that Prometheus takes, Grafana's rules and its own schema."""

from __future__ import annotations

import copy
import json
import re
import subprocess
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator  # type: ignore[import-untyped]  # comes with Ray, without stubs

from curvewatch_dashboards.grafana import builders
from curvewatch_dashboards.panels import Grid, number
from curvewatch_dashboards.words import STATES, VERDICTS
from curvewatch_service.runs import RunState
from curvewatch_workers import series
from curvewatch_workers.diagnosis import Verdict
from curvewatch_workers.series import Kind
from dashboard_support import (
    DASHBOARDS,
    DATASOURCE,
    TABLE,
    expressions,
    filled,
    lint,
    panel_named,
    panels,
)
from drawing_support import KINDS
from rule_support import ALERTS, PROMTOOL, ScrapedRun, evaluate, needs_promtool, run_promtool

ROOT = Path(__file__).parents[2]
SCHEMAS = ROOT.parent / "shared" / "schemas" / "grafana-foundation-sdk"
needs_schemas = pytest.mark.skipif(not SCHEMAS.is_dir(), reason=f"Grafana's schemas are not at {SCHEMAS}")
CHOSEN = {
    "cluster": "c",
    "owner": "ada|bob",
    "run": "digits",
    "run_id": "r-1",
    "metric": "accuracy",
    "ended": "15m",
    "Hostname": ".*",
}
PANELS = [(name, panel) for name, dashboard in DASHBOARDS.items() for panel in panels(dashboard)]
by_dashboard = pytest.mark.parametrize("dashboard", DASHBOARDS.values(), ids=DASHBOARDS.keys())
by_panel = pytest.mark.parametrize(
    ("name", "panel"), PANELS, ids=[f"{name} {panel['title']}" for name, panel in PANELS]
)


def test_each_dashboard_has_the_identity_that_links_point_to() -> None:
    assert {name: (one["uid"], one["title"]) for name, one in DASHBOARDS.items()} == {
        "run": ("curvewatch-run", "Curvewatch / Run"),
        "compare": ("curvewatch-compare", "Curvewatch / Compare"),
        "fleet": ("curvewatch-fleet", "Curvewatch / Fleet"),
    }


@by_dashboard
def test_a_dashboard_links_to_the_others_and_takes_choice_and_time_along(dashboard: dict[str, Any]) -> None:
    (link,) = dashboard["links"]
    assert (link["type"], link["includeVars"], link["keepTime"]) == ("dashboards", True, True)
    assert all(set(link["tags"]) <= set(one["tags"]) for one in DASHBOARDS.values())


@pytest.mark.parametrize(("name", "title"), [("compare", "Results"), ("fleet", "Runs")])
def test_a_run_in_a_table_leads_to_its_dashboard_and_to_its_page(name: str, title: str) -> None:
    overrides = {
        one["matcher"]["options"]: {entry["id"]: entry["value"] for entry in one["properties"]}
        for one in panel_named(name, title)["fieldConfig"]["overrides"]
    }
    (to_run,), (to_page,) = overrides["Run id"]["links"], overrides["Page"]["links"]
    assert to_run["url"].startswith(f"/d/{DASHBOARDS['run']['uid']}?")
    asked = set(re.findall(r"var-(\w+)=", to_run["url"]))
    assert asked == {"cluster", "run", "run_id"}, "what the dashboard of a run chooses one of"
    assert to_page["url"] == "${__value.raw}"


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("run", ["cluster", "owner", "run", "run_id", "Hostname"]),
        ("compare", ["cluster", "owner", "run", "run_id", "metric", "ended"]),
        ("fleet", ["cluster", "owner"]),
    ],
)
def test_the_variables_lead_from_the_data_source_to_runs(name: str, names: list[str]) -> None:
    datasource, *queries = DASHBOARDS[name]["templating"]["list"]
    assert datasource["type"] == "datasource"
    assert [variable["name"] for variable in queries] == names
    known: set[str] = set()
    for variable in queries:
        known.add(variable["name"])
        if variable["type"] != "query":
            first = variable["query"].split(",")[0]
            assert variable["current"]["value"] == variable["options"][0]["value"] == first
            continue
        asked = set(re.findall(r"\$(\w+)", variable["query"]))
        assert asked < known, "a variable reads only those before it"
        assert variable["query"].endswith(f", {variable['name']})")
        if variable["multi"]:
            assert variable["allValue"] == ".*"
    text = json.dumps(DASHBOARDS[name]["panels"])
    assert known & set(re.findall(r"\$(\w+)", text)), "the panels show what was chosen"


NEEDED = {
    "run": (
        series.EPOCH_LOSS,
        series.EPOCH_METRIC,
        series.LOSS,
        series.METRIC,
        series.GENERALIZATION_GAP,
        series.LOSS_SLOPE,
        series.VERDICT,
        series.RUN_STATE,
        series.BEST_EPOCH,
        series.EPOCHS_SINCE_BEST,
        series.EPOCH,
        series.EPOCHS_PLANNED,
        series.LEARNING_RATE,
        series.GRADIENT_NORM,
        series.SAMPLES_PER_SECOND,
        series.RANK_EPOCH_SECONDS,
        series.RANK_SLOWNESS,
        series.SHARD_SAMPLES,
        series.RECEIPT_EXACT,
        series.WORKER_RESTARTS,
        series.WORLD_SIZE,
        series.GPU_MEMORY_PEAK,
    ),
    "compare": (series.EPOCH_LOSS, series.EPOCH_METRIC, series.BEST_VALIDATION_LOSS, series.VERDICT),
    "fleet": (
        series.RUNS,
        series.RUN_STATE,
        series.VERDICT,
        series.RUNS_FINISHED,
        series.GPU_SECONDS,
        series.INGEST_ERRORS,
        series.COLLECTOR_ERRORS,
        series.COLLECTOR_DURATION,
        series.HTTP_REQUESTS,
    ),
}


@pytest.mark.parametrize("name", DASHBOARDS)
def test_what_must_be_seen_is_there(name: str) -> None:
    shown = set(re.findall(r"\w+", " ".join(expressions(DASHBOARDS[name]))))
    assert {one.name for one in NEEDED[name]} <= shown


def test_a_run_has_marks_for_what_happened_to_it() -> None:
    marks = [one["name"] for one in DASHBOARDS["run"]["annotations"]["list"]]
    assert marks == ["Best epoch", "Restarts", "World size", "Learning rate", "Alerts"]


@by_panel
def test_a_panel_is_complete(name: str, panel: dict[str, Any]) -> None:
    assert panel["description"].endswith(".")
    assert panel["type"] in {"timeseries", "stat", "state-timeline", "trend", "table", "bargauge"}
    references = [target["refId"] for target in panel["targets"]]
    assert len(set(references)) == len(references)
    for target in panel["targets"]:
        assert target["datasource"] == DATASOURCE
        assert bool(target.get("legendFormat")) != (target.get("format") == "table")
        if name == "run" and "DCGM_" not in target["expr"]:
            assert 'run_id="$run_id"' in target["expr"], "a panel shows the chosen run only"


@by_panel
def test_what_a_transformation_names_is_an_answer_of_its_queries(name: str, panel: dict[str, Any]) -> None:
    """A column that is misspelt would be an empty one."""
    steps = {step["id"]: step["options"] for step in panel.get("transformations", ())}
    several = len(panel["targets"]) > 1
    values = {f"Value #{target['refId']}" if several else "Value" for target in panel["targets"]}
    labels = (
        {
            label.strip()
            for target in panel["targets"]
            for group in re.findall(r"by \(([^)]*)\)", target["expr"])
            for label in group.split(",")
        }
        | {"line"}
        | set(series.RUN_INFO.labels)
    )
    if "filterFieldsByName" in steps:
        assert set(steps["filterFieldsByName"]["include"]["names"]) <= values | labels, name
    if "groupingToMatrix" in steps:
        matrix = steps["groupingToMatrix"]
        assert {matrix["rowField"], matrix["columnField"]} <= labels
        assert matrix["valueField"] in values
        x = f"{matrix['rowField']}\\{matrix['columnField']}"
        assert panel["options"]["xField"] == x
        assert steps["convertFieldType"]["conversions"] == [{"targetField": x, "destinationType": "number"}]
    assert (panel["type"] == "trend") == ("groupingToMatrix" in steps)


@by_panel
def test_a_panel_over_time_has_the_unit_of_its_series(name: str, panel: dict[str, Any]) -> None:
    names = {one for target in panel["targets"] for one in re.findall(r"\w+", target["expr"])}
    found = {TABLE[one.removesuffix("_bucket")].unit for one in names if one.removesuffix("_bucket") in TABLE}
    if panel["type"] == "timeseries" and found & {"s", "bytes", "percent", "mbytes", "watt", "celsius"}:
        assert {panel["fieldConfig"]["defaults"]["unit"]} == found, name


def test_gpu_hours_stay_hours() -> None:
    """Of its own unit of hours Grafana makes days from 24 on, and weeks."""
    assert panel_named("fleet", "GPU-hours")["fieldConfig"]["defaults"]["unit"] == "suffix:GPU-h"


@pytest.mark.parametrize("name", DASHBOARDS)
def test_a_dashboard_has_a_picture_in_the_documents(name: str) -> None:
    howto = (ROOT / "docs/howto/alerts-and-dashboards.md").read_text(encoding="utf-8")
    assert f"(../images/dashboards/{name}.png)" in howto
    assert (ROOT / f"docs/images/dashboards/{name}.png").stat().st_size > 50_000
    assert {panel["type"] for panel in panels(DASHBOARDS[name])} <= KINDS.keys()


@by_dashboard
def test_no_panel_lies_on_another_and_all_are_on_the_grid(dashboard: dict[str, Any]) -> None:
    places = [panel["gridPos"] for panel in dashboard["panels"]]
    assert all(place["x"] >= 0 and place["x"] + place["w"] <= 24 for place in places)
    for one, other in combinations(places, 2):
        apart_x = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        apart_y = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert apart_x or apart_y, (one, other)


@by_dashboard
def test_panels_have_ids_and_titles_of_their_own(dashboard: dict[str, Any]) -> None:
    ids = [panel["id"] for panel in dashboard["panels"]]
    titles = [panel["title"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    assert len(set(titles)) == len(titles)


@by_dashboard
def test_queries_name_only_series_and_labels_of_the_tables(dashboard: dict[str, Any]) -> None:
    for expr in expressions(dashboard):
        named = set(re.findall(r"\b(?:curvewatch|DCGM)_\w+|\bALERTS\b|\bup\b", expr))
        assert named, f"no series in {expr}"
        assert {name.removesuffix("_bucket") for name in named} <= TABLE.keys()
        for name, matchers in re.findall(r"([a-zA-Z_:]+)\{([^}]*)\}", expr):
            labels = set(re.findall(r"(\w+)\s*(?:=|!)", matchers))
            assert labels <= set(TABLE[name].labels), expr


def test_panels_and_runbook_name_alerts_and_panels_that_exist() -> None:
    alerts = {alert.name for alert in ALERTS}
    built = json.dumps(DASHBOARDS)
    assert set(re.findall(r"\bCurvewatch[A-Z]\w+", built)) <= alerts
    runbook = (ROOT / "docs/runbook.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\bCurvewatch[A-Z]\w+", runbook)) == alerts
    named = {
        title
        for words in re.findall(r'[Pp]anels? ((?:"[^"]+"(?:,| and)? ?)+)', runbook)
        for title in re.findall(r'"([^"]+)"', words)
    }
    assert len(named) > 5
    assert named <= {panel["title"] for _, panel in PANELS}


@needs_promtool
@by_dashboard
def test_prometheus_parses_every_query(dashboard: dict[str, Any], tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:query:{index}", "expr": filled(expr, CHOSEN)}
        for index, expr in enumerate(expressions(dashboard))
    ]
    (tmp_path / "queries.yaml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    assert PROMTOOL is not None
    command = [PROMTOOL, "check", "rules", "queries.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(rules)} rules found" in done.stdout


@needs_promtool
@by_dashboard
def test_a_line_is_one_whatever_address_the_service_has(dashboard: dict[str, Any], tmp_path: Path) -> None:
    """A pod that is replaced, or a second service, is another instance with the same series."""
    checks = []
    for panel in panels(dashboard):
        for target in panel["targets"]:
            names = re.findall(r"{{(\w+)}}", target.get("legendFormat", ""))
            if "instance" in names or "Hostname" in names or target.get("format") == "table":
                continue
            expr = filled(target["expr"], {**CHOSEN, "cluster": ".*", "owner": ".*"})
            several = f"count by ({', '.join(names)}) (\n{expr}\n) > 1"
            checks += [
                {"expr": query, "eval_time": "10m", "exp_samples": []}
                for query in (several, f"absent(\n{expr}\n)")
            ]
    labels = {
        "run_id": "r-1",
        "run": "digits",
        "split": "train",
        "state": "RUNNING",
        "verdict": "good_fit",
        "alertstate": "firing",
        "le": "+Inf",
    }
    inputs = []
    for one in TABLE.values():
        histogram = one.kind is Kind.HISTOGRAM
        told = {name: labels.get(name, "x") for name in (*one.labels, *(["le"] if histogram else ()))}
        for instance in ("10.0.0.1:8420", "10.0.0.2:8420"):
            shown = {"job": "curvewatch", "instance": instance, **told}
            pairs = ",".join(f"{name}={json.dumps(value)}" for name, value in shown.items())
            name = f"{one.name}_bucket" if histogram else one.name
            values = "1x60" if one.kind is Kind.GAUGE else "0+1x60"
            inputs.append({"series": f"{name}{{{pairs}}}", "values": values})
    evaluate(tmp_path, inputs, 15, promql_expr_test=checks)


@by_dashboard
def test_a_dashboard_keeps_grafanas_rules(dashboard: dict[str, Any]) -> None:
    assert lint(dashboard) == []


def _panel(dashboard: dict[str, Any], title: str) -> dict[str, Any]:
    (found,) = (panel for panel in panels(dashboard) if panel["title"] == title)
    return found


FAULTS: dict[str, Callable[[dict[str, Any]], object]] = {
    "uneditable-dashboard": lambda one: one.update(editable=True),
    "template-datasource-rule": lambda one: one["templating"]["list"].pop(0),
    "template-on-time-change-reload-rule": lambda one: one["templating"]["list"][1].update(refresh=1),
    "template-label-promql-rule": lambda one: one["templating"]["list"][1].update(
        query="label_values(cluster)"
    ),
    "panel-title-description-rule": lambda one: _panel(one, "Errors").pop("description"),
    "panel-datasource-rule": lambda one: _panel(one, "Errors").update(datasource={"uid": "abc"}),
    "panel-units-rule": lambda one: _panel(one, "Errors")["fieldConfig"]["defaults"].pop("unit"),
    "panel-no-targets-rule": lambda one: _panel(one, "Errors").update(targets=[]),
    "target-rate-interval-rule": lambda one: _panel(one, "Errors")["targets"][0].update(
        expr="rate(curvewatch_ingest_errors_total[5m])"
    ),
    "target-counter-agg-rule": lambda one: _panel(one, "Errors")["targets"][0].update(
        expr="curvewatch_ingest_errors_total"
    ),
}


@pytest.mark.parametrize("rule", FAULTS)
def test_a_fault_that_is_put_in_breaks_its_rule(rule: str) -> None:
    dashboard = copy.deepcopy(DASHBOARDS["fleet"])
    FAULTS[rule](dashboard)
    assert [problem.split(":")[0] for problem in lint(dashboard)] == [rule]


def test_every_verdict_and_every_state_has_its_word() -> None:
    assert VERDICTS.keys() == {verdict.value for verdict in Verdict}
    assert STATES.keys() == {state.label for state in RunState}


def test_what_is_the_same_has_the_same_word_and_color_on_every_panel() -> None:
    shown: dict[str, set[tuple[str, str]]] = {}
    for _, panel in PANELS:
        for override in panel["fieldConfig"]["overrides"]:
            told = {one["id"]: one["value"] for one in override["properties"]}
            if "color" in told:
                word = (told["displayName"], told["color"]["fixedColor"])
                shown.setdefault(override["matcher"]["options"], set()).add(word)
    assert [name for name, words in shown.items() if len(words) > 1] == []
    outcomes = {state.label.lower() for state in RunState if state.terminal}
    assert shown.keys() >= {"train", "validation", *VERDICTS, *STATES, *outcomes}
    assert shown["train"] != shown["validation"]
    for words in (VERDICTS, STATES):
        assert len({word.color for word in words.values()}) == len(words)


@needs_promtool
@pytest.mark.parametrize("verdict", list(Verdict))
def test_the_band_of_verdicts_shows_the_word_of_the_current_one(verdict: Verdict, tmp_path: Path) -> None:
    panel = panel_named("run", "Verdict")
    (target,) = panel["targets"]
    (mapping,) = panel["fieldConfig"]["defaults"]["mappings"]
    run = ScrapedRun(train=(1.0,) * 6, validation=(1.0,) * 6, verdict=verdict.value)
    value = next(
        int(key) for key, word in mapping["options"].items() if word["text"] == VERDICTS[verdict].text
    )
    check = {
        "expr": target["expr"].replace("$run_id", run.run_id),
        "eval_time": "180s",
        "exp_samples": [{"labels": f'{{run_id="{run.run_id}"}}', "value": value}],
    }
    run_promtool(tmp_path, (run,), 180, 15, promql_expr_test=[check])


def test_a_row_takes_only_as_many_panels_as_share_the_grid_evenly() -> None:
    five = [number("title", "Description.") for _ in range(5)]
    with pytest.raises(ValueError, match="5 panels do not share 24 columns evenly"):
        Grid(builders.Dashboard("a dashboard")).row(4, *five)


@needs_schemas
@by_dashboard
def test_a_dashboard_keeps_to_grafanas_schema(dashboard: dict[str, Any]) -> None:
    assert _problems("dashboard", dashboard) == []


@needs_schemas
@by_panel
def test_the_parts_of_a_panel_keep_to_the_schemas_of_their_plugins(name: str, panel: dict[str, Any]) -> None:
    plugin = panel["type"].replace("-", "")
    assert _problems(plugin, panel["options"], "Options") == [], name
    custom = panel["fieldConfig"]["defaults"].get("custom")
    assert custom is None or _problems(plugin, custom, "FieldConfig") == []
    for target in panel["targets"]:
        assert _problems("prometheus", target) == []


def _problems(schema: str, document: object, definition: str | None = None) -> list[str]:
    loaded = json.loads((SCHEMAS / f"{schema}.jsonschema.json").read_text())
    # Of any type in Grafana's own model; the generator of the schemas writes that as an object.
    for name, field in (("MatcherConfig", "options"), ("DynamicConfigValue", "value")):
        if name in loaded["definitions"]:
            loaded["definitions"][name]["properties"][field] = {}
    if definition is not None:
        loaded = {"$ref": f"#/definitions/{definition}", "definitions": loaded["definitions"]}
    return [f"{error.json_path}: {error.message}" for error in Draft7Validator(loaded).iter_errors(document)]
