"""Write what is generated: rules, dashboard, copies that the manifests need, reference of series.

`python -m curvewatch_dashboards.build` writes; with `--check` it changes nothing, shows what is out of date
as a diff, and exits with 1.
"""

from __future__ import annotations

import argparse
import difflib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from curvewatch_dashboards.alertmanager import alertmanager_file
from curvewatch_dashboards.compare_dashboard import compare_dashboard
from curvewatch_dashboards.fleet_dashboard import fleet_dashboard
from curvewatch_dashboards.grafana import JSONEncoder
from curvewatch_dashboards.knobs import Knobs
from curvewatch_dashboards.prometheus import prometheus_config
from curvewatch_dashboards.provisioning import dashboards_file, datasources_file
from curvewatch_dashboards.reference import series_reference
from curvewatch_dashboards.rules import rule_groups
from curvewatch_dashboards.run_dashboard import run_dashboard
from curvewatch_dashboards.yaml_text import yaml_file

ROOT = Path(__file__).parents[2]
"""Root of the source tree: the manifests and the documents are not part of the installed package."""

DASHBOARDS = {"run": run_dashboard, "compare": compare_dashboard, "fleet": fleet_dashboard}
"""What builds each dashboard, by the name of its file."""


def outputs(knobs: Knobs) -> dict[str, str]:
    """Return every generated file, by its path below the root of the source tree."""
    groups = rule_groups(knobs)
    manifest = yaml_file(
        {
            "apiVersion": "monitoring.coreos.com/v1",
            "kind": "PrometheusRule",
            "metadata": {"name": "curvewatch", "labels": dict(knobs.rule_labels)},
            "spec": groups,
        }
    )
    dashboards = {
        name: json.dumps(build(knobs), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"
        for name, build in DASHBOARDS.items()
    }
    built = "dashboards/curvewatch_dashboards/built"
    return {
        f"{built}/rules.yaml": yaml_file(groups),
        f"{built}/prometheusrule.yaml": manifest,
        f"{built}/prometheus.yaml": yaml_file(prometheus_config(knobs)),
        f"{built}/alertmanager.yaml": alertmanager_file(knobs),
        **{f"{built}/{name}.json": content for name, content in dashboards.items()},
        "dashboards/provisioning/datasources/curvewatch.yaml": yaml_file(datasources_file(knobs)),
        "dashboards/provisioning/dashboards/curvewatch.yaml": yaml_file(dashboards_file(knobs)),
        # kustomize reads nothing outside its own folder.
        "k8s/base/prometheusrule.yaml": manifest,
        **{f"k8s/base/curvewatch-{name}.json": content for name, content in dashboards.items()},
        "docs/metrics.md": series_reference(),
    }


def write(files: dict[str, str], root: Path) -> None:
    """Write the generated files below a folder."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")


def differences(files: dict[str, str], root: Path) -> str:
    """Return a unified diff from the files below a folder to what they should be; empty when up to date."""
    diff: list[str] = []
    for name, content in files.items():
        path = root / name
        current = path.read_text(encoding="utf-8") if path.exists() else ""
        diff += difflib.unified_diff(
            current.splitlines(keepends=True), content.splitlines(keepends=True), name, f"{name} (generated)"
        )
    return "".join(diff)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(prog="curvewatch_dashboards.build", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a file is out of date")
    options = parser.parse_args(arguments)
    if not (ROOT / "pyproject.toml").is_file():
        sys.stderr.write(
            f"{ROOT} is no source tree of Curvewatch: run this from a checkout, not from a wheel\n"
        )
        return 2
    files = outputs(Knobs())
    if not options.check:
        write(files, ROOT)
        return 0
    diff = differences(files, ROOT)
    if diff:
        sys.stderr.write(f"{diff}\nGenerated files are out of date; run `make build` and commit them.\n")
    return 1 if diff else 0


if __name__ == "__main__":
    sys.exit(main())
