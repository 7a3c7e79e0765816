"""What others wrote is shown in a terminal and never obeyed."""

from __future__ import annotations

import io

import pytest
from rich.console import Group
from rich.text import Text

from curvewatch_service import terminal
from curvewatch_service.follow import Change
from curvewatch_service.printable import PrintableConsole, colored, printable
from curvewatch_service.schemas import EventView
from curvewatch_service.watching import LineWatcher, LiveWatcher
from views_support import BEGIN, curve, diagnosis_view, run_view

EVIL = "a\x1b]0;owned\x07b\x1b[2Jc\x9b1Ad\u202ee\rf"


def console(*, colors: bool) -> PrintableConsole:
    return PrintableConsole(
        file=io.StringIO(),
        width=200,
        force_terminal=colors,
        markup=False,
        highlight=False,
        legacy_windows=False,
    )


def written(on: PrintableConsole) -> str:
    assert isinstance(on.file, io.StringIO)
    return on.file.getvalue()


@pytest.mark.parametrize("text", ["", "plain", "two\nlines\tand a tab", "ünï ⣿ 漢字 \u00a0 \u3000 ━"])
def test_what_only_shows_stays_as_it_is(text: str) -> None:
    assert printable(text) == text == colored(text)


def test_what_a_terminal_obeys_is_replaced() -> None:
    assert printable(EVIL) == "a�]0;owned�b�[2Jc�1Ad�e�f"
    assert colored("\x1b[1;31mred\x1b[0m\x1b[2J\x1b]8;;file:///\x1b\\x\x1b[") == "\x1b[1;31mred\x1b[0mx�["


@pytest.mark.parametrize("colors", [True, False])
def test_no_view_of_a_run_passes_a_control_code_on(colors: bool) -> None:
    on = console(colors=colors)
    diagnosis = diagnosis_view()
    evidence = diagnosis.evidence[0].model_copy(update={"message": EVIL})
    diagnosis = diagnosis.model_copy(
        update={"verdict": EVIL, "summary": EVIL, "advice": EVIL, "evidence": [evidence]}
    )
    run = run_view(state="FAILED", reason=EVIL, epochs=curve(), traceback=EVIL)
    run = run.model_copy(
        update={"name": EVIL, "owner": EVIL, "labels": {EVIL: EVIL}, "diagnosis": diagnosis, "verdict": EVIL}
    )
    event = EventView(time=BEGIN, reason=EVIL, message=EVIL, actor=EVIL)
    on.print(
        Group(
            terminal.run_facts(run),
            terminal.runs_table([run]),
            terminal.events_table([event]),
            terminal.ending(run, curve(), width=80, color=colors),
            Text.from_ansi(colored(EVIL)),
        )
    )
    LineWatcher(on).show(Change(run=run, epochs=(), new_epochs=()))
    shown = written(on)
    assert shown.count("�") > 20
    for code in ("\x1b]", "\x07", "\x1b[2J", "\x9b", "\u202e", "\r"):
        assert code not in shown
    assert ("\x1b[" in shown) is colors


def test_the_live_view_obeys_neither_codes_nor_markup() -> None:
    on = console(colors=True)
    run = run_view(state="QUEUED", reason=EVIL).model_copy(update={"name": f"[link=file:///]x[/]{EVIL}"})
    with LiveWatcher(on) as watcher:
        watcher.show(Change(run=run, epochs=(), new_epochs=()))
    shown = written(on)
    assert "[link=file:///]x[/]a�]0;owned" in shown
    for code in ("\x1b]", "\x07", "\x9b", "\u202e"):
        assert code not in shown
