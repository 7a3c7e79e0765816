"""The `submit` command."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
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
    from curvewatch_service.stored import Run


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
    from curvewatch_service.planning import plan
    from curvewatch_service.settings import load_settings

    request = plan(_run_of(folder, code), settings=load_settings())
    if as_json:
        print_json(request.model_dump_json())
        return
    scaling, training = folder.spec.scaling, folder.spec.training
    console = output()
    console.print(f"{folder.path} is a good job; nothing was submitted.\n", soft_wrap=True)
    console.print(
        f"{folder.spec.name}: {training.epochs} epochs, global batches of {training.global_batch_size}, on "
        f"{scaling.workers_in_words} with {scaling.cpus(scaling.max_workers):g} CPU and "
        f"{scaling.gpus(scaling.max_workers)} GPU in all; {len(code):,} bytes of code from {folder.code}",
        soft_wrap=True,
    )
    console.print("\nWhat Ray would be given, by a service with the settings of this shell:")
    console.print(request.model_dump_json(indent=2), soft_wrap=True)


def _run_of(folder: JobFolder, code: bytes) -> Run:
    """Return the run that the service would make of a job, with an id that shows it is none."""
    from curvewatch_service.runs import RunState
    from curvewatch_service.stored import Run
    from curvewatch_workers.contract import Control

    return Run(
        run_id=f"{folder.spec.name}-dry-run",
        name=folder.spec.name,
        owner="you",
        state=RunState.QUEUED,
        reason="",
        spec=folder.spec,
        code_hash=hashlib.sha256(code).hexdigest(),
        created_at=datetime.now(UTC),
        started_at=None,
        finished_at=None,
        attempt=0,
        submission=0,
        control=Control.CONTINUE,
        world_size=None,
        epoch=0,
        outcome=None,
        outcome_reason="",
        traceback=None,
        checkpoint=None,
        best_checkpoint=None,
        diagnosis=None,
        version=0,
    )
