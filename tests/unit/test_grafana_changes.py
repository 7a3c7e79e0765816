"""What differs between two documents."""

from __future__ import annotations

from curvewatch_service.grafana.changes import changes


def lines(before: object, after: object) -> list[str]:
    return [change.line() for change in changes(before, after)]


def test_new_gone_and_other_values_are_named_by_their_place() -> None:
    before = {"refresh": "10s", "time": {"from": "now-3h", "to": "now"}, "old": [1]}
    after = {"refresh": "10s", "time": {"from": "now-1h", "to": "now"}, "new": True}
    assert lines(before, after) == ["+ new: true", "- old: [1]", '~ time.from: "now-3h" -> "now-1h"']


def test_a_null_is_as_good_as_nothing() -> None:
    assert lines({"a": None, "b": 1}, {"b": 1, "c": None}) == []


def test_panels_are_compared_by_title_and_queries_by_letter() -> None:
    before = {"panels": [{"title": "Loss", "targets": [{"refId": "A", "expr": "x"}]}, {"title": "Gone"}]}
    after = {"panels": [{"title": "New"}, {"title": "Loss", "targets": [{"refId": "A", "expr": "y"}]}]}
    assert lines(before, after) == [
        '~ panels[Loss].targets[A].expr: "x" -> "y"',
        '- panels[Gone]: {"title": "Gone"}',
        '+ panels[New]: {"title": "New"}',
    ]


def test_another_order_is_a_difference() -> None:
    cluster, run = {"name": "cluster"}, {"name": "run"}
    assert lines([cluster, run], [run, cluster]) == ['~  (order): ["cluster", "run"] -> ["run", "cluster"]']


def test_elements_without_names_are_compared_by_their_place() -> None:
    assert lines({"steps": [{"value": 1}, {"value": 2}]}, {"steps": [{"value": 1}]}) == [
        '- steps[1]: {"value": 2}'
    ]
    twice = {"list": [{"title": "Same"}, {"title": "Same", "x": 1}]}
    assert lines(twice, {"list": [{"title": "Same"}, {"title": "Same", "x": 2}]}) == ["~ list[1].x: 1 -> 2"]


def test_long_values_are_cut_for_people() -> None:
    (line,) = lines({}, {"expr": "x" * 500})
    assert len(line) < 120
    assert line.endswith("…")


def test_what_grafana_fills_in_is_told_apart() -> None:
    before = {
        "links": [],
        "preload": False,
        "panels": [{"title": "Loss", "pluginVersion": "13.0.1"}],
        "x": True,
    }
    after = {"panels": [{"title": "Loss"}], "y": False}
    assert [change.path for change in changes(before, after) if not change.is_filling] == ["x", "y"]
