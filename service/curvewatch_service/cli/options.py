"""Options that commands share, and what they become."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from curvewatch_service.client import Client

RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="Run id, the unique beginning of one, or `latest`.")
]
ServerOption = Annotated[
    str | None,
    typer.Option(
        "--server",
        metavar="URL",
        help="Address of the service, instead of the profile's.",
        show_default=False,
    ),
]
TokenOption = Annotated[
    str | None,
    typer.Option("--token", metavar="TOKEN", help="API token, instead of the profile's.", show_default=False),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]

PIPE_COLUMNS = 1000
EXIT_RUN_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


def connect(server: str | None, token: str | None) -> Client:
    """Return a client for the service that the options, else the profile, name."""
    from curvewatch_service.client import Client
    from curvewatch_workers.contract import profile_of, read_profile

    if server is None or token is None:
        profile = read_profile()
        if server is not None and server.rstrip("/") != profile.server.rstrip("/"):
            # A token is a secret between the user and one service: it is not sent to another.
            raise typer.BadParameter(
                f"the profile's token is for {profile.server}, not for {server}; give --token as well"
            )
        server, token = server or profile.server, token or profile.token
    named = profile_of(server, token)
    return Client(named.server, named.token)


def output() -> Console:
    """Return the console of standard output: text is text, never markup or control codes; plain in a pipe."""
    from curvewatch_service.printable import PrintableConsole

    # In a pipe nothing is cut off or wrapped: another program reads it.
    width = None if sys.stdout.isatty() else PIPE_COLUMNS
    return PrintableConsole(markup=False, highlight=False, emoji=False, width=width)


def print_json(text: str) -> None:
    """Write one JSON document as one line, at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
