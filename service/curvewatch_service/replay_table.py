"""What a policy would have done on past runs, as a terminal shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from rich.console import JustifyMethod
from rich.table import Table

from curvewatch_service.printable import printable
from curvewatch_service.terminal import counted, number, spent

_COLUMNS: Final[tuple[tuple[str, JustifyMethod], ...]] = (
    ("RUN", "left"),
    ("EPOCHS", "right"),
    ("IT WOULD", "left"),
    ("AFTER", "right"),
    ("SAVED", "left"),
    ("COST", "right"),
)
_WORDS: Final = {
    None: "nothing",
    "stop": "stop",
    "fail": "end as failed",
    "rescue": "rescue",
    "reduce_lr": "lower the learning rate",
}


def replay_table(answers: Sequence[dict[str, Any]]) -> Table:
    """Draw one line a run."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name, justify in _COLUMNS:
        table.add_column(name, justify=justify, overflow="fold")
    for answer in answers:
        saved = answer["savings"]
        table.add_row(
            printable(answer["run_id"]),
            str(answer["epochs"]),
            printable(answer["problem"]) if answer["problem"] else _WORDS[answer["deed"]],
            "-" if answer["epoch"] is None else str(answer["epoch"]),
            ", ".join([counted(saved["epochs"], "epoch"), *_spent(saved)]) if saved else "-",
            _cost(saved),
        )
    return table


def replay_total(answers: Sequence[dict[str, Any]]) -> str:
    """Say in one sentence what it comes to."""
    ended = [answer["savings"] for answer in answers if answer["savings"]]
    epochs, saved = sum(answer["epochs"] for answer in answers), sum(one["epochs"] for one in ended)
    changed = sum(answer["deed"] in ("rescue", "reduce_lr") for answer in answers)
    # None: it would have ended without any finite validation loss.
    costly = sum(one["loss"] is None or one["loss"] > 0 for one in ended)
    parts = [
        f"Of {counted(len(answers), 'run')} it would have ended {len(ended)} early and saved {saved} of "
        f"{counted(epochs, 'epoch')}"
    ]
    total = {name: sum(one[name] or 0.0 for one in ended) for name in ("seconds", "gpu_hours")}
    if total["seconds"]:
        parts.append(f" ({', '.join(_spent(total))})")
    parts.append(
        f"; {counted(costly, 'run')} of these found a better validation loss later." if costly else "."
    )
    if changed:
        parts.append(f" What would have come of {counted(changed, 'intervention')} nobody knows.")
    return "".join(parts)


def _cost(saved: Mapping[str, Any] | None) -> str:
    if saved is None or saved["loss"] == 0:
        return "-"
    return "no finite loss" if saved["loss"] is None else number(saved["loss"])


def _spent(saved: Mapping[str, Any]) -> list[str]:
    return spent(saved["seconds"] or None, saved["gpu_hours"] or None)
