"""What a policy would have done on past runs, as a terminal shows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from curvewatch_service.printable import printable
from curvewatch_service.terminal import number, span

_WORDS = {
    None: "nothing",
    "stop": "stop",
    "fail": "end as failed",
    "rescue": "rescue",
    "reduce_lr": "lower the learning rate",
}


def replay_table(answers: Sequence[dict[str, Any]]) -> Table:
    """Draw one line a run."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name, justify in (
        ("RUN", "left"),
        ("EPOCHS", "right"),
        ("IT WOULD", "left"),
        ("AFTER", "right"),
        ("SAVED", "left"),
        ("COST", "right"),
    ):
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for answer in answers:
        saved = answer["savings"]
        table.add_row(
            printable(answer["run_id"]),
            str(answer["epochs"]),
            printable(answer["problem"]) if answer["problem"] else _WORDS[answer["deed"]],
            "-" if answer["epoch"] is None else str(answer["epoch"]),
            _saved(saved) if saved else "-",
            number(saved["loss"]) if saved and saved["loss"] else "-",
        )
    return table


def replay_total(answers: Sequence[dict[str, Any]]) -> str:
    """Say in one sentence what it comes to."""
    ended = [answer["savings"] for answer in answers if answer["savings"]]
    epochs, saved = sum(answer["epochs"] for answer in answers), sum(one["epochs"] for one in ended)
    changed = sum(answer["deed"] in ("rescue", "reduce_lr") for answer in answers)
    costly = sum(one["loss"] > 0 for one in ended)
    parts = [
        f"Of {_counted(len(answers), 'run')} it would have ended {len(ended)} early and saved {saved} of "
        f"{_counted(epochs, 'epoch')}"
    ]
    seconds, gpu_hours = (sum(one[name] or 0.0 for one in ended) for name in ("seconds", "gpu_hours"))
    if seconds:
        parts.append(f" ({span(seconds)}" + (f", {gpu_hours:.3g} GPU-hours" if gpu_hours else "") + ")")
    parts.append(
        f"; {_counted(costly, 'run')} of these found a better validation loss later." if costly else "."
    )
    if changed:
        parts.append(f" What would have come of {_counted(changed, 'intervention')} nobody knows.")
    return "".join(parts)


def _saved(savings: dict[str, Any]) -> str:
    parts = [_counted(savings["epochs"], "epoch")]
    if savings["seconds"]:
        parts.append(span(savings["seconds"]))
    if savings["gpu_hours"]:
        parts.append(f"{savings['gpu_hours']:.3g} GPU-hours")
    return ", ".join(parts)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
