"""The `send` command: what trainers outside of the cluster could not tell the service."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from curvewatch_service.cli.options import EXIT_USAGE, JsonOption, TokenOption, connect, output, print_json

if TYPE_CHECKING:
    from curvewatch_workers.contract import IngestMessage, ReportedState

_BATCH = 200


def send(
    folder: Annotated[
        Path, typer.Argument(help="Where the callbacks have kept their runs.", show_default=True)
    ] = Path("curvewatch-runs"),
    token: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send what callbacks of other trainers have kept of their runs; the service takes each message once."""
    from pydantic import ValidationError

    from curvewatch_service.client import ClientError
    from curvewatch_service.printable import printable
    from curvewatch_workers.contract import read_state

    paths = sorted(folder.glob("*/reported.json"))
    if not paths:
        raise typer.BadParameter(
            f"{folder} holds no run of a callback; name the folder `curvewatch-runs` that lies beside the curve's file",
            param_hint="FOLDER",
        )
    failed = False
    for path in paths:
        try:
            state = read_state(path)
            told = _send(state, folder, token)
        except (OSError, ValidationError) as error:
            failed = True
            why = (
                error if isinstance(error, OSError) else "it is damaged, or a newer Curvewatch has written it"
            )
            typer.echo(f"Error: {path} cannot be read, its run is left out: {why}", err=True)
            continue
        except (ClientError, typer.BadParameter) as error:
            # Another run may be one of another service, or not refused.
            failed = True
            typer.echo(printable(f"Error: {state.run_id}: {error}"), err=True)
            continue
        if as_json:
            print_json(json.dumps(told))
        else:
            output().print(f"{told['run_id']}: {told['messages']} messages sent to {told['server']}")
    if failed:
        raise typer.Exit(EXIT_USAGE)


def _send(state: ReportedState, folder: Path, token: str | None) -> dict[str, Any]:
    from curvewatch_service.client import WrongTokenError
    from curvewatch_workers.contract import RunLayout, kept_messages

    spool = RunLayout(folder, state.run_id).spool
    kept = list(kept_messages(spool))
    messages = [message for message in kept if message is not None]
    unreadable = len(kept) - len(messages)
    if unreadable:
        typer.echo(f"{spool}: {unreadable} lines cannot be read and are left out", err=True)
    try:
        _tell(state, state.ingest_token or _made(state, folder, token), messages)
    except WrongTokenError:
        if state.ingest_token is None or _is_known(state, token):
            raise  # a trainer that has the run now must not lose it
        _tell(state, _made(state, folder, token), messages)
    return {
        "run_id": state.run_id,
        "server": state.server,
        "messages": len(messages),
        "unreadable": unreadable,
    }


def _tell(state: ReportedState, ingest_token: str, messages: Sequence[IngestMessage]) -> None:
    from curvewatch_service.client import Client

    with Client(state.server, ingest_token) as client:
        for first in range(0, len(messages), _BATCH):
            client.ingest(state.run_id, messages[first : first + _BATCH])


def _made(state: ReportedState, folder: Path, token: str | None) -> str:
    """Make the run that the service does not have; return its ingest token."""
    from curvewatch_workers.contract import RunLayout, keep_state, read_state

    with connect(state.server, token) as client:
        made = client.put_run(state.run_id, state.run).ingest_token
    # Read again: its trainer may have changed it meanwhile.
    now = read_state(RunLayout(folder, state.run_id).reported)
    keep_state(folder, now.model_copy(update={"ingest_token": made}))
    return made


def _is_known(state: ReportedState, token: str | None) -> bool:
    from curvewatch_service.client import UnknownRunError

    with connect(state.server, token) as client:
        try:
            client.run(state.run_id)
        except UnknownRunError:
            return False
    return True
