"""What each panel of tables shows: real answers of Prometheus through Grafana's own transformations."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from typing import Any, Literal

import pytest

from curvewatch_dashboards.words import STATES, VERDICTS
from curvewatch_service.export_curves import spread
from curvewatch_service.store import Store
from curvewatch_workers.contract import SPLITS, SplitRecord
from dashboard_support import DASHBOARDS, panel_named, panels
from panel_support import Table, frames, needs_grafana_data, transformed
from prometheus_support import needs_prometheus
from watched_support import CHOSEN, ENDED, GOOD, LONG, NAN_EPOCH, OVERFIT, Watched

pytestmark = [needs_prometheus, needs_grafana_data]
Split = Literal["train", "validation"]
NAMES = {OVERFIT: "digits", GOOD: "digits", LONG: "long", ENDED: "ended"}
COMPARED = (OVERFIT, GOOD, LONG)
OF_TABLES = [
    (name, panel["title"])
    for name, dashboard in DASHBOARDS.items()
    for panel in panels(dashboard)
    if panel.get("transformations")
]
TRENDS = [(name, title) for name, title in OF_TABLES if panel_named(name, title)["type"] == "trend"]


@pytest.fixture(scope="module")
def shown(seen: Watched) -> dict[tuple[str, str], list[Table]]:
    """The tables of each panel."""
    jobs = [
        (
            panel_named(name, title)["transformations"],
            frames(panel_named(name, title), CHOSEN[name], seen.prometheus),
        )
        for name, title in OF_TABLES
    ]
    return dict(zip(OF_TABLES, transformed(jobs), strict=True))


def _ascending(table: Table, x: str) -> bool:
    """Tell whether Grafana's Trend panel takes this field for its x axis."""
    column = table[x]
    return column.type == "number" and all(a < b for a, b in itertools.pairwise(column.values))


@pytest.mark.parametrize(("name", "title"), TRENDS)
def test_a_trend_has_one_table_whose_x_rises(
    name: str, title: str, shown: dict[tuple[str, str], list[Table]]
) -> None:
    (table,) = shown[name, title]
    x = panel_named(name, title)["options"]["xField"]
    assert _ascending(table, x)
    assert len(table[x].values) >= 30
    assert all(column.type == "number" for column in table.values())


def test_without_the_conversion_epochs_are_text_and_out_of_order(seen: Watched) -> None:
    panel = copy.deepcopy(panel_named("run", "Loss by epoch"))
    panel["transformations"] = [one for one in panel["transformations"] if one["id"] != "convertFieldType"]
    ((table,),) = transformed([(panel["transformations"], frames(panel, CHOSEN["run"], seen.prometheus))])
    assert not _ascending(table, panel["options"]["xField"])


def _loss(split: SplitRecord) -> float:
    """The mean over every sample of all ranks, from what each rank counted."""
    weight = sum(share.weight_sum for share in split.ranks)
    return sum(share.loss_sum for share in split.ranks) / weight if weight else float("nan")


def _accuracy(split: SplitRecord) -> float:
    return split.metrics["accuracy"].total / split.metrics["accuracy"].count


def _curve(store: Store, run_id: str, split: Split, of: Any) -> dict[int, float]:
    """Number of each epoch that Prometheus is given."""
    epochs = store.epochs(run_id)
    best = min(epochs, key=lambda one: _rank_by_loss(one.validation)).epoch
    given = spread([one.epoch for one in epochs], best=best)
    return {one.epoch: of(one.split(split)) for one in epochs if one.epoch in given}


def _rank_by_loss(split: SplitRecord) -> float:
    loss = _loss(split)
    return loss if loss == loss else float("inf")


def _points(table: Table, x: str, line: str) -> dict[int, float]:
    return {
        round(epoch): value
        for epoch, value in zip(table[x].values, table[line].values, strict=True)
        if value is not None
    }


def _equal(found: Mapping[int, float], expected: Mapping[int, float]) -> None:
    assert found.keys() == expected.keys()
    assert list(found.values()) == pytest.approx([expected[epoch] for epoch in found], rel=1e-12, nan_ok=True)


def test_a_run_is_drawn_by_epoch(seen: Watched, shown: dict[tuple[str, str], list[Table]]) -> None:
    (losses,), (metrics,) = shown["run", "Loss by epoch"], shown["run", "Metrics by epoch"]
    assert set(losses) == {"epoch\\split", *SPLITS}
    assert set(metrics) == {"epoch\\line", *(f"{split} accuracy" for split in SPLITS)}
    for split in SPLITS:
        _equal(_points(losses, "epoch\\split", split), _curve(seen.store, OVERFIT, split, _loss))
        _equal(
            _points(metrics, "epoch\\line", f"{split} accuracy"),
            _curve(seen.store, OVERFIT, split, _accuracy),
        )


@pytest.mark.parametrize(
    ("title", "split", "of"),
    [
        ("Validation loss", "validation", _loss),
        ("Train loss", "train", _loss),
        ("$metric on validation", "validation", _accuracy),
        ("$metric on train", "train", _accuracy),
    ],
)
def test_runs_of_any_length_and_of_one_name_are_compared_by_epoch(
    title: str, split: Split, of: Any, seen: Watched, shown: dict[tuple[str, str], list[Table]]
) -> None:
    (table,) = shown["compare", title]
    assert set(table) == {"epoch\\line", *(f"{NAMES[run_id]} {run_id}" for run_id in COMPARED)}
    for run_id in COMPARED:
        found = _points(table, "epoch\\line", f"{NAMES[run_id]} {run_id}")
        _equal(found, _curve(seen.store, run_id, split, of))
    longest = _points(table, "epoch\\line", f"long {LONG}")
    assert len(longest) <= 100
    if (split, of) == ("validation", _loss):
        assert longest[NAN_EPOCH] != longest[NAN_EPOCH], "not a number, and not left out"


def test_the_gap_is_that_of_each_epoch(seen: Watched, shown: dict[tuple[str, str], list[Table]]) -> None:
    (table,) = shown["compare", "Gap"]
    train, validation = (_curve(seen.store, GOOD, split, _loss) for split in SPLITS)
    _equal(
        _points(table, "epoch\\line", f"digits {GOOD}"),
        {epoch: validation[epoch] - train[epoch] for epoch in train},
    )


def _row(table: Table, run_id: str) -> dict[str, Any]:
    index = table["Run id"].values.index(run_id)
    return {name: column.values[index] for name, column in table.items()}


def test_results_are_those_of_each_run(seen: Watched, shown: dict[tuple[str, str], list[Table]]) -> None:
    (table,) = shown["compare", "Results"]
    assert set(table["Run id"].values) == set(COMPARED)
    for run_id in COMPARED:
        run, row = seen.store.run(run_id), _row(table, run_id)
        curve = _curve(seen.store, run_id, "validation", _loss)
        assert run.diagnosis is not None
        best = min((epoch for epoch in curve if curve[epoch] == curve[epoch]), key=curve.__getitem__)
        assert row.pop("Page").endswith(f"/runs/{run_id}")
        assert row == pytest.approx(
            {
                "Run": NAMES[run_id],
                "Run id": run_id,
                "Owner": "ada",
                "Cluster": "embedded",
                "Best validation loss": curve[best],
                "Best epoch": best,
                "Epoch": max(curve),
                "Train loss": _curve(seen.store, run_id, "train", _loss)[max(curve)],
                "Validation loss": curve[max(curve)],
                "Verdict": list(VERDICTS).index(run.diagnosis["verdict"]),
                "State": list(STATES).index("RUNNING"),
            }
        )


def test_the_fleet_has_a_row_for_each_run_and_each_alert(
    shown: dict[tuple[str, str], list[Table]],
) -> None:
    (runs,), (alerts,) = shown["fleet", "Runs"], shown["fleet", "Alerts that fire"]
    assert set(runs["Run id"].values) == set(NAMES)
    assert _row(runs, ENDED)["State"] == list(STATES).index("SUCCEEDED")
    assert {name: column.type for name, column in alerts.items()} == dict.fromkeys(
        ("Alert", "Severity", "Run", "Owner"), "string"
    )
    firing = list(zip(*(column.values for column in alerts.values()), strict=True))
    assert ("CurvewatchOverfitting", "warning", "digits", "ada") in firing
    assert ("CurvewatchWatchdog", "info", "", "") in firing


def test_facts_of_a_run_lead_to_its_page(seen: Watched, shown: dict[tuple[str, str], list[Table]]) -> None:
    (table,) = shown["run", "Facts"]
    assert list(table) == ["Run", "Run id", "Owner", "Cluster", "Task", "Page"]
    assert {name: column.values for name, column in table.items()} == {
        "Run": ["digits"],
        "Run id": [OVERFIT],
        "Owner": ["ada"],
        "Cluster": ["embedded"],
        "Task": [seen.store.run(OVERFIT).spec.code.entry],
        "Page": [f"http://127.0.0.1:8420/runs/{OVERFIT}"],
    }
    assert all(column.type == "string" for column in table.values())
