"""What panels make of Prometheus' answers: Grafana's own transformations, in Node."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dashboard_support import filled
from prometheus_support import Prometheus, Sample

NODE = shutil.which("node")
FOLDER = Path(__file__).parent / "node"
needs_grafana_data = pytest.mark.skipif(
    NODE is None or not (FOLDER / "node_modules" / "@grafana" / "data").is_dir(),
    reason=f"@grafana/data is not there (apt-get install nodejs npm, then npm ci in {FOLDER})",
)
Frame = dict[str, Any]


@dataclass(frozen=True)
class Column:
    """A field of a table."""

    type: str
    values: list[Any]
    """Numbers, text, or None where a row has no value."""


Table = dict[str, Column]
"""Columns by the name that a person reads, in order."""


def frames(panel: Mapping[str, Any], chosen: Mapping[str, str], prometheus: Prometheus) -> list[Frame]:
    """Ask the queries of a panel of tables, and return the answers as Grafana's data source hands them on."""
    several = len(panel["targets"]) > 1
    answers = []
    for target in panel["targets"]:
        assert (target["format"], target["instant"]) == ("table", True)
        samples = prometheus.query(filled(target["expr"], chosen))
        value = f"Value #{target['refId']}" if several else "Value"
        answers.append(_frame(target["refId"], value, samples))
    return answers


def _frame(reference: str, value: str, samples: Sequence[Sample]) -> Frame:
    labels = sorted({label for sample in samples for label in sample.labels})
    fields = [
        {"name": "Time", "type": "time", "values": [0] * len(samples)},
        *(
            {"name": label, "type": "string", "values": [one.labels.get(label, "") for one in samples]}
            for label in labels
        ),
        {"name": value, "type": "number", "values": [_text(one.value) for one in samples]},
    ]
    return {"refId": reference, "fields": fields}


def _text(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"


def transformed(jobs: Sequence[tuple[Sequence[Mapping[str, Any]], list[Frame]]]) -> list[list[Table]]:
    """Run the transformations of panels on their frames.

    Args:
        jobs: Transformations and frames of each panel; all in one go, because Node takes a second to start.
    """
    assert NODE is not None
    told = [{"transformations": list(steps), "frames": answers} for steps, answers in jobs]
    done = subprocess.run(
        [NODE, "transform.mjs"],
        cwd=FOLDER,
        input=json.dumps(told),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [[_table(one["fields"]) for one in tables] for tables in json.loads(done.stdout)]


def _table(fields: Sequence[Mapping[str, Any]]) -> Table:
    names = [field["name"] for field in fields]
    assert len(set(names)) == len(names), f"two columns of one name: {names}"
    return {
        field["name"]: Column(field["type"], [_value(field["type"], one) for one in field["values"]])
        for field in fields
    }


def _value(kind: str, value: Any) -> Any:
    return float(value) if kind == "number" and isinstance(value, str) else value
