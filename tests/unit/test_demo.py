from __future__ import annotations

import io
import signal
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from curvewatch_service import demo
from curvewatch_service.demo_service import DemoError
from curvewatch_service.follow import Change
from curvewatch_service.schemas import EpochView
from views_support import curve, diagnosis_view, epoch_view, run_view

GOOD, OVERFIT = demo.EXPECTATIONS


def ending(verdict: str, *, state: str = "SUCCEEDED", epochs: list[EpochView] | None = None) -> Change:
    known = curve() if epochs is None else epochs
    run = run_view(state=state, reason="because", epochs=known, diagnosis=diagnosis_view(verdict))
    return Change(run=run, epochs=tuple(known), new_epochs=())


def test_the_right_verdict_with_exact_receipts_is_no_failure() -> None:
    assert list(demo._failures(ending("good_fit"), GOOD)) == []
    assert list(demo._failures(ending("overfitting"), OVERFIT)) == []


@pytest.mark.parametrize(
    ("change", "failure"),
    [
        (ending("plateau"), "digits must be good_fit, the verdict is plateau"),
        (ending("good_fit", state="FAILED"), "digits ended FAILED: because"),
        (
            ending("good_fit", epochs=[epoch_view(1, 1.0, 1.0, exact=False)]),
            "digits: not every receipt is exact",
        ),
        (ending("good_fit", epochs=[]), "digits: not every receipt is exact"),
    ],
)
def test_each_way_to_go_wrong_is_one_failure(change: Change, failure: str) -> None:
    assert list(demo._failures(change, GOOD)) == [failure]


EXPOSITION = """\
# HELP curvewatch_loss Global loss of the latest epoch.
# TYPE curvewatch_loss gauge
curvewatch_loss{run="digits",run_id="digits-1",split="train"} 0.25
curvewatch_loss{run="digits",run_id="digits-10",split="train"} 0.75
curvewatch_verdict{run="digits",run_id="digits-1",verdict="good_fit"} 1.0
curvewatch_verdict{run="digits",run_id="digits-1",verdict="plateau"} 0.0
curvewatch_receipt_exact{run="digits",run_id="digits-1",split="train"} 0.0
curvewatch_world_size{run="digits",run_id="digits-1"} 2.0
process_cpu_seconds_total 3.0
"""


def test_of_the_metrics_only_what_shows_the_curve_of_the_run_is_shown() -> None:
    assert list(demo._metric_lines(EXPOSITION, "digits-1")) == [
        'curvewatch_loss{run="digits",run_id="digits-1",split="train"} 0.25',
        'curvewatch_verdict{run="digits",run_id="digits-1",verdict="good_fit"} 1.0',
        'curvewatch_receipt_exact{run="digits",run_id="digits-1",split="train"} 0.0',
    ]


@pytest.mark.parametrize("before", [signal.SIG_DFL, signal.SIG_IGN])
def test_the_end_of_the_terminal_ends_the_demo_unless_it_is_to_be_ignored(before: signal.Handlers) -> None:
    """`nohup` starts a program with the signal ignored."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        signal.signal(signal.SIGHUP, before)
        demo._end_in_order_when_told()
        expected = signal.SIG_IGN if before is signal.SIG_IGN else signal.default_int_handler
        assert signal.getsignal(signal.SIGHUP) is expected
        assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


@pytest.mark.parametrize("expected", demo.EXPECTATIONS, ids=lambda expected: expected.example)
def test_the_examples_are_found_and_run_on_two_workers(expected: demo.Expectation) -> None:
    folder = demo._example(expected.example)
    job = yaml.safe_load(demo._on_workers(folder, 2))
    assert job["scaling"]["workers"] == 2
    assert {**job, "scaling": None} == {**yaml.safe_load(folder.text), "scaling": None}


def test_outside_of_a_checkout_it_is_told_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "__file__", str(tmp_path / "site-packages" / "curvewatch_service" / "demo.py"))
    with pytest.raises(DemoError, match=r"no examples/digits in .*; the examples come with the source"):
        demo.run_demo(Console(file=io.StringIO()), keep=False)
