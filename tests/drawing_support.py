"""Draws the panels of a dashboard from Prometheus' real answers, for people who want to see what they get.

A drawing, not Grafana: layout, titles, queries, transformations, words and colors are the dashboard's own, the rest is
Plotly's.
"""

from __future__ import annotations

import datetime as dt
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from dashboard_support import filled, legend
from panel_support import Table, frames, transformed
from prometheus_support import Prometheus

COLUMN_PIXELS, ROW_PIXELS = 66, 34
WIDTH = 24 * COLUMN_PIXELS
_COLORS = {
    "green": "#73bf69",
    "red": "#f2495c",
    "dark-red": "#c4162a",
    "orange": "#ff9830",
    "light-orange": "#ffb357",
    "yellow": "#fade2a",
    "blue": "#5794f2",
    "light-blue": "#8ab8ff",
    "purple": "#b877d9",
    "text": "#9fa7b3",
}
_LAYOUT: dict[str, Any] = {
    "template": "plotly_dark",
    "paper_bgcolor": "#181b1f",
    "plot_bgcolor": "#181b1f",
    "font": {"size": 11, "color": "#ccccdc"},
    "margin": {"l": 45, "r": 12, "t": 6, "b": 28},
    "legend": {"orientation": "h", "y": -0.18, "font": {"size": 10}},
    "colorway": ["#73bf69", "#f2cc0c", "#8ab8ff", "#ff780a", "#f2495c", "#5794f2", "#b877d9", "#705da0"],
}
_UNITS = {
    "s": " s",
    "percent": " %",
    "celsius": " °C",
    "watt": " W",
    "suffix:GPU-h": " GPU-h",
    "cps": "/s",
}
_GIBIBYTE = {"bytes": 2**30, "mbytes": 2**10}
"""How many of a unit of memory make a GiB, as which Grafana would show them here."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What panels are drawn from."""

    prometheus: Prometheus
    chosen: Mapping[str, str]
    since: float
    """First moment that is drawn, in Unix seconds; the last one is now."""
    step: int = 1


Lines = dict[str, list[tuple[float, float]]]
"""Time in Unix seconds and value of each point, by legend."""


def drawn_panel(panel: Mapping[str, Any], asked: Asked) -> go.Figure:
    """Draw one panel.

    Raises:
        KeyError: There is no way to draw panels of its type.
    """
    return KINDS[panel["type"]](panel, asked).update_layout(**_LAYOUT)


def drawn_dashboard(dashboard: Mapping[str, Any], asked: Asked) -> str:
    """Draw all panels at their places, as a page of HTML that needs nothing else."""
    parts = []
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        box = (
            f"left:{place['x'] * COLUMN_PIXELS}px;top:{place['y'] * ROW_PIXELS}px;"
            f"width:{place['w'] * COLUMN_PIXELS - 8}px;height:{place['h'] * ROW_PIXELS - 8}px"
        )
        if panel["type"] == "row":
            parts.append(f'<div class="row" style="{box}">{panel["title"]}</div>')
            continue
        figure = drawn_panel(panel, asked)
        height = place["h"] * ROW_PIXELS - 34
        figure.update_layout(width=place["w"] * COLUMN_PIXELS - 12, height=height)
        title = filled(panel["title"], asked.chosen)
        chart = figure.to_html(full_html=False, include_plotlyjs=False, config={"staticPlot": True})
        parts.append(f'<div class="panel" style="{box}"><h2>{title}</h2>{chart}</div>')
    style = (
        "body{margin:8px;background:#111217;color:#ccccdc;font-family:sans-serif}"
        ".panel,.row{position:absolute;box-sizing:border-box;overflow:hidden}"
        ".panel{background:#181b1f;border:1px solid #2c3235;border-radius:3px}"
        ".row{font-weight:bold;padding:6px 2px}h2{font-size:13px;margin:5px 9px 0}"
    )
    return (
        f"<!doctype html><meta charset='utf-8'><style>{style}</style><script>{get_plotlyjs()}</script>"
        f"<div style='position:relative'>{''.join(parts)}</div>"
    )


def _lines(panel: Mapping[str, Any], asked: Asked) -> Lines:
    found: Lines = {}
    end = time.time()
    for target in panel["targets"]:
        span = f"{math.ceil(end - asked.since)}s"
        expr = filled(target["expr"], asked.chosen, interval=f"{asked.step}s", span=span)
        answer = asked.prometheus.drawn(expr, start=asked.since, end=end, step=asked.step)
        for labels, points in answer.items():
            found[legend(target["legendFormat"], dict(labels))] = [
                (moment / 1000, value) for moment, value in points
            ]
    return dict(sorted(found.items()))


def _times(points: list[tuple[float, float]]) -> list[dt.datetime]:
    return [dt.datetime.fromtimestamp(moment, dt.UTC) for moment, _ in points]


def _shown(panel: Mapping[str, Any], name: str) -> tuple[str, str | None]:
    """Return the word and the color of a line or bar; none where the palette's next one is taken."""
    for override in panel["fieldConfig"]["overrides"]:
        if override["matcher"] == {"id": "byName", "options": name}:
            told = {entry["id"]: entry["value"] for entry in override["properties"]}
            return told["displayName"], _COLORS[told["color"]["fixedColor"]]
    return name, None


def _over_time(panel: Mapping[str, Any], asked: Asked) -> go.Figure:
    custom = panel["fieldConfig"]["defaults"]["custom"]
    shape = "hv" if custom.get("lineInterpolation") == "stepAfter" else "linear"
    stack = "one" if custom.get("stacking", {}).get("mode") == "normal" else None
    figure = go.Figure()
    for name, points in _lines(panel, asked).items():
        values = [value for _, value in points]
        word, color = _shown(panel, name)
        line = {"shape": shape, "width": 2, "color": color}
        figure.add_scatter(x=_times(points), y=values, name=word, line=line, mode="lines", stackgroup=stack)
    if custom.get("thresholdsStyle", {}).get("mode") == "line":
        figure.add_hline(y=0, line={"color": "#9fa7b3", "width": 1})
    unit = panel["fieldConfig"]["defaults"]["unit"]
    if unit in _GIBIBYTE:
        scale = _GIBIBYTE[unit]
        figure.for_each_trace(lambda trace: trace.update(y=[value / scale for value in trace.y]))
        return figure.update_layout(showlegend=True).update_yaxes(ticksuffix=" GiB")
    return figure.update_layout(showlegend=True).update_yaxes(ticksuffix=_UNITS.get(unit, ""))


def _bands(panel: Mapping[str, Any], asked: Asked) -> go.Figure:
    figure = go.Figure()
    for name, points in _lines(panel, asked).items():
        begin = 0
        for index in range(1, len(points) + 1):
            if index < len(points) and points[index][1] == points[begin][1]:
                continue
            text, color = _word(panel["fieldConfig"]["defaults"], points[begin][1])
            length = (points[index - 1][0] - points[begin][0] + asked.step) * 1000
            base = [dt.datetime.fromtimestamp(points[begin][0], dt.UTC)]
            bar = {"orientation": "h", "marker": {"color": color}, "text": text, "showlegend": False}
            figure.add_bar(base=base, x=[length], y=[name], insidetextanchor="middle", **bar)
            begin = index
    return figure.update_layout(barmode="overlay").update_xaxes(type="date")


def _latest(panel: Mapping[str, Any], asked: Asked) -> dict[str, float]:
    if all(target.get("instant") for target in panel["targets"]):
        return _now(panel, asked)
    return {name: points[-1][1] for name, points in _lines(panel, asked).items() if points}


def _now(panel: Mapping[str, Any], asked: Asked) -> dict[str, float]:
    found: dict[str, float] = {}
    span = f"{math.ceil(time.time() - asked.since)}s"
    for target in panel["targets"]:
        expr = filled(target["expr"], asked.chosen, interval=f"{asked.step}s", span=span)
        for sample in asked.prometheus.query(expr):
            found[legend(target["legendFormat"], sample.labels)] = sample.value
    return dict(sorted(found.items()))


def _numbers(panel: Mapping[str, Any], asked: Asked) -> go.Figure:
    figure = go.Figure().update_xaxes(visible=False, range=[0, 1]).update_yaxes(visible=False, range=[0, 1])
    latest = _latest(panel, asked)
    names = panel["options"]["textMode"]
    for index, (name, value) in enumerate(latest.items()):
        text, color = _word(panel["fieldConfig"]["defaults"], value)
        shown = {"name": name, "value": text}.get(names, f"{text}<br><sub>{name}</sub>")
        place = {"x": (index + 0.5) / len(latest), "y": 0.5, "showarrow": False}
        figure.add_annotation(
            text=shown, font={"size": 22 if len(shown) < 30 else 14, "color": color}, **place
        )
    return figure


def _word(defaults: Mapping[str, Any], value: float) -> tuple[str, str]:
    for mapping in defaults.get("mappings", ()):
        word = mapping["options"].get(f"{value:g}")
        if word is not None:
            return word["text"], _COLORS[word["color"]]
    return f"{value:.4g}{_UNITS.get(defaults['unit'], '')}", "#ccccdc"


def _bars(panel: Mapping[str, Any], asked: Asked) -> go.Figure:
    latest = _latest(panel, asked)
    texts = [_word(panel["fieldConfig"]["defaults"], value)[0] for value in latest.values()]
    shown = [_shown(panel, name) for name in latest]
    colors = {"color": [color or _LAYOUT["colorway"][0] for _, color in shown]}
    names = [word for word, _ in shown]
    bar = go.Bar(x=list(latest.values()), y=names, text=texts, orientation="h", marker=colors)
    return go.Figure(bar).update_yaxes(automargin=True)


def _tables(panel: Mapping[str, Any], asked: Asked) -> list[Table]:
    steps = panel["transformations"]
    (tables,) = transformed([(steps, frames(panel, asked.chosen, asked.prometheus))])
    return tables


def _by_epoch(panel: Mapping[str, Any], asked: Asked) -> go.Figure:
    (table,) = _tables(panel, asked)
    x = panel["options"]["xField"]
    figure = go.Figure()
    for name, column in table.items():
        if name != x:
            word, color = _shown(panel, name)
            line = {"color": color}
            figure.add_scatter(
                x=table[x].values, y=column.values, name=word, line=line, mode="lines", connectgaps=True
            )
    return figure.update_layout(showlegend=True)


def _rows(panel: Mapping[str, Any], asked: Asked) -> go.Figure:
    (table,) = _tables(panel, asked)
    overrides = {
        one["matcher"]["options"]: {entry["id"]: entry["value"] for entry in one["properties"]}
        for one in panel["fieldConfig"]["overrides"]
    }
    cells, colors = [], []
    for name, column in table.items():
        told = {"unit": "none", "mappings": overrides.get(name, {}).get("mappings", ())}
        words = [
            _word(told, value) if isinstance(value, int | float) else (value or "", "#ccccdc")
            for value in column.values
        ]
        cells.append([text for text, _ in words])
        colors.append([color for _, color in words])
    header = {"values": list(table), "fill": {"color": "#22252b"}, "align": "left"}
    body = {"values": cells, "font": {"color": colors}, "fill": {"color": "#181b1f"}, "align": "left"}
    widths = [max(len(text) for text in (name, *texts)) + 3 for name, texts in zip(table, cells, strict=True)]
    return go.Figure(go.Table(header=header, cells=body, columnwidth=widths))


KINDS: dict[str, Callable[[Mapping[str, Any], Asked], go.Figure]] = {
    "timeseries": _over_time,
    "state-timeline": _bands,
    "stat": _numbers,
    "bargauge": _bars,
    "trend": _by_epoch,
    "table": _rows,
}
"""How panels of each type are drawn."""
