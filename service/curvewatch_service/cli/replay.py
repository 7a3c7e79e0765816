"""The `replay` command: what a policy would have done on past runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from curvewatch_service.cli.options import (
    JsonOption,
    ServerOption,
    TokenOption,
    connect,
    output,
    print_json,
)

if TYPE_CHECKING:
    from curvewatch_service.client import Client
    from curvewatch_service.schemas import RunView
    from curvewatch_workers.contract import PolicySpec


def replay(
    policy: Annotated[
        Path,
        typer.Option(
            "--policy", metavar="FILE", help="YAML or JSON with a job's `policy` block, or a whole job file."
        ),
    ],
    runs: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN]...", help="Run ids, or `latest`; the newest runs if none is named."),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="Most runs, where none is named.")] = 100,
    as_json: JsonOption = False,
    server: ServerOption = None,
    token: TokenOption = None,
) -> None:
    """Show what a policy would have done on past runs, and what that would have saved."""
    from curvewatch_workers.contract import read_policy

    block = read_policy(policy)
    with connect(server, token) as client:
        if runs:
            answers = list(_answers(client, [client.find(name) for name in runs], len(runs), block))
        else:
            listed = client.all_runs(limit=limit).runs
            answers = list(_answers(client, (client.run(one.run_id) for one in listed), len(listed), block))
    if as_json:
        for answer in answers:
            print_json(json.dumps(answer, allow_nan=False))
        return
    console = output()
    if not answers:
        console.print("No runs yet. Submit one: curvewatch submit job.yaml")
        return
    from curvewatch_service.replay_table import replay_table, replay_total

    console.print(replay_table(answers))
    console.print(replay_total(answers), soft_wrap=True)


def _answers(
    client: Client, runs: Iterable[RunView], count: int, policy: PolicySpec
) -> Iterator[dict[str, Any]]:
    from rich.console import Console
    from rich.progress import track

    yield from track(
        (_answer(client, run, policy) for run in runs),
        "Replaying runs",
        total=count,
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
    )


def _answer(client: Client, run: RunView, policy: PolicySpec) -> dict[str, Any]:
    """Return what the policy would have done on a run, as JSON can hold it."""
    from dataclasses import asdict

    from curvewatch_service.curves import finite
    from curvewatch_workers.replay import PolicyMismatchError
    from curvewatch_workers.replay import replay as replayed

    answer: dict[str, Any] = {"run_id": run.run_id, "name": run.name, "state": run.state, "epochs": run.epoch}
    empty = {"deed": None, "epoch": None, "why": None, "savings": None}
    try:
        found = replayed(client.records(run.run_id), run.spec, policy)
    except PolicyMismatchError as error:
        return {**answer, **empty, "problem": str(error)}
    told: dict[str, Any] = finite({**answer, **(asdict(found) if found else empty), "problem": None})
    return told
