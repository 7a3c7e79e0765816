"""The `curvewatch` program: its commands, and how it ends.

Exit codes: 0 success; 1 a run failed or was lost; 2 something that the user can put right (a bad job, an
unknown run, a wrong token, a service that is away); 130 interrupted.
"""

from __future__ import annotations

import io
import os
import sys
from typing import Annotated

import typer

from curvewatch_service.cli.options import EXIT_INTERRUPTED, EXIT_USAGE

app = typer.Typer(
    name="curvewatch",
    help="Train on Ray with exact loss curves: submit jobs, watch them, read their verdicts.",
    epilog="Exit codes: 0 success, 1 a run failed, 2 something to put right, 130 interrupted.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(value: bool) -> None:
    if value:
        from curvewatch_service.cli.about import version_text

        typer.echo(version_text())
        raise typer.Exit


@app.callback()
def _root(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and end."),
    ] = False,
) -> None:
    """Hold the options of the program as a whole."""


def _register() -> None:
    from curvewatch_service.cli import (
        about,
        check,
        demo,
        diagnose,
        export,
        grafana,
        replay,
        runs,
        send,
        serve,
        submit,
        watch,
    )

    app.command("serve")(serve.serve)
    app.command("check")(check.check)
    app.command("diagnose")(diagnose.diagnose)
    app.command("replay")(replay.replay)
    app.command("submit")(submit.submit)
    app.command("runs")(runs.runs)
    app.command("show")(runs.show)
    app.command("watch")(watch.watch)
    app.command("logs")(runs.logs)
    app.command("stop")(runs.stop)
    app.command("export")(export.export)
    app.command("send")(send.send)
    app.add_typer(grafana.app, name="grafana")
    app.command("schema")(about.schema)
    app.command("demo")(demo.demo)
    app.command("version")(about.version)


_register()


def main() -> None:
    """Run the program."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that cannot show a character shows another one; that is no reason to fail.
            stream.reconfigure(errors="replace")
    try:
        try:
            app()
        finally:
            if sys.__stdout__ is not None:  # closed by who started us
                sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output, such as `head`, has seen enough; Python's own last flush must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        if not _is_users(error):
            raise
        from curvewatch_service.printable import printable

        # The sentence may be the service's.
        typer.echo(printable(f"Error: {error}"), err=True)
        sys.exit(EXIT_USAGE)


def _is_users(error: Exception) -> bool:
    """Tell whether an error is one that a user is told in a sentence, without a stack trace."""
    from curvewatch_service.client import ClientError
    from curvewatch_service.errors import ServiceError
    from curvewatch_workers.contract import ContractError, ProfileError

    return isinstance(error, ClientError | ServiceError | ProfileError | ContractError)
