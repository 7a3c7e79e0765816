"""Commands about Curvewatch itself: `schema` and `version`."""

from __future__ import annotations

import json

import typer

from curvewatch_service.cli.options import print_json


def schema() -> None:
    """Print the JSON schema of a job file."""
    from curvewatch_workers.contract import JobSpec

    print_json(json.dumps(JobSpec.model_json_schema(), indent=2))


def version() -> None:
    """Print the version."""
    typer.echo(version_text())


def version_text() -> str:
    """Return the name and version of the installed package."""
    from importlib.metadata import version as installed

    return f"curvewatch {installed('curvewatch')}"
