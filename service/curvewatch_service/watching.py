"""Show the changes of a run as they come: live in a terminal, one line each in a pipe, or as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import TracebackType
from typing import IO, Any, Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
)
from rich.text import Text

from curvewatch_service import terminal
from curvewatch_service.follow import Change


class Watcher(Protocol):
    """Something that shows changes; entered before the first, left after the last."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def show(self, change: Change) -> None:
        """Show one change."""


def show_all(changes: Iterator[Change], watcher: Watcher) -> Change:
    """Show every change and return the last one, with the run in a terminal state."""
    with watcher:
        # `follow` yields at least the run as it is now.
        last = next(changes)
        watcher.show(last)
        for last in changes:
            watcher.show(last)
    return last


class _Plain:
    """A watcher that writes line by line has nothing to open or close."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass


class LineWatcher(_Plain):
    """Write one line for each epoch and each change of state; no control codes in a pipe."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status = ""

    def show(self, change: Change) -> None:
        """Write what is new."""
        run = change.run
        if not change.ended:
            self._show_status(change)
        for epoch in change.new_epochs:
            self._line(terminal.epoch_line(epoch, change.epochs, run.epochs_planned))
        if change.ended:
            self._show_status(change)

    def _show_status(self, change: Change) -> None:
        run = change.run
        status = f"waiting: {change.away}" if change.away else f"{run.run_id} {run.state}: {run.reason}"
        if status != self._status:
            self._line(status)
            self._status = status

    def _line(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)
        self._console.file.flush()


class JsonWatcher(_Plain):
    """Write JSON lines, told apart by `kind`: `state`, `epoch`, `away` and, once and last, `end`."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._state = ("", "")

    def show(self, change: Change) -> None:
        """Write what is new."""
        run = change.run
        for epoch in change.new_epochs:
            self._write("epoch", epoch.model_dump(mode="json"))
        if change.away:
            self._write("away", {"message": change.away})
        if (run.state, run.reason) != self._state:
            self._state = (run.state, run.reason)
            self._write("state", {"run_id": run.run_id, "state": run.state, "reason": run.reason})
        if change.ended:
            self._write("end", {"run": run.model_dump(mode="json")})

    def _write(self, kind: str, content: dict[str, Any]) -> None:
        self._file.write(json.dumps({"kind": kind, **content}, allow_nan=False) + "\n")
        self._file.flush()


class LiveWatcher:
    """Draw a progress bar that stays in its place, with the latest numbers below it."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            TextColumn("{task.fields[state]}"),
            BarColumn(),
            TextColumn("epoch"),
            MofNCompleteColumn(separator=" of "),
            TaskProgressColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
        )
        self._task = self._progress.add_task("", total=None, state="", left="")
        self._below = Text()
        self._live = Live(get_renderable=self.__rich__, console=console, refresh_per_second=8, transient=True)

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._live.__exit__(exc_type, exc, traceback)

    def show(self, change: Change) -> None:
        """Redraw with what is new."""
        run, epochs = change.run, change.epochs
        left = terminal.seconds_left(epochs, run.epochs_planned)
        running = run.state == "RUNNING" and left is not None
        self._progress.update(
            self._task,
            description=run.name,
            completed=run.epoch,
            total=run.epochs_planned,
            state=f"[{terminal.STATE_STYLES.get(run.state, '')}]{escape(run.state)}[/]",
            left=f"{terminal.span(left)} left" if running and left is not None else "",
        )
        if change.away:
            self._below = Text(f"  {change.away}", "yellow")
        elif epochs and run.state == "RUNNING":
            self._below = Text(f"  {terminal.losses(epochs[-1], terminal.best_epoch(epochs))}")
        else:
            self._below = Text(f"  {run.reason}", "dim")

    def __rich__(self) -> RenderableType:
        return Group(self._progress, self._below)
