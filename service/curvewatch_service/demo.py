"""The demo: two models on real data, one that fits well and one that overfits, and the proof of both."""

from __future__ import annotations

import contextlib
import re
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml
from rich.console import Console
from rich.text import Text

from curvewatch_service import terminal
from curvewatch_service.client import Client
from curvewatch_service.code import zip_folder
from curvewatch_service.demo_service import DemoError, DemoService
from curvewatch_service.follow import Change, follow
from curvewatch_service.job_folder import JobFolder, read_job_folder
from curvewatch_service.watching import LineWatcher, LiveWatcher, Watcher, show_all
from curvewatch_workers.diagnosis import Verdict

WORKERS = 2
RUN_SECONDS = 300.0
"""A run of the demo takes about half a minute on two cores; after this something is wrong."""
SHOWN_SERIES = (
    "curvewatch_epoch",
    "curvewatch_loss",
    "curvewatch_metric",
    "curvewatch_best_validation_loss",
    "curvewatch_best_epoch",
    "curvewatch_generalization_gap",
    "curvewatch_receipt_exact",
    "curvewatch_verdict",
)
_SAMPLE = re.compile(r"(?P<name>\w+)\{(?P<labels>[^}]*)\} (?P<value>\S+)")


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """An example, and the verdict that its curve must get."""

    example: str
    title: str
    verdict: Verdict


EXPECTATIONS = (
    Expectation(
        example="digits", title="Handwritten digits, a small convolutional net", verdict=Verdict.GOOD_FIT
    ),
    Expectation(example="digits_overfit", title="Few digits, a large net", verdict=Verdict.OVERFITTING),
)


def run_demo(console: Console, *, keep: bool) -> int:
    """Run the demo and return its exit code: 0 only if both verdicts are right and every receipt is exact.

    Raises:
        DemoError: The examples are not here, or the service does not start.
    """
    folders = {expected.example: _example(expected.example) for expected in EXPECTATIONS}
    service = DemoService()
    kept = False
    try:
        _end_in_order_when_told()
        with _waiting(console, "Starting the service and a local Ray cluster"):
            client = service.start()
        console.print(f"The service runs: {service.server} (page, API and /metrics)\n", soft_wrap=True)
        with client:
            failures = [
                failure
                for expected in EXPECTATIONS
                for failure in _train(console, client, folders[expected.example], expected)
            ]
        kept = keep
        _conclude(console, failures)
        return 1 if failures else 0
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):  # the terminal may be what has gone
            console.print("\nInterrupted.")
        raise
    finally:
        if kept:
            _say_how_to_go_on(console, service)
        else:
            _stop(console, service)


def _end_in_order_when_told() -> None:
    """Let a SIGTERM, and the end of the terminal, end the demo like Ctrl-C does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # `nohup curvewatch demo` ignores it, and is meant to go on.
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.default_int_handler)


def _train(console: Console, client: Client, folder: JobFolder, expected: Expectation) -> Iterator[str]:
    """Train one example, show all of it, and yield what is not as it must be."""
    console.print(Text(f"{expected.title} (examples/{expected.example})", "bold"))
    run = client.submit(_on_workers(folder, WORKERS), zip_folder(folder.code))
    watcher: Watcher = LiveWatcher(console) if console.is_terminal else LineWatcher(console)
    last = show_all(follow(client, run.run_id, limit_seconds=RUN_SECONDS), watcher)
    console.print(terminal.ending(last.run, last.epochs, width=console.width, color=console.is_terminal))
    console.print("\nOn /metrics", style="bold")
    for line in _metric_lines(client.metrics_text(), run.run_id):
        console.print(f"  {line}", soft_wrap=True)
    console.print()
    yield from _failures(last, expected)


def _failures(last: Change, expected: Expectation) -> Iterator[str]:
    if last.run.state != "SUCCEEDED":
        yield f"{expected.example} ended {last.run.state}: {last.run.reason}"
    if last.run.verdict != expected.verdict.value:
        yield f"{expected.example} must be {expected.verdict.value}, the verdict is {last.run.verdict}"
    parts = [part for epoch in last.epochs for part in (epoch.train, epoch.validation)]
    if not parts or not all(part.receipt.exact for part in parts):
        yield f"{expected.example}: not every receipt is exact"


def _example(name: str) -> JobFolder:
    """Return an example of the checkout that this package is installed from, or of the one we are in."""
    roots = (Path(__file__).resolve().parents[2], Path.cwd())
    for root in roots:
        if (root / "examples" / name / "job.yaml").is_file():
            return read_job_folder(root / "examples" / name)
    raise DemoError(
        f"there is no examples/{name} in {' or in '.join(map(str, dict.fromkeys(roots)))}; the examples "
        "come with the source: run the demo in a checkout of it"
    )


def _on_workers(folder: JobFolder, workers: int) -> str:
    """Return the job file with this number of workers, whatever it says."""
    job = yaml.safe_load(folder.text)
    job["scaling"] = {**(job.get("scaling") or {}), "workers": workers}
    return yaml.safe_dump(job, sort_keys=False)


def _metric_lines(text: str, run_id: str) -> Iterator[str]:
    """Yield the samples of a run that show its curve, in short: without what names the run, and no zeros."""
    for line in text.splitlines():
        sample = _SAMPLE.fullmatch(line)
        if (
            sample is None
            or sample["name"] not in SHOWN_SERIES
            or f'run_id="{run_id}"' not in sample["labels"]
        ):
            continue
        if sample["name"] == "curvewatch_verdict" and float(sample["value"]) == 0:
            continue
        yield line


@contextmanager
def _waiting(console: Console, what: str) -> Iterator[None]:
    """Show what is waited for, with a spinner in a terminal, and how long it took."""
    begin = time.monotonic()
    if not console.is_terminal:
        console.print(f"{what} ...")
    with console.status(what):
        yield
    console.print(f"{what}: done in {terminal.span(time.monotonic() - begin)}", style="dim")


def _conclude(console: Console, failures: Sequence[str]) -> None:
    if failures:
        console.print("The demo did NOT show what it must:", style="bold red")
        for failure in failures:
            console.print(f"  {failure}", soft_wrap=True)
    else:
        console.print("Both verdicts are right, and every sample was counted once.", style="bold green")


def _stop(console: Console, service: DemoService) -> None:
    # A second Ctrl-C must not leave a cluster behind; the stop takes bounded time.
    before = {
        number: signal.signal(number, signal.SIG_IGN)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        with _waiting(console, "Stopping the service and its Ray cluster"):
            service.stop()
    finally:
        # What cannot be said, because the terminal has gone, must be done all the same; twice does no harm.
        service.stop()
        for number, handler in before.items():
            signal.signal(number, handler)


def _say_how_to_go_on(console: Console, service: DemoService) -> None:
    console.print(
        f"\nThe service goes on, as asked.\n"
        f"  page      {service.server}/\n"
        f"  metrics   {service.server}/metrics\n"
        f"  token     in {service.profile_path}\n"
        f"  CLI       export CURVEWATCH_PROFILE={service.profile_path}; curvewatch runs\n"
        f"  log       {service.log_path}\n"
        f"  end it    kill {service.pid}\n"
        f"  folder    {service.folder} can be removed after that",
        soft_wrap=True,
    )
