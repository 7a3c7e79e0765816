"""The command `grafana publish`."""

from __future__ import annotations

import json
import logging
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from curvewatch_service.cli.options import EXIT_USAGE, JsonOption, output, print_json

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console

    from curvewatch_service.grafana.planning import Step
    from curvewatch_service.grafana.server import GrafanaServer

app = typer.Typer(help="Put the dashboards into a Grafana.", no_args_is_help=True)

_OLDEST = 11
_LINES = 40
"""Most differences of one thing that are shown to a person."""
_COLORS = {"create": "green", "update": "yellow", "kept": "magenta", "failed": "red"}
_NOTHING = ("unchanged",)


@app.callback()
def _grafana() -> None:
    """Hold the commands."""


@app.command()
def publish(
    url: Annotated[
        str,
        typer.Option("--url", metavar="URL", envvar="CURVEWATCH_GRAFANA_URL", help="Address of Grafana."),
    ],
    token: Annotated[
        str | None,
        typer.Option(
            "--token",
            metavar="TOKEN",
            envvar="CURVEWATCH_GRAFANA_TOKEN",
            help="Token of a service account. Others on this machine see options; the variable or --token-file is "
            "safer.",
            show_default=False,
        ),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option("--token-file", help="File that holds the token alone.", show_default=False),
    ] = None,
    folder: Annotated[
        str | None,
        typer.Option(
            "--folder",
            metavar="TITLE",
            help="Title of the dashboards' folder; without it Curvewatch, or what the folder is called by now.",
            show_default=False,
        ),
    ] = None,
    prometheus_url: Annotated[
        str | None,
        typer.Option(
            "--prometheus-url",
            metavar="URL",
            help="Make a data source of this Prometheus too, by its address as Grafana reaches it.",
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace also what people have changed in Grafana.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be changed, and change nothing.")
    ] = False,
    ca_file: Annotated[
        Path | None,
        typer.Option(
            "--ca-file",
            exists=True,
            dir_okay=False,
            help="Certificates (PEM) that sign Grafana's.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Put folder, dashboards and, if asked for, a data source into a Grafana; a second call changes nothing."""
    from curvewatch_dashboards.knobs import Knobs
    from curvewatch_service.grafana.planning import Wanted, built_dashboards, plan
    from curvewatch_service.grafana.publishing import apply
    from curvewatch_service.grafana.server import GrafanaServer

    wanted = Wanted(folder=_title(folder), prometheus_url=_prometheus(prometheus_url), overwrite=overwrite)
    console = output()
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # what is asked again would be told as a warning
    with GrafanaServer(url, _token(token, token_file), ca_file=ca_file) as server:
        with nullcontext() if as_json else console.status(f"Reading {server.url}"):
            version = server.version()
            _warn_of(version)
            steps = list(plan(server, wanted, built_dashboards(), Knobs()))
        coming = steps if dry_run else apply(server, steps)
        done = _show(coming, server, console, dry_run=dry_run, quiet=as_json)
    if as_json:
        objects = [_as_json(step, server) for step in done]
        document = {"url": server.url, "version": version or None, "dry_run": dry_run, "objects": objects}
        print_json(json.dumps(document, ensure_ascii=False))
    else:
        console.print(_ending(done, server.url, version, dry_run=dry_run), soft_wrap=True)
    if not dry_run and any(step.action in ("kept", "failed") for step in done):
        raise typer.Exit(EXIT_USAGE)


def _show(
    steps: Iterable[Step], server: GrafanaServer, console: Console, *, dry_run: bool, quiet: bool
) -> list[Step]:
    """Show each step as it is done; return them."""
    from rich.text import Text

    shown = []
    for step in steps:
        shown.append(step)
        if quiet:
            continue
        line = Text(f"{step.action:<9}", style=_COLORS.get(step.action, "dim"))
        console.print(
            line.append(f" {step.kind} {step.title}  {server.url}{step.path}", style="default"),
            soft_wrap=True,
        )
        if step.reason:
            console.print(f"          {step.reason}", soft_wrap=True)
        if dry_run and step.action not in _NOTHING:
            _show_changes(step, console)
    return shown


def _show_changes(step: Step, console: Console) -> None:
    """Show what differs, without what Grafana fills in where it stores a dashboard."""
    changes = [change for change in step.changes if not change.is_filling]
    for change in changes[:_LINES]:
        console.print(f"          {change.line()}", soft_wrap=True)
    if len(changes) > _LINES:
        console.print(f"          and {len(changes) - _LINES} more differences; --json has all of them")


def _ending(steps: list[Step], url: str, version: str, *, dry_run: bool) -> str:
    counts = {
        action: sum(step.action == action for step in steps)
        for action in ("create", "update", "kept", "failed")
    }
    where = f"{url} (Grafana {version})" if version else url
    if not any(counts.values()):
        return f"Nothing to change in {where}: all {len(steps)} are up to date."
    words = {"create": "created", "update": "updated", "kept": "kept as they are", "failed": "failed"}
    told = ", ".join(f"{count} {words[action]}" for action, count in counts.items() if count)
    return f"Nothing was written to {where}; would be: {told}." if dry_run else f"{told} in {where}."


def _as_json(step: Step, server: GrafanaServer) -> dict[str, Any]:
    return {
        "kind": step.kind,
        "uid": step.uid,
        "title": step.title,
        "action": str(step.action),
        "reason": step.reason,
        "url": server.url + step.path,
        "changes": [vars(change) for change in step.changes] if step.action not in _NOTHING else [],
    }


def _token(token: str | None, token_file: Path | None) -> str:
    from curvewatch_service.errors import GrafanaError

    if token_file is not None:
        try:
            return token_file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise GrafanaError(f"the token cannot be read from {token_file}: {error}") from None
    if token is None:
        raise GrafanaError(
            "no Grafana token is given; set CURVEWATCH_GRAFANA_TOKEN, or name a file with --token-file. A token is "
            "made in Grafana: Administration, Users and access, Service accounts"
        )
    return token


def _title(folder: str | None) -> str | None:
    if folder is not None and not folder.strip():
        raise typer.BadParameter("a folder needs a title, got an empty one", param_hint="--folder")
    return folder and folder.strip()


def _prometheus(url: str | None) -> str | None:
    from urllib.parse import urlsplit

    if url is not None and (urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname):
        raise typer.BadParameter(
            f"{url!r} is no address of a Prometheus; an address is like http://prometheus:9090",
            param_hint="--prometheus-url",
        )
    return url


def _warn_of(version: str) -> None:
    major = version.split(".")[0]
    if major.isdigit() and int(major) < _OLDEST:
        typer.echo(
            f"This Grafana is {version}; the dashboards are made for {_OLDEST} to 13, and some panels may not show",
            err=True,
        )
