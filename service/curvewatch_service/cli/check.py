"""The `check` command."""

from __future__ import annotations

import importlib.util
import signal
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from curvewatch_service.cli.options import EXIT_USAGE, JsonOption


def check(
    job: Annotated[
        Path, typer.Argument(metavar="JOB", help="A job file, or a folder that holds `job.yaml`.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Try a job on this machine: build its task, take one step, and say what would go wrong."""
    from curvewatch_service.job_folder import read_job_folder

    if importlib.util.find_spec("torch") is None:
        typer.echo(
            "Error: curvewatch check runs the job's code, and torch is not installed here; "
            "pip install 'curvewatch[workers]', or submit the job with --dry-run",
            err=True,
        )
        raise typer.Exit(EXIT_USAGE)
    read_job_folder(job)
    # A process of its own: this program never loads torch, and the job's code may do what it likes.
    command = [sys.executable, "-m", "curvewatch_workers.check", str(job)]
    done = subprocess.run(
        [*command, "--json"] if as_json else command, stdout=subprocess.PIPE, encoding="utf-8", check=False
    )
    typer.echo(done.stdout, nl=False)
    if done.returncode < 0 or not (done.returncode or done.stdout):
        how = f"by {signal.Signals(-done.returncode).name}" if done.returncode else "without a word"
        typer.echo(
            f"Error: the job's code ended the check {how}; SIGKILL mostly means that memory ran out, else look for "
            "os._exit in what it calls",
            err=True,
        )
        raise typer.Exit(EXIT_USAGE)
    raise typer.Exit(done.returncode)
