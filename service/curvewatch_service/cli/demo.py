"""The `demo` command."""

from __future__ import annotations

from typing import Annotated

import typer

from curvewatch_service.cli.options import output


def demo(
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the service running afterwards, and say where it is.")
    ] = False,
) -> None:
    """Train two models on real data, on a service of its own, and show that the verdicts are right."""
    from curvewatch_service.demo import run_demo

    raise typer.Exit(run_demo(output(), keep=keep))
