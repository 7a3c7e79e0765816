"""Commands that read or stop runs: `runs`, `show`, `logs`, `stop`."""

from __future__ import annotations

from typing import Annotated

import typer

from curvewatch_service.cli.options import (
    JsonOption,
    RunArgument,
    ServerOption,
    TokenOption,
    connect,
    output,
    print_json,
)


def runs(
    state: Annotated[
        list[str] | None,
        typer.Option("--state", metavar="STATE", help="Only runs in this state; may be given several times."),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="Most runs to list.")] = 20,
    as_json: JsonOption = False,
    server: ServerOption = None,
    token: TokenOption = None,
) -> None:
    """List runs, newest first."""
    from curvewatch_service.terminal import runs_table

    states = [_known_state(name) for name in state or []]
    with connect(server, token) as client:
        listed = client.all_runs(states=states, limit=limit)
    if as_json:
        print_json(listed.model_dump_json())
        return
    console = output()
    if not listed.runs:
        console.print(
            "No runs" + (" in this state." if states else " yet. Submit one: curvewatch submit job.yaml")
        )
        return
    console.print(runs_table(listed.runs))
    if listed.total > len(listed.runs):
        console.print(
            f"{listed.total - len(listed.runs)} more; --limit {listed.total} lists all.", style="dim"
        )


def show(
    run: RunArgument,
    as_json: JsonOption = False,
    server: ServerOption = None,
    token: TokenOption = None,
) -> None:
    """Show one run: facts, curve, verdict, receipt and events."""
    from curvewatch_service import terminal

    with connect(server, token) as client:
        found = client.find(run)
        epochs, events = client.epochs(found.run_id), client.events(found.run_id)
    if as_json:
        import json

        document = {
            "run": found.model_dump(mode="json"),
            "epochs": [epoch.model_dump(mode="json") for epoch in epochs],
            "events": [event.model_dump(mode="json") for event in events],
        }
        print_json(json.dumps(document, allow_nan=False))
        return
    console = output()
    console.print(terminal.run_facts(found))
    console.print()
    console.print(terminal.ending(found, epochs, width=console.width, color=console.is_terminal))
    if found.alerts:
        console.print("\nAlerts", style="bold")
        console.print(terminal.alerts_table(found.alerts))
    console.print("\nEvents", style="bold")
    console.print(terminal.events_table(events))


def logs(run: RunArgument, server: ServerOption = None, token: TokenOption = None) -> None:
    """Print what the run's program has written: its colors in a terminal only, other control codes never."""
    from rich.text import Text

    from curvewatch_service.printable import colored, printable

    with connect(server, token) as client:
        found = client.find(run)
        text = client.logs(found.run_id)
    console = output()
    if not text:
        typer.echo(printable(f"{found.run_id} ({found.state}) has written nothing yet"), err=True)
        return
    for line in text.splitlines():
        console.print(Text.from_ansi(colored(line)), soft_wrap=True)


def stop(
    run: RunArgument,
    as_json: JsonOption = False,
    server: ServerOption = None,
    token: TokenOption = None,
) -> None:
    """Stop a run at the end of its epoch, with a checkpoint."""
    with connect(server, token) as client:
        stopped = client.stop(client.find(run).run_id)
    if as_json:
        print_json(stopped.model_dump_json())
        return
    output().print(f"{stopped.run_id} is {stopped.state}: {stopped.reason}", soft_wrap=True)


def _known_state(name: str) -> str:
    from curvewatch_service.runs import RunState

    if name.upper() not in RunState.__members__:
        raise typer.BadParameter(f"there is no state {name!r}; states: {', '.join(RunState.__members__)}")
    return name.upper()
