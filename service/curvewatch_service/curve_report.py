"""A page of diagnosed curves in one file, for a browser without a network."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plotly import graph_objects
from plotly.io import to_html

from curvewatch_service.curve_files import NamedCurve
from curvewatch_service.errors import CurveFileError
from curvewatch_service.schemas import SavingsView
from curvewatch_service.terminal import best_stop

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1f2328; }
h2 { margin: 2.5rem 0 0; overflow-wrap: anywhere; } .verdict { font-weight: 600; } .advice { color: #57606a; }
"""


def write_report(path: Path, curves: Sequence[tuple[NamedCurve, Mapping[str, Any]]]) -> None:
    """Write the report of curves, each with what `describe_curve` says of it.

    Raises:
        CurveFileError: The file cannot be written.
    """
    parts = [_section(one, said, first=number == 0) for number, (one, said) in enumerate(curves)]
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Learning curves</title>'
        f"<style>{_STYLE}</style><h1>Learning curves</h1>{''.join(parts)}</html>"
    )
    try:
        path.write_text(page, encoding="utf-8", errors="replace")
    except OSError as error:
        raise CurveFileError(f"the report cannot be written to {path}: {error.strerror}") from error


def _section(one: NamedCurve, said: Mapping[str, Any], *, first: bool) -> str:
    # The library comes with the first chart, and serves all.
    chart = to_html(_chart(one, said), include_plotlyjs=first, full_html=False, default_height="380px")
    evidence = "".join(f"<li>{html.escape(entry['message'])}</li>" for entry in said["evidence"])
    verdict = html.escape(said["verdict"].replace("_", " "))
    return (
        f"<section><h2>{html.escape(one.name)}</h2>"
        f'<p><span class="verdict">{verdict}</span>, confidence {said["confidence"]:.2f}. '
        f"{html.escape(said['summary'])}</p>{chart}<ul>{evidence}</ul>"
        f'<p class="advice">{html.escape(said["advice"])}{_savings(said)}</p></section>'
    )


def _savings(said: Mapping[str, Any]) -> str:
    return f" {html.escape(best_stop(SavingsView(**said['savings'])))}" if said["savings"] else ""


def _chart(one: NamedCurve, said: Mapping[str, Any]) -> graph_objects.Figure:
    epochs = list(range(1, len(one.curve) + 1))
    figure = graph_objects.Figure()
    for name, losses, color in (
        ("train loss", one.curve.train, "#2f6feb"),
        ("validation loss", one.curve.validation, "#e8710a"),
    ):
        figure.add_scatter(
            x=epochs, y=losses, name=name, mode="lines+markers", line_color=color, marker_size=4
        )
    marks = {epoch: entry["message"] for entry in said["evidence"] for epoch in entry["epochs"]}
    for epoch in sorted(marks):
        figure.add_vline(x=epoch, line_dash="dot", line_color="#8c959f", line_width=1)
    if said["best_epoch"] is not None:
        figure.add_scatter(
            x=[said["best_epoch"]],
            y=[said["best_validation_loss"]],
            name=f"best, epoch {said['best_epoch']}",
            mode="markers",
            marker={"symbol": "star", "size": 14, "color": "#1a7f37"},
        )
    figure.update_layout(
        xaxis_title="epoch", yaxis_title="loss", template="plotly_white", margin={"t": 20, "r": 10}
    )
    return figure
