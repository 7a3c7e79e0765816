from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence

import pytest
from rich.console import Console

from curvewatch_service.follow import Change
from curvewatch_service.schemas import EpochView
from curvewatch_service.watching import JsonWatcher, LineWatcher, LiveWatcher, show_all
from views_support import curve, run_view

EPOCHS = curve()


def change(
    known: Sequence[EpochView],
    new: int = 0,
    *,
    state: str = "RUNNING",
    reason: str = "it trains",
    away: str = "",
) -> Change:
    run = run_view(state=state, reason=reason, epochs=known)
    return Change(run=run, epochs=tuple(known), new_epochs=tuple(known[len(known) - new :]), away=away)


STORY = (
    change([], state="QUEUED", reason="waits for room on the cluster"),
    change([], state="QUEUED", reason="waits for room on the cluster"),
    change([], state="STARTING", reason="the cluster starts its workers"),
    change(EPOCHS[:2], 2),
    change(EPOCHS[:2], away="no service answers"),
    change(EPOCHS[:3], 1),
    change(EPOCHS[:3], state="SUCCEEDED", reason="all epochs are done"),
)


def test_without_a_terminal_it_is_one_line_an_epoch_and_one_a_state() -> None:
    file = io.StringIO()
    last = show_all(iter(STORY), LineWatcher(Console(file=file, width=40, markup=False, highlight=False)))
    assert last is STORY[-1]
    assert file.getvalue().splitlines() == [
        "digits-1a2b3c QUEUED: waits for room on the cluster",
        "digits-1a2b3c STARTING: the cluster starts its workers",
        "digits-1a2b3c RUNNING: it trains",
        "epoch 1/12  train 1.6980  validation 1.8530  accuracy 0.3823  best 1.8530 (epoch 1)",
        "epoch 2/12  train 1.2309  validation 1.4009  accuracy 0.5330  best 1.4009 (epoch 2)",
        "waiting: no service answers",
        "digits-1a2b3c RUNNING: it trains",
        "epoch 3/12  train 0.8961  validation 1.0911  accuracy 0.6363  best 1.0911 (epoch 3)",
        "digits-1a2b3c SUCCEEDED: all epochs are done",
    ]


def test_json_lines_tell_states_epochs_absence_and_the_end() -> None:
    file = io.StringIO()
    show_all(iter(STORY), JsonWatcher(file))
    lines = [json.loads(line) for line in file.getvalue().splitlines()]
    assert [line["kind"] for line in lines] == [
        *("state", "state", "epoch", "epoch", "state", "away", "epoch", "state", "end")
    ]
    assert [line["epoch"] for line in lines if line["kind"] == "epoch"] == [1, 2, 3]
    assert lines[2]["validation"]["receipt"]["exact"] is True
    assert lines[-1]["run"]["state"] == "SUCCEEDED"


def drawn(*changes: Change) -> str:
    """Return the last picture that a terminal of 100 columns got."""
    file = io.StringIO()
    console = Console(
        file=file, force_terminal=True, width=100, height=20, color_system=None, legacy_windows=False
    )
    watcher = LiveWatcher(console)
    for one in changes:
        watcher.show(one)
    console.print(watcher)
    return file.getvalue()


def interrupted() -> Iterator[Change]:
    yield STORY[3]
    raise KeyboardInterrupt


def test_a_terminal_is_left_as_it_was_also_when_watching_is_interrupted() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=100, height=20)
    with pytest.raises(KeyboardInterrupt):
        show_all(interrupted(), LiveWatcher(console))
    hidden, shown = "\x1b[?25l", "\x1b[?25h"
    assert file.getvalue().rindex(shown) > file.getvalue().rindex(hidden)


def test_before_the_first_epoch_a_terminal_sees_the_state_and_why() -> None:
    first, second = drawn(STORY[0]).splitlines()
    assert "digits QUEUED" in first
    assert "0 of 12" in " ".join(first.split())
    assert second.strip() == "waits for room on the cluster"


def test_a_terminal_sees_progress_losses_best_and_time_left() -> None:
    first, second = drawn(*STORY[:4]).splitlines()
    assert "RUNNING" in first
    assert " 2 of 12" in first
    assert "20 s left" in first
    assert second.strip() == "train 1.2309  validation 1.4009  accuracy 0.5330  best 1.4009 (epoch 2)"


def test_a_terminal_sees_that_the_service_is_away_and_back() -> None:
    assert drawn(*STORY[:5]).splitlines()[1].strip() == "no service answers"
    assert "validation 1.0911" in drawn(*STORY[:6]).splitlines()[1]
