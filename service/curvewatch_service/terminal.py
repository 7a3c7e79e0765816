"""How runs, curves, verdicts and receipts look in a terminal; nothing here prints."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from curvewatch_service.printable import colored
from curvewatch_service.schemas import (
    AlertView,
    DiagnosisView,
    EpochView,
    EventView,
    RunSummary,
    RunView,
    SavingsView,
    SplitView,
)

STATE_STYLES = {
    "QUEUED": "yellow",
    "STARTING": "cyan",
    "RUNNING": "cyan",
    "RESTARTING": "yellow",
    "STOPPING": "yellow",
    "SUCCEEDED": "green",
    "FAILED": "red",
    "STOPPED": "dim",
    "LOST": "red",
}
VERDICT_STYLES = {"good_fit": "green", "too_early": "dim", "diverging": "red", "not_finite": "red"}
_LOG_SCALE_FROM = 100.0
"""Ratio of the largest to the smallest loss from which the curve is drawn on a logarithmic axis."""
_ETA_EPOCHS = 5


def number(value: float | None) -> str:
    """Write a loss or a metric with four significant digits; a dash when there is none."""
    if value is None or not math.isfinite(value):
        return "-"
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.3e}"
    return f"{value:.4f}" if abs(value) < 100 else f"{value:.6g}"


def words(verdict: str | None) -> str:
    """Write a verdict as a person says it: `good fit`."""
    return verdict.replace("_", " ") if verdict else "-"


def span(seconds: float) -> str:
    """Write a length of time: `42 s`, `3 min 05 s`, `2 h 10 min`, `3 d 4 h`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def age(seconds: float) -> str:
    """Write a length of time in its largest unit: `42 s`, `3 min`, `2 h`, `5 d`."""
    return " ".join(span(seconds).split()[:2])


def progress(epoch: int, planned: int | None, between: str = "/") -> str:
    """Write how far a run is: `3/20`, or `3` where nobody has planned an end."""
    return str(epoch) if planned is None else f"{epoch}{between}{planned}"


def seconds_left(epochs: Sequence[EpochView], planned: int | None) -> float | None:
    """Estimate the seconds to the last planned epoch from the latest; None before the first, or without an end."""
    if not epochs or planned is None:
        return None
    latest = epochs[-_ETA_EPOCHS:]
    return (planned - epochs[-1].epoch) * sum(epoch.duration_seconds for epoch in latest) / len(latest)


def best_epoch(epochs: Sequence[EpochView]) -> EpochView | None:
    """Return the epoch of lowest validation loss, the first of equals; not one whose mean leaves samples out."""
    rated = [
        epoch
        for epoch in epochs
        if _finite(epoch.validation.loss) is not None and not epoch.validation.receipt.nonfinite_samples
    ]
    return min(rated, key=lambda epoch: (epoch.validation.loss, epoch.epoch), default=None)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def epoch_line(epoch: EpochView, epochs: Sequence[EpochView], planned: int | None) -> str:
    """Write one epoch as one line, for logs and pipes."""
    known = [other for other in epochs if other.epoch <= epoch.epoch]
    attempt = f" (attempt {epoch.attempt})" if epoch.attempt > 1 else ""
    receipt = epoch.train.receipt
    exact = receipt.exact and epoch.validation.receipt.exact
    doubt = f"  means of {receipt.reported_by}" if receipt.reported_by else "  receipt NOT exact"
    return f"epoch {progress(epoch.epoch, planned)}{attempt}  {losses(epoch, best_epoch(known))}" + (
        "" if exact else doubt
    )


def losses(epoch: EpochView, best: EpochView | None) -> str:
    """Write an epoch's losses, validation metrics and the best epoch so far."""
    parts = [f"train {number(epoch.train.loss)}", f"validation {number(epoch.validation.loss)}"]
    parts += [f"{name} {number(value)}" for name, value in epoch.validation.metrics.items()]
    if best is not None:
        parts.append(f"best {number(best.validation.loss)} (epoch {best.epoch})")
    return "  ".join(parts)


def runs_table(runs: Sequence[RunSummary], *, now: datetime | None = None) -> Table:
    """Draw a list of runs."""
    now = now or datetime.now(UTC)
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("RUN", overflow="fold")
    table.add_column("STATE", no_wrap=True)
    table.add_column("EPOCH", justify="right", no_wrap=True)
    table.add_column("TRAIN", justify="right", no_wrap=True)
    table.add_column("VAL", justify="right", no_wrap=True)
    table.add_column("VERDICT", no_wrap=True)
    table.add_column("AGE", justify="right", no_wrap=True)
    for run in runs:
        table.add_row(
            run.run_id,
            Text(run.state, STATE_STYLES.get(run.state, "")),
            progress(run.epoch, run.epochs_planned),
            number(run.train_loss),
            number(run.validation_loss),
            Text(words(run.verdict), VERDICT_STYLES.get(run.verdict or "", "yellow")),
            age((now - run.created_at) / timedelta(seconds=1)),
        )
    return table


def run_facts(run: RunView) -> Table:
    """Draw what is known of one run."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    scaling = run.spec.scaling
    asked = f"{scaling.workers_in_words}, {scaling.cpus_per_worker:g} CPU"
    asked += f" + {scaling.gpus_per_worker} GPU" if scaling.gpus_per_worker else ""
    asked += " each" if scaling.max_workers > 1 else ""
    asked += f"; now {run.world_size}" if scaling.elastic and run.world_size else ""
    elsewhere = run.spec.code.trained_by is not None
    facts: list[tuple[str, RenderableType | None]] = [
        ("run", run.run_id),
        ("state", Text.assemble((run.state, STATE_STYLES.get(run.state, "")), f"  {run.reason}")),
        ("epoch", progress(run.epoch, run.epochs_planned, " of ")),
        ("trained by" if elsewhere else "task", run.spec.code.entry),
        ("processes", str(run.world_size)) if elsewhere else ("workers", asked),
        ("owner", run.owner),
        ("created", when(run.created_at)),
        ("started", when(run.started_at) if run.started_at else None),
        ("finished", when(run.finished_at) if run.finished_at else None),
        ("attempt", str(run.attempt) if run.attempt > 1 else None),
        ("labels", ", ".join(f"{key}={value}" for key, value in sorted(run.labels.items())) or None),
        ("code", run.code_hash[:12] or None),
        ("Ray job", run.submission_id),
        ("checkpoint", run.checkpoint),
        ("best checkpoint", run.best_checkpoint),
    ]
    for name, value in facts:
        if value is not None:
            table.add_row(name, value)
    return table


def when(moment: datetime) -> str:
    """Write a time in the reader's own zone."""
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def events_table(events: Sequence[EventView]) -> Table:
    """Draw what happened to a run."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for event in events:
        table.add_row(when(event.time), event.reason, event.message)
    return table


def alerts_table(alerts: Sequence[AlertView]) -> Table:
    """Draw the alerts on a run: since when each fires, or from when to when it did."""
    table = Table.grid(padding=(0, 2, 0, 0))
    for _ in range(3):
        table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for alert in alerts:
        style = "" if alert.ended_at else "bold red" if alert.severity == "critical" else "bold yellow"
        until = f"until {when(alert.ended_at)}" if alert.ended_at else "fires"
        table.add_row(
            Text(alert.name, style), when(alert.started_at), until, Text(alert.description or alert.summary)
        )
    return table


def verdict_text(diagnosis: DiagnosisView | None) -> RenderableType:
    """Draw the verdict with its evidence and advice."""
    if diagnosis is None:
        return Text("No verdict: no epoch has finished.", "dim")
    style = VERDICT_STYLES.get(diagnosis.verdict, "yellow")
    # The second column keeps its indentation where a long sentence is wrapped.
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_row("", Text(diagnosis.summary))
    for evidence in diagnosis.evidence:
        table.add_row(" -", Text(evidence.message))
    if diagnosis.advice:
        table.add_row("", Text.assemble(("Advice: ", "bold"), diagnosis.advice))
    if diagnosis.savings is not None:
        table.add_row("", Text.assemble(("Savings: ", "bold"), best_stop(diagnosis.savings)))
    title = Text.assemble(("Verdict: ", "bold"), (words(diagnosis.verdict), f"bold {style}"))
    if diagnosis.confidence is not None:
        title.append(f", confidence {diagnosis.confidence:.0%}")
    return Group(title, table)


def best_stop(saved: SavingsView) -> str:
    """Write what stopping at the best epoch would have saved and cost."""
    return f"Stopping at the best epoch, {saved.stop_epoch}, would have saved {saved_and_cost(saved)}."


def counted(count: int, noun: str) -> str:
    """Write a number of things: `1 epoch`, `8 epochs`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def spent(seconds: float | None, gpu_hours: float | None) -> list[str]:
    """Write time and GPU-hours, where these are known."""
    parts = [] if seconds is None else [span(seconds)]
    return parts if gpu_hours is None else [*parts, f"{gpu_hours:.3g} GPU-hours"]


def saved_and_cost(saved: SavingsView) -> str:
    """Write what a stop saves and costs: `8 epochs (2 h 10 min, 8.67 GPU-hours) and cost nothing`."""
    parts, epochs = spent(saved.seconds, saved.gpu_hours), counted(saved.epochs, "epoch")
    saves = f"{epochs} ({', '.join(parts)})" if parts else epochs
    loss = _finite(saved.loss)
    if loss is None:
        return f"{saves} and left no epoch with a finite validation loss"
    return f"{saves} and cost {number(loss) + ' of validation loss' if loss else 'nothing'}"


def receipt_table(epochs: Sequence[EpochView]) -> RenderableType:
    """Draw what was counted, over all epochs."""
    if not epochs:
        return Text("No receipt: no epoch has finished.", "dim")
    framework = epochs[-1].train.receipt.reported_by
    if framework is not None:
        return Text(f"No receipt: the numbers are the means that {framework} reports.", "dim")
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0), title_justify="left")
    table.add_column("RECEIPT")
    for name in ("SAMPLES", "COUNTED", "NON-FINITE", "RANKS", "EXACT EPOCHS"):
        table.add_column(name, justify="right")
    for split in ("train", "validation"):
        parts: list[SplitView] = [getattr(epoch, split) for epoch in epochs]
        latest = parts[-1].receipt
        exact = sum(part.receipt.exact for part in parts)
        table.add_row(
            split,
            f"{latest.samples_expected:,}",
            f"{latest.samples_seen:,}",
            f"{sum(part.receipt.nonfinite_samples for part in parts):,}",
            str(latest.ranks),
            Text(f"{exact} of {len(parts)}", "green" if exact == len(parts) else "bold red"),
        )
    return table


def curve_chart(
    epochs: Sequence[EpochView], *, width: int = 76, height: int = 16, color: bool = True
) -> Text:
    """Draw train and validation loss by epoch, with the best epoch marked."""
    points = {
        split: [(epoch.epoch, getattr(epoch, split).loss) for epoch in epochs]
        for split in ("train", "validation")
    }
    return loss_chart(points["train"], points["validation"], width=width, height=height, color=color)


Points = Sequence[tuple[int, float | None]]
"""Epochs and their losses."""


def loss_chart(
    train: Points, validation: Points, *, width: int = 76, height: int = 16, color: bool = True
) -> Text:
    """Draw two losses by epoch, with the lowest validation loss marked.

    With color the lines differ by color, without by mark: `o` for train, `x` for validation.
    """
    from plotext import figure, marker, terminal

    series = [
        [(epoch, loss) for epoch, value in points if (loss := _finite(value)) is not None]
        for points in (train, validation)
    ]
    values = [loss for points in series for _, loss in points]
    if not values:
        return Text("No curve: no epoch has a finite loss.", "dim")
    terminal.limit(False, False)
    figure.clear()
    figure.theme("simple")
    figure.plot_size(width, height)
    for points, dot, hue in zip(series, "ox", ("blue+", "orange+"), strict=True):
        if points:
            mark = marker("braille", hue) if color else dot
            figure.draw(figure.signal(*zip(*points, strict=True), marker=mark).lines(color))
    best = min(series[1], key=lambda point: (point[1], point[0]), default=None)
    if best is not None:
        figure.draw(figure.signal([best[0]], [best[1]], marker=marker("*", "green+")))
    figure.ruler("x").ticks(_ticks(train[0][0], train[-1][0]))
    logarithmic = min(values) > 0 and max(values) / min(values) > _LOG_SCALE_FROM
    if logarithmic:
        figure.ruler("y").scale("log")
    drawn = figure.build().string(colorless=not color).rstrip()
    text = Text.from_ansi(drawn) if color else Text(drawn)
    return Text("\n").join([_legend(best, color=color, logarithmic=logarithmic), text])


def _legend(best: tuple[int, float] | None, *, color: bool, logarithmic: bool) -> Text:
    train, validation = ("━━", "━━") if color else ("o", "x")
    text = Text.assemble(
        ("loss by epoch" + (", logarithmic" if logarithmic else ""), "bold"),
        ("   " + train, "bright_blue"),
        " train   ",
        (validation, "bright_yellow"),
        " validation",
    )
    if best is not None:
        text.append("   *", "bold bright_green")
        text.append(f" best {number(best[1])}, epoch {best[0]}")
    return text


def _ticks(first: int, last: int, count: int = 8) -> list[int]:
    step = max(1, math.ceil((last - first) / count))
    return sorted({first, *range(-(-first // step) * step, last + 1, step), last})


def ending(run: RunView, epochs: Sequence[EpochView], *, width: int, color: bool) -> RenderableType:
    """Draw how a run ended: state and reason, curve, verdict, receipt."""
    state = Text.assemble((run.state, f"bold {STATE_STYLES.get(run.state, '')}"), f"  {run.reason}")
    parts: list[RenderableType] = [state]
    if epochs:
        parts += ["", curve_chart(epochs, width=min(width, 100), color=color)]
        parts += ["", verdict_text(run.diagnosis), "", receipt_table(epochs)]
    if run.traceback:
        parts += ["", Text("Traceback of the training code", "bold"), Text.from_ansi(colored(run.traceback))]
    return Group(*parts)
