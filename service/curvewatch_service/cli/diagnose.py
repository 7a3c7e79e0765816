"""The `diagnose` command: anybody's curve, without any service."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from curvewatch_service.cli.options import EXIT_USAGE, JsonOption, output, print_json

if TYPE_CHECKING:
    from curvewatch_service.curve_files import Columns, NamedCurve
    from curvewatch_service.errors import CurveFileError

_CHUNK = 64
"""Curves that are read in one go; fewer are not worth a second process."""
_SLOPE_EPOCHS = 5


def diagnose(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...",
            help="CSV of Keras, Lightning or Ultralytics, or with named columns; Keras' history or Hugging Face's "
            "trainer_state.json; runs of Weights & Biases (wandb/, *.wandb) and MLflow (mlruns/, mlflow.db), and what "
            "their pages export; rows as JSON or JSON lines; TensorBoard event files or their folder; JSON lines with "
            "a curve each (`id`, `train_loss`, `val_loss`, `val_acc`, `lr`). `-` reads these from standard input.",
        ),
    ],
    train: Annotated[str | None, typer.Option(metavar="COLUMN", help="Column of the train loss.")] = None,
    validation: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column of the validation loss.")
    ] = None,
    online: Annotated[
        bool,
        typer.Option(
            "--online",
            help="Read each curve epoch by epoch, and tell when each verdict was raised and when to stop.",
        ),
    ] = False,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a report with the annotated curves.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Read learning curves of any tool: verdict, evidence, and what to do."""
    from curvewatch_service.curve_files import Columns

    refused: list[CurveFileError] = []
    named = list(_curves(files, Columns(train=train, validation=validation), refused))
    for error in refused:
        _tell(f"Error: {error}")
    if not named:
        raise typer.Exit(EXIT_USAGE)
    described = [] if online and html is None else list(_on_all_cores(_described, named))
    if html is not None:
        from curvewatch_service.curve_report import write_report

        write_report(html, list(zip(named, described, strict=True)))
    if online or as_json:
        # Beside the answers, which hold nothing but what is promised.
        for one in named:
            if one.left_out:
                _tell(f"{one.name}: {_left_out(one)}")
    if online:
        for answer in _on_all_cores(_online_answer, named):
            print_json(json.dumps(answer)) if as_json else _print_answer(answer)
    elif as_json:
        for one, said in zip(named, described, strict=True):
            print_json(json.dumps({"id": one.key, **said}))
    else:
        _print(named, described)
    if refused:
        raise typer.Exit(EXIT_USAGE)


def _curves(files: list[Path], columns: Columns, refused: list[CurveFileError]) -> Iterator[NamedCurve]:
    """Read the curves of all files; one that cannot be read costs the others nothing."""
    from curvewatch_service.curve_files import (
        HalfCurveError,
        curves_of_lines,
        join_charts,
        read_curves,
    )
    from curvewatch_service.errors import CurveFileError

    charts: list[HalfCurveError] = []
    for path in files:
        try:
            if str(path) != "-":
                yield from read_curves(path, columns, tell=_tell)
            elif curves := curves_of_lines(sys.stdin, tell=_tell):
                yield from curves
            else:
                raise CurveFileError("standard input has no curve; give one as JSON a line")
        except HalfCurveError as chart:
            charts.append(chart)
        except CurveFileError as error:
            refused.append(error)
    try:
        if charts:
            yield from join_charts(charts, columns, tell=_tell)
    except CurveFileError as error:
        refused.append(error)


def _tell(sentence: str) -> None:
    from curvewatch_service.printable import printable

    typer.echo(printable(sentence), err=True)


def _on_all_cores(
    answer: Callable[[NamedCurve], dict[str, Any]], curves: Sequence[NamedCurve]
) -> Iterator[dict[str, Any]]:
    """Answer for each curve, in their order; for many on all cores."""
    from concurrent.futures import ProcessPoolExecutor

    from rich.console import Console
    from rich.progress import track

    if len(curves) <= _CHUNK:
        yield from map(answer, curves)
        return
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        yield from track(
            pool.map(answer, curves, chunksize=_CHUNK),
            "Reading curves",
            total=len(curves),
            console=Console(stderr=True),
            disable=not (sys.stderr.isatty() and not sys.stdout.isatty()),
        )


def _described(one: NamedCurve) -> dict[str, Any]:
    from curvewatch_service.curves import describe_curve, read_curve

    reading = read_curve(one.curve)
    said = describe_curve(one.curve, window=_SLOPE_EPOCHS, said=reading.diagnosis)
    return {
        **said,
        "savings": _saved(one, said["best_epoch"]),
        "stop_epoch": reading.stop_epoch,
        "stop_savings": _saved(one, reading.stop_epoch),
    }


def _saved(one: NamedCurve, stop: int | None) -> dict[str, Any] | None:
    """Return what a stop after an epoch would have saved; None without one, or when that is the last."""
    from curvewatch_service.views import savings_view
    from curvewatch_workers.diagnosis import savings

    if stop is None or stop == len(one.curve):
        return None
    view = savings_view(savings(one.curve, stop, seconds=one.seconds), stop)
    saved: dict[str, Any] = json.loads(view.model_dump_json())
    return saved


def _online_answer(one: NamedCurve) -> dict[str, Any]:
    from curvewatch_service.curves import read_curve

    reading = read_curve(one.curve)
    return {
        "id": one.key,
        "verdict": str(reading.diagnosis.verdict),
        "best_epoch": reading.diagnosis.best_epoch,
        "stop_epoch": reading.stop_epoch,
        "first": reading.first,
    }


def _left_out(one: NamedCurve) -> str:
    if one.left_out == 1:
        return "1 epoch lacks one of both losses and is left out; epochs are counted without it."
    return f"{one.left_out} epochs lack one of both losses and are left out; epochs are counted without them."


def _print_answer(answer: dict[str, Any]) -> None:
    raised = ", ".join(f"{verdict} at epoch {epoch}" for verdict, epoch in answer["first"].items() if epoch)
    stop = f"stop after epoch {answer['stop_epoch']}" if answer["stop_epoch"] else "no reason to stop"
    output().print(
        f"{answer['id']}: {answer['verdict']}; best epoch {answer['best_epoch']}, {stop}; first {raised}"
    )


def _print(named: Sequence[NamedCurve], described: Sequence[dict[str, Any]]) -> None:
    from curvewatch_service.schemas import SavingsView
    from curvewatch_service.terminal import loss_chart, saved_and_cost, verdict_text
    from curvewatch_service.views import diagnosis_view

    console = output()
    for number, (one, said) in enumerate(zip(named, described, strict=True)):
        if number:
            console.print()
        console.print(one.name)
        if one.left_out:
            console.print(_left_out(one))
        train, validation = (
            list(enumerate(losses, start=1)) for losses in (one.curve.train, one.curve.validation)
        )
        color = console.color_system is not None
        console.print(loss_chart(train, validation, width=min(console.width, 100), color=color))
        console.print(verdict_text(diagnosis_view(said)))
        if said["stop_savings"] is not None:
            saved = SavingsView(**said["stop_savings"])
            console.print(
                f"A stop as soon as it was advised, after epoch {saved.stop_epoch}, would have saved "
                f"{saved_and_cost(saved)}."
            )
