"""Every query of the dashboards on a real Prometheus that watches real runs: it finds data, and the right ones."""

from __future__ import annotations

import functools
import re
import time
from collections import Counter
from typing import Any

import pytest

from dashboard_support import DASHBOARDS, filled, legend, panel_named, panels
from prometheus_support import Sample, needs_prometheus
from watched_support import BEST_EPOCH, CHOSEN, ENDED, GOOD, LONG, OVERFIT, Watched

pytestmark = needs_prometheus
INTERVAL = "2s"


PANELS = [(name, panel) for name, dashboard in DASHBOARDS.items() for panel in panels(dashboard)]


@pytest.mark.parametrize(
    ("name", "panel"), PANELS, ids=[f"{name} {panel['title']}" for name, panel in PANELS]
)
def test_a_panel_finds_data_of_what_was_chosen_only(name: str, panel: dict[str, Any], seen: Watched) -> None:
    for target in panel["targets"]:
        query = filled(target["expr"], CHOSEN[name], interval=INTERVAL)
        # A scrape that a busy machine does not finish in time takes all series away until the next.
        samples = seen.prometheus.wait(
            f"panel {panel['title']!r} has data for {query}",
            functools.partial(seen.prometheus.query, query),
            seconds=30,
        )
        runs = {sample.labels["run_id"] for sample in samples if "run_id" in sample.labels}
        if name != "fleet":
            assert runs <= set(CHOSEN[name]["run_id"].split("|")), "another run than those chosen"
        if target.get("format") != "table":
            _assert_told_apart(panel, target["legendFormat"], samples)


def _assert_told_apart(panel: dict[str, Any], template: str, samples: list[Sample]) -> None:
    legends = [legend(template, sample.labels) for sample in samples]
    assert len(set(legends)) == len(legends), f"two lines of one name: {legends}"
    assert "" not in legends
    worded = {one["matcher"]["options"] for one in panel["fieldConfig"]["overrides"]}
    assert not worded or worded >= set(legends), "a line without its word and color"


@pytest.mark.parametrize(
    ("name", "panel"),
    [
        (name, panel)
        for name, panel in PANELS
        if panel["type"] in ("table", "trend") and name in ("run", "compare")
    ],
    ids=lambda one: one if isinstance(one, str) else one["title"],
)
def test_runs_that_have_left_metrics_are_still_drawn(name: str, panel: dict[str, Any], seen: Watched) -> None:
    """An hour later no run is on /metrics any more; the chosen time still has them."""
    for target in panel["targets"]:
        query = filled(target["expr"], {**CHOSEN[name], "ended": "3h"}, interval=INTERVAL, span="3h")
        samples = seen.prometheus.query(query, at=time.time() + 3600)
        assert {one.labels["run_id"] for one in samples if "run_id" in one.labels} <= set(
            CHOSEN[name]["run_id"].split("|")
        )
        assert samples, query


@pytest.mark.parametrize("panel", panels(DASHBOARDS["compare"]), ids=lambda panel: panel["title"])
def test_all_runs_of_an_owner_are_those_of_the_owner(panel: dict[str, Any], seen: Watched) -> None:
    """Of all runs Grafana says `.*` only, whoever's they are."""
    everything = {**CHOSEN["compare"], "run": ".*", "run_id": ".*"}
    for chosen, found in (({}, True), ({"owner": "nobody"}, False), ({"cluster": "elsewhere"}, False)):
        shown = seen.prometheus.query(filled(panel["targets"][0]["expr"], {**everything, **chosen}))
        assert bool(shown) == found, chosen


@pytest.mark.parametrize("mark", ["Restarts", "World size", "Learning rate"])
def test_what_happened_is_marked_once(mark: str, seen: Watched) -> None:
    ((moment, value),) = next(iter(_drawn(mark, seen).values()))
    assert value > 0, "Grafana draws a mark where the value is above 0"
    assert seen.since * 1000 < moment


def test_an_alert_is_marked_as_long_as_it_fires(seen: Watched) -> None:
    def overfitting() -> list[tuple[int, float]]:
        drawn = {dict(labels)["alertname"]: points for labels, points in _drawn("Alerts", seen).items()}
        return drawn.get("CurvewatchOverfitting", [])

    points = seen.prometheus.wait("it is drawn", overfitting, seconds=30)
    assert {value for _, value in points} == {1}


def test_the_best_epoch_is_marked_at_the_time_at_which_it_ended(seen: Watched) -> None:
    (points,) = _drawn("Best epoch", seen).values()
    (best,) = (one for one in seen.store.epochs(OVERFIT) if one.epoch == BEST_EPOCH)
    assert {value for _, value in points} == {best.finished_at.timestamp() * 1000}


def _drawn(mark: str, seen: Watched) -> dict[frozenset[tuple[str, str]], list[tuple[int, float]]]:
    (annotation,) = (one for one in DASHBOARDS["run"]["annotations"]["list"] if one["name"] == mark)
    end = time.time()
    step = int(INTERVAL.removesuffix("s"))
    start = seen.since
    expr = filled(annotation["expr"], CHOSEN["run"], interval=INTERVAL, span=f"{int(end - start) + 60}s")
    return seen.prometheus.drawn(expr, start=start, end=end, step=step)


@pytest.mark.parametrize("name", DASHBOARDS)
def test_the_variables_lead_to_what_there_is(name: str, seen: Watched) -> None:
    chosen: dict[str, str] = {}
    for variable in DASHBOARDS[name]["templating"]["list"]:
        if variable["type"] != "query":
            continue
        query, label = variable["query"].removeprefix("label_values(").removesuffix(")").rsplit(", ", 1)
        found = functools.partial(seen.prometheus.query, filled(query, chosen))
        samples = seen.prometheus.wait(f"{query} has data", found, seconds=30)
        values = {sample.labels[label] for sample in samples}
        wanted = CHOSEN[name][variable["name"]]
        assert any(re.fullmatch(wanted, value) for value in values), (variable["name"], values)
        chosen[variable["name"]] = wanted


def test_the_fleet_counts_each_run_under_its_verdict_of_now(seen: Watched) -> None:
    (target,) = panel_named("fleet", "Verdicts")["targets"]
    assert target["instant"], "over the whole time a verdict of before would still be counted"
    counted = {
        sample.labels["verdict"]: sample.value
        for sample in seen.prometheus.query(filled(target["expr"], CHOSEN["fleet"]))
    }
    diagnoses = [seen.store.run(run_id).diagnosis for run_id in (OVERFIT, GOOD, ENDED, LONG)]
    assert counted == Counter(said["verdict"] for said in diagnoses if said is not None)
    assert sum(counted.values()) == len(diagnoses)
