"""The `watch` command: follow a run until it has ended."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import typer

from curvewatch_service.cli.options import (
    EXIT_INTERRUPTED,
    EXIT_RUN_FAILED,
    JsonOption,
    RunArgument,
    ServerOption,
    TokenOption,
    connect,
    output,
)

if TYPE_CHECKING:
    from curvewatch_service.client import Client


def watch(
    run: RunArgument,
    as_json: JsonOption = False,
    server: ServerOption = None,
    token: TokenOption = None,
) -> None:
    """Follow a run until it ends, then show its curve, verdict and receipt.

    Ctrl-C stops the watching, not the run.
    """
    with connect(server, token) as client:
        raise typer.Exit(watch_to_its_end(client, client.find(run).run_id, as_json=as_json))


def watch_to_its_end(client: Client, run_id: str, *, as_json: bool) -> int:
    """Follow a run and return the exit code that its end asks for."""
    from curvewatch_service.follow import follow
    from curvewatch_service.terminal import ending
    from curvewatch_service.watching import JsonWatcher, LineWatcher, LiveWatcher, Watcher, show_all

    console = output()
    watcher: Watcher
    if as_json:
        watcher = JsonWatcher(sys.stdout)
    else:
        watcher = LiveWatcher(console) if console.is_terminal else LineWatcher(console)
    try:
        last = show_all(follow(client, run_id), watcher)
    except KeyboardInterrupt:
        typer.echo(
            f"\nNo longer watching; {run_id} goes on. Watch it again: curvewatch watch {run_id}. "
            f"End it: curvewatch stop {run_id}",
            err=True,
        )
        return EXIT_INTERRUPTED
    if not as_json:
        console.print()
        console.print(ending(last.run, last.epochs, width=console.width, color=console.is_terminal))
    return EXIT_RUN_FAILED if last.run.state in ("FAILED", "LOST") else 0
