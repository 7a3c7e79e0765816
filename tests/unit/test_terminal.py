from __future__ import annotations

import io
from datetime import timedelta

import pytest
from rich.console import Console, RenderableType

from curvewatch_service import terminal
from curvewatch_service.schemas import EventView
from views_support import BEGIN, OVERFIT, curve, diagnosis_view, epoch_view, run_view


def plain(renderable: RenderableType, width: int = 100) -> str:
    """Draw as for a pipe."""
    file = io.StringIO()
    Console(file=file, width=width, markup=False, highlight=False, emoji=False).print(renderable)
    return file.getvalue()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (float("nan"), "-"),
        (float("inf"), "-"),
        (0.0, "0.0000"),
        (0.12345, "0.1235"),
        (12.3456, "12.3456"),
        (1234.567, "1234.57"),
        (0.00012345, "1.234e-04"),
        (-3.5e7, "-3.500e+07"),
    ],
)
def test_numbers_are_short_at_every_size(value: float | None, text: str) -> None:
    assert terminal.number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (-5, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (7500, "2 h 05 min"),
        (273_600, "3 d 4 h"),
    ],
)
def test_spans_are_in_two_units_at_most(seconds: float, text: str) -> None:
    assert terminal.span(seconds) == text


def test_time_left_is_the_remaining_epochs_at_the_pace_of_the_latest() -> None:
    epochs = [epoch.model_copy(update={"duration_seconds": 100.0}) for epoch in curve()[:3]] + curve()[3:8]
    assert terminal.seconds_left(epochs, planned=12) == 4 * 2.0
    assert terminal.seconds_left([], planned=12) is None


def test_the_best_epoch_is_the_first_of_the_lowest_finite_validation_loss() -> None:
    epochs = curve([(1.0, None), (1.0, 0.5), (0.9, 0.4), (0.8, 0.4)])
    best = terminal.best_epoch(epochs)
    assert best is not None
    assert best.epoch == 3
    assert terminal.best_epoch(curve([(1.0, None)])) is None


def test_an_epoch_is_one_line_with_the_best_so_far() -> None:
    epochs = curve()
    line = terminal.epoch_line(epochs[8], epochs, 12)
    assert line == "epoch 9/12  train 0.1645  validation 0.7195  accuracy 0.7602  best 0.6680 (epoch 7)"
    assert terminal.epoch_line(epochs[1], epochs, 12).endswith("best 1.4009 (epoch 2)")


def test_an_epoch_of_a_later_attempt_or_without_exact_receipt_says_so() -> None:
    epoch = epoch_view(2, 0.5, 0.6, attempt=3, exact=False)
    line = terminal.epoch_line(epoch, [epoch], 4)
    assert line.startswith("epoch 2/4 (attempt 3)  ")
    assert line.endswith("  receipt NOT exact")


def test_means_of_a_framework_have_no_receipt() -> None:
    epoch = epoch_view(2, 0.5, 0.6, exact=False)
    receipt = epoch.train.receipt.model_copy(update={"reported_by": "keras"})
    epoch = epoch.model_copy(update={"train": epoch.train.model_copy(update={"receipt": receipt})})

    assert terminal.epoch_line(epoch, [epoch], 4).endswith("  means of keras")
    assert (
        plain(terminal.receipt_table([epoch]))
        == "No receipt: the numbers are the means that keras reports.\n"
    )


def test_the_list_of_runs_has_each_run_on_one_line_of_80_columns() -> None:
    epochs = curve()
    runs = [
        run_view(
            run_id="digits-overfit-ohohgljz", state="SUCCEEDED", epochs=epochs, diagnosis=diagnosis_view()
        ),
        run_view(run_id="digits-2", state="QUEUED"),
    ]
    lines = plain(
        terminal.runs_table(runs, now=BEGIN + timedelta(minutes=7, seconds=5)), width=80
    ).splitlines()
    assert [line.split() for line in lines] == [
        ["RUN", "STATE", "EPOCH", "TRAIN", "VAL", "VERDICT", "AGE"],
        ["digits-overfit-ohohgljz", "SUCCEEDED", "12/12", "0.0921", "0.9621", "overfitting", "7", "min"],
        ["digits-2", "QUEUED", "0/12", "-", "-", "-", "7", "min"],
    ]


def test_the_facts_of_a_run_leave_out_what_is_not_known() -> None:
    text = plain(terminal.run_facts(run_view(state="FAILED", reason="its code raised ValueError")))
    assert "FAILED  its code raised ValueError" in text
    assert "2 workers, 1 CPU each" in text
    assert "team=vision" in text
    assert "finished" not in text
    assert "None" not in text


def test_text_of_others_is_shown_and_not_interpreted() -> None:
    event = EventView(time=BEGIN, reason="note", message="[red]loss[/red] [/] :boom:", actor="worker")
    assert "[red]loss[/red] [/] :boom:" in plain(terminal.events_table([event]))


def test_the_verdict_has_summary_evidence_and_advice() -> None:
    lines = plain(terminal.verdict_text(diagnosis_view()), width=32).splitlines()
    assert [line.rstrip() for line in lines] == [
        "Verdict: overfitting",
        "   Validation loss rises while",
        "   train loss falls.",
        " - validation loss rose from",
        "   0.67 to 0.96",
        "   Advice: Stop at epoch 7.",
    ]
    sure = diagnosis_view().model_copy(update={"confidence": 0.938})
    assert plain(terminal.verdict_text(sure)).startswith("Verdict: overfitting, confidence 94%\n")
    assert plain(terminal.verdict_text(None)) == "No verdict: no epoch has finished.\n"


def test_the_receipt_counts_samples_and_exact_epochs() -> None:
    epochs = [*curve()[:2], epoch_view(3, 0.5, 0.6, exact=False)]
    lines = plain(terminal.receipt_table(epochs)).splitlines()
    assert lines[1].split() == ["train", "1,436", "1,436", "0", "2", "2", "of", "3"]
    assert lines[2].split() == ["validation", "361", "361", "0", "2", "3", "of", "3"]


def drawn(
    losses: list[tuple[float | None, float | None]], *, color: bool = False, width: int = 76
) -> list[str]:
    return str(terminal.curve_chart(curve(losses), width=width, color=color).plain).splitlines()


def test_the_curve_marks_each_epoch_of_both_splits_and_the_best() -> None:
    legend, *chart = drawn(list(OVERFIT))
    assert legend == "loss by epoch   o train   x validation   * best 0.6680, epoch 7"
    area = "\n".join(line.partition("│")[2] or line.partition("┤")[2] for line in chart)
    assert area.count("o") == 12
    # The best epoch's cross is under its star.
    assert (area.count("x"), area.count("*")) == (11, 1)
    assert chart[-1].split() == ["1", "2", "4", "6", "8", "10", "12"]


def test_the_curve_in_color_is_a_line_and_has_no_marks_of_the_plain_one() -> None:
    _, *chart = drawn(list(OVERFIT), color=True)
    area = "".join(chart)
    assert any("\u2800" < character <= "\u28ff" for character in area)
    assert "x" not in area


@pytest.mark.parametrize("width", [40, 76, 100])
def test_the_curve_keeps_to_its_width_whatever_the_terminal_says(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    _, *chart, _ticks = drawn(list(OVERFIT), width=width)
    assert {len(line) for line in chart} == {width}


def test_a_curve_over_orders_of_magnitude_is_logarithmic() -> None:
    assert drawn([(10.0**-i, 10.0**-i) for i in range(6)])[0].startswith("loss by epoch, logarithmic")
    assert "logarithmic" not in drawn([(1.0, 0.0), (0.5, 0.2)])[0]


@pytest.mark.parametrize(
    "losses",
    [[(1.0, 1.0)], [(1.0, None), (None, 1.0)], [(1.0, None)], [(2.0, 2.0), (2.0, 2.0)], [(-1.0, -500.0)]],
)
def test_odd_curves_are_drawn(losses: list[tuple[float | None, float | None]]) -> None:
    assert len(drawn(losses)) > 10


def test_a_curve_without_a_finite_loss_says_so() -> None:
    assert drawn([(None, None)]) == ["No curve: no epoch has a finite loss."]


def test_an_ending_has_curve_verdict_and_receipt() -> None:
    epochs = curve()
    run = run_view(
        state="SUCCEEDED", reason="all 12 epochs are trained", epochs=epochs, diagnosis=diagnosis_view()
    )
    text = plain(terminal.ending(run, epochs, width=80, color=False))
    assert text.startswith("SUCCEEDED  all 12 epochs are trained\n")
    assert text.index("loss by epoch") < text.index("Verdict: overfitting") < text.index("RECEIPT")
    assert "\x1b" not in text


def test_the_ending_of_a_failed_run_has_its_traceback_without_control_codes() -> None:
    run = run_view(
        state="FAILED", reason="its code raised", traceback="Traceback:\n\x1b[2J  ValueError: [bold]no[/]"
    )
    text = plain(terminal.ending(run, [], width=80, color=False))
    assert "ValueError: [bold]no[/]" in text
    assert "\x1b" not in text
    assert "No curve" not in text
