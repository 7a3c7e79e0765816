"""The `submit` command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    from curvewatch_service.job_folder import JobFolder


def submit(
    job: Annotated[
        Path, typer.Argument(metavar="JOB", help="A job file, or a folder that holds `job.yaml`.")
    ],
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Follow the run until it ends.")] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check the job, print what would be sent to Ray, submit nothing."),
    ] = False,
    as_json: JsonOption = False,
    server: ServerOption = None,
    token: TokenOption = None,
) -> None:
    """Submit a job: its file and the folder of code beside it."""
    from curvewatch_service.code import zip_folder
    from curvewatch_service.job_folder import read_job_folder

    folder = read_job_folder(job)
    code = zip_folder(folder.code)
    if dry_run:
        _print_plan(folder, code, as_json=as_json)
        return
    with connect(server, token) as client:
        run = client.submit(folder.text, code)
        if as_json and not watch:
            print_json(run.model_dump_json())
            return
        if not as_json:
            output().print(f"Submitted {run.run_id} ({len(code):,} bytes of code)", soft_wrap=True)
        if watch:
            from curvewatch_service.cli.watch import watch_to_its_end

            raise typer.Exit(watch_to_its_end(client, run.run_id, as_json=as_json))
        output().print(
            f"Follow it: curvewatch watch {run.run_id}\nOr on the page: {client.server}/runs/{run.run_id}"
        )


def _print_plan(folder: JobFolder, code: bytes, *, as_json: bool) -> None:
    raise NotImplementedError
