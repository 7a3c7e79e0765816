"""The `export` command: the past of runs, for other tools."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer

from curvewatch_service.cli.options import ServerOption, TokenOption, connect

if TYPE_CHECKING:
    from curvewatch_service.client import Client
    from curvewatch_service.openmetrics import Joined
    from curvewatch_service.schemas import RunSummary

_FORMATS = "--openmetrics, for `promtool tsdb create-blocks-from openmetrics`"


def export(
    runs: Annotated[
        list[str] | None,
        typer.Argument(metavar="RUN", help="Run ids, unique beginnings of ones, or `latest`."),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Export every run that the service has.")] = False,
    openmetrics: Annotated[
        bool,
        typer.Option(
            "--openmetrics",
            help="As OpenMetrics text, each epoch at the time at which it ended: what `promtool tsdb "
            "create-blocks-from openmetrics` makes blocks of Prometheus from.",
        ),
    ] = False,
    file: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Write to a file instead of standard output.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
    server: ServerOption = None,
    token: TokenOption = None,
) -> None:
    """Write the exact curves of runs, every epoch of them, for another tool to read."""
    from curvewatch_service.openmetrics import Joined

    if not openmetrics:
        raise typer.BadParameter(f"say in which form; there is {_FORMATS}")
    if every == bool(runs):
        raise typer.BadParameter("name runs, or give --all" + (", not both" if runs else ""))
    _require_writable(file, force=force)
    with connect(server, token) as client, Joined() as joined:
        found = _chosen(client, runs)
        if not found:
            raise typer.BadParameter("there is no run yet; submit one: curvewatch submit job.yaml")
        _join(client, found, joined)
        with _target(file) as target:
            joined.write(target)


def _require_writable(file: Path | None, *, force: bool) -> None:
    if file is None:
        return
    if file.is_dir() or not file.parent.is_dir():
        what = f"{file} is a folder" if file.is_dir() else f"the folder of {file} does not exist"
        raise typer.BadParameter(f"{what}; name a file to write", param_hint="--output")
    if file.exists() and not file.is_file():
        # A device or a pipe would be replaced by a file.
        raise typer.BadParameter(
            f"{file} is no file; leave the option away and redirect standard output to it",
            param_hint="--output",
        )
    if file.exists() and not force:
        raise typer.BadParameter(f"{file} exists; --force replaces it", param_hint="--output")


def _chosen(client: Client, names: Sequence[str] | None) -> list[RunSummary]:
    """Return the runs, each once: a time series that is there twice would be refused."""
    listed = [client.find(name) for name in names] if names else client.all_runs(limit=sys.maxsize).runs
    return list({run.run_id: run for run in listed}.values())


def _join(client: Client, runs: Sequence[RunSummary], joined: Joined) -> None:
    from rich.console import Console
    from rich.progress import Progress

    from curvewatch_service.printable import printable

    bar = Progress(console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True)
    with bar:
        # Runs weigh as much as they have epochs: one may be as long as all others together.
        task, done = bar.add_task("Exporting", total=sum(run.epoch for run in runs)), 0.0
        for run in runs:
            with client.history(run.run_id) as (samples, lines):
                if not samples:
                    bar.console.print(
                        printable(f"{run.run_id} has no epoch yet"), markup=False, soft_wrap=True
                    )
                for taken in _taken(joined, lines, f"what {client.server} answers of {run.run_id}"):
                    bar.update(task, completed=done + run.epoch * taken / max(samples, 1))
            done += run.epoch
            bar.update(task, completed=done)


def _taken(joined: Joined, lines: Iterator[bytes], what: str) -> Iterator[int]:
    from curvewatch_service.client import ClientError

    try:
        yield from joined.add(lines)
    except ValueError as error:
        raise ClientError(
            f"{what} is cut off or of another version ({error}); use the same version here and there, and ask again"
        ) from error
    except OSError as error:
        raise ClientError(
            f"no temporary file can be written in {tempfile.gettempdir()} ({error.strerror}); let TMPDIR name a "
            "folder with more room"
        ) from error


@contextmanager
def _target(file: Path | None) -> Iterator[IO[bytes]]:
    """Open what is written to; a file is there whole or not at all."""
    from curvewatch_service.client import ClientError

    if file is None:
        with _standard_output() as target:
            yield target
        return
    # Where a link leads to: the link stays.
    file = file.resolve()
    draft = file.with_name(f"{file.name}.part-{os.getpid()}")
    try:
        with draft.open("xb") as target:
            yield target
        draft.replace(file)
    except OSError as error:
        raise ClientError(f"{file} cannot be written ({error.strerror}); choose another with -o") from error
    finally:
        with suppress(OSError):
            draft.unlink()


@contextmanager
def _standard_output() -> Iterator[IO[bytes]]:
    from curvewatch_service.client import ClientError

    cannot = "the history cannot be written to standard output ({}); name a file with -o"
    if sys.__stdout__ is None:
        raise ClientError(cannot.format("it is closed"))
    try:
        yield sys.stdout.buffer
        sys.stdout.flush()
    except BrokenPipeError:
        # Its reader, such as `head`, has seen enough.
        raise
    except OSError as error:
        raise ClientError(cannot.format(error.strerror)) from error
