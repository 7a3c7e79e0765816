"""What alerts, panels and scrapes cost, on a real Prometheus: ``python benchmarks/observability.py``.

Rules: live runs of 20 epochs on four ranks, one in twenty of them ill, in a service that a Prometheus scrapes with the
built rules; then, beside these, the same rules without parts of them. Prometheus tells how long each group took.
Panels: three hours of 50 runs of 1,000 epochs, and what each dashboard asks when it is opened.
Scrapes: bytes, samples and seconds of an answer, by the number of runs.

Writes its result to `observability_cpu.md` beside it; takes less than six minutes and both cores.
"""

from __future__ import annotations

import argparse
import gzip
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).parent))

import httpx

from measuring import ROOT, interleaved, ratios, setting
from observed_panels import HOURS, all_at_once, questions, timed
from observed_prometheus import (
    AS_BUILT,
    EVALUATION_SECONDS,
    NOTHING,
    VARIANTS,
    VARIANTS_SECONDS,
    evaluations,
    group_names,
    load_variants,
    prometheus,
    rules_of,
    value,
    wait_for,
)
from observed_runs import fill, served, write_history
from prometheus_support import RULES

RESULT: Final = Path(__file__).with_name("observability_cpu.md")
SIZES: Final = (10, 100, 1000)
LIVE_EPOCHS: Final = 20
ILL_EVERY: Final = 20
PANEL_RUNS, PANEL_EPOCHS, PANEL_ILL_EVERY = 50, 1000, 5
GROUP_LIMIT, QUERY_LIMIT = 0.5, 0.3
BUILT: Final = ROOT / "dashboards" / "curvewatch_dashboards" / "built"
OPENMETRICS: Final = "application/openmetrics-text;version=1.0.0"
PATHS: Final = ("/metrics", "/metrics/curves")
ALERTS: Final = 'ALERTS{component!="service",variant=""}'


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """What one number of runs has cost."""

    seconds: dict[str, list[float]]
    """Of each group's evaluations, by its name, with nothing but the built rules."""
    variants: dict[str, list[float]]
    """Of each group's and variant's, where they were measured."""
    firing: Counter[str]
    """Alerts of runs, by name."""
    slowest: str
    """The rule, and the seconds of one evaluation."""
    series: int
    """In Prometheus' head."""


def evaluate(folder: Path, service: str, runs: int, count: int, *, variants: bool) -> Evaluated:
    """Let Prometheus scrape so many runs, wait until their alerts have settled, and time its evaluations."""
    with prometheus(folder, service, rules=[RULES]) as url:
        wait_for(url, "count(curvewatch_run_info)", runs, seconds=60)
        settled = (
            f'count({ALERTS[:-1]},alertstate="firing"}}) unless count({ALERTS[:-1]},alertstate="pending"}})'
        )
        wait_for(url, settled, runs // ILL_EVERY, seconds=90)
        seconds = evaluations(url, count, group_names())
        rules = rules_of(url)
        firing = Counter(
            {
                rule["name"]: len(rule["alerts"])
                for rule in rules
                if rule.get("alerts") and "run_id" in rule["alerts"][0]["labels"]
            }
        )
        slowest = max(rules, key=lambda rule: float(rule["evaluationTime"]))
        series = int(value(url, "count({__name__!=''})"))
        by_variant: dict[str, list[float]] = {}
        if variants:
            load_variants(folder, url)
            every = [*group_names(), *(f"{group}/{name}" for group in group_names() for name in VARIANTS)]
            by_variant = evaluations(url, count // 2, every)
        return Evaluated(
            seconds=seconds,
            variants=by_variant,
            firing=firing,
            slowest=f"{slowest['name']}, {1000 * slowest['evaluationTime']:.0f} ms",
            series=series,
        )


def rules_text(found: dict[int, Evaluated]) -> str:
    """Return the tables of the rules."""
    most = max(found)
    groups = group_names()
    slowest = max(groups, key=lambda group: statistics.median(found[most].seconds[group]))
    median, worst = statistics.median(found[most].seconds[slowest]), max(found[most].seconds[slowest])
    met = "met" if worst < GROUP_LIMIT else "met by its median only" if median < GROUP_LIMIT else "NOT met"
    lines = [
        "### Seconds of one evaluation of a group\n",
        f"The aim is {GROUP_LIMIT} s with {most:,} runs: {met}, {slowest} takes {median:.3f} s, at worst "
        f"{worst:.3f} s.\n",
        "Median, worst.\n",
        "| group | " + " | ".join(f"{runs:,} runs" for runs in found) + " |",
        "|---|" + "---|" * len(found),
    ]
    for group in groups:
        cells = (
            f"{statistics.median(one.seconds[group]):.3f}, {max(one.seconds[group]):.3f}"
            for one in found.values()
        )
        lines.append(f"| {group} | " + " | ".join(cells) + " |")
    told = (
        ("alerts that fire", [f"{one.firing.total()}" for one in found.values()]),
        ("series in Prometheus", [f"{one.series:,}" for one in found.values()]),
        ("slowest rule", [one.slowest for one in found.values()]),
    )
    lines += [f"| {name} | " + " | ".join(cells) + " |" for name, cells in told]
    kinds = ", ".join(
        f"{number} {name.removeprefix('Curvewatch')}" for name, number in found[most].firing.items()
    )
    lines += [
        f"\nWith {most:,} runs fire: {kinds}.\n",
        f"### By the time of “{NOTHING}”, {most:,} runs\n",
        "| group | " + " | ".join((AS_BUILT, *(name for name in VARIANTS if name != NOTHING))) + " |",
        "|---|" + "---|" * len(VARIANTS),
    ]
    seconds = found[most].variants
    for group in groups:
        names = (group, *(f"{group}/{name}" for name in VARIANTS if name != NOTHING))
        cells = (f"{ratios(seconds, name, f'{group}/{NOTHING}').median:.2f}" for name in names)
        lines.append(f"| {group} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def scrape_rows(service: str, runs: int, epochs: int) -> list[str]:
    """Return the rows of the table of scrapes for one service."""
    rows = []
    with httpx.Client(base_url=service, timeout=120) as client:
        for path in PATHS:
            for name, accept in (("text", "text/plain"), ("OpenMetrics", OPENMETRICS)):
                taken: list[float] = []
                # What takes long says enough the first time.
                while len(taken) < 3 and sum(taken) < 1:
                    clock = time.perf_counter()
                    answer = client.get(path, headers={"Accept": accept}).raise_for_status()
                    taken.append(time.perf_counter() - clock)
                body = answer.content
                samples = sum(not line.startswith(b"#") for line in body.splitlines())
                packed = len(gzip.compress(body, 6))
                rows.append(
                    f"| {runs:,} | {epochs:,} | {path} | {name} | {samples / runs:,.0f} | {len(body) / runs:,.0f} | "
                    f"{packed / runs:,.0f} | {len(body) / 1e6:.2f} | {statistics.median(taken):.3f} |"
                )
    return rows


def scrapes_text(rows: Sequence[str]) -> str:
    """Return the table of scrapes."""
    head = (
        "| runs | epochs | path | format | samples a run | bytes a run | of them, gzip | MB in all | seconds |\n"
        "|---|---|---|---|---|---|---|---|---|"
    )
    return "### Size of a scrape\n\n" + "\n".join((head, *rows)) + "\n"


def ask_panels(folder: Path, service: str, rounds: int) -> str:
    """Open each built dashboard on three hours of runs; return the tables."""
    built = [path for path in sorted(BUILT.glob("*.json")) if '"panels"' in path.read_text(encoding="utf-8")]
    lines = [
        "| dashboard | queries | first: p50, p95, worst | again: p50, p95, worst | all at once |",
        "|---|---|---|---|---|",
    ]
    everything: dict[str, tuple[float, float, int]] = {}
    with prometheus(folder, service) as url, httpx.Client(base_url=url, timeout=60) as client:
        # Without a scrape of the curves just before, what is asked for now would find none, in no time.
        for name in ("curvewatch_run_info", "curvewatch_epoch_loss"):
            wait_for(url, f"count(count by (run_id) ({name}))", PANEL_RUNS, seconds=180)
        end = time.time()
        for path in built:
            asked = {question.name: question for question in questions(path, client, end=end)}
            if len(asked) < 2:
                raise RuntimeError(f"{path.name} asks {len(asked)} questions")
            run = {name: timed(question, client) for name, question in asked.items()}
            first = interleaved(run, rounds=1, warm_up=0)
            again = interleaved(run, rounds=rounds, warm_up=0)
            whole = [all_at_once(list(asked.values()), client) for _ in range(3)]
            for name, question in asked.items():
                everything[name] = (first[name][0], max(again[name]), len(question.ask(client)))
            cells = (
                _milliseconds([one for taken in seconds.values() for one in taken])
                for seconds in (first, again)
            )
            lines.append(
                f"| {path.stem} | {len(asked)} | "
                + " | ".join(cells)
                + f" | {1000 * statistics.median(whole):.0f} |"
            )
    worst = max(max(first, again) for first, again, _ in everything.values())
    over = sum(max(first, again) > QUERY_LIMIT for first, again, _ in everything.values())
    head = (
        f"### Milliseconds of a query, {HOURS} h of {PANEL_RUNS} runs of {PANEL_EPOCHS:,} epochs; the aim is "
        f"{1000 * QUERY_LIMIT:.0f} ms: {f'NOT met by {over}' if over else 'met'}, the worst takes "
        f"{1000 * worst:.0f} ms\n"
    )
    slow = sorted(everything, key=lambda name: -max(everything[name][:2]))[:5]
    lines += ["\n| slowest | first | again, worst | kB |", "|---|---|---|---|"]
    for name in slow:
        first_time, worst_time, size = everything[name]
        lines.append(f"| {name} | {1000 * first_time:.0f} | {1000 * worst_time:.0f} | {size / 1000:.0f} |")
    return "\n".join((head, *lines)) + "\n"


def _milliseconds(seconds: list[float]) -> str:
    taken = sorted(1000 * one for one in seconds)
    return f"{statistics.median(taken):.0f}, {taken[int(0.95 * (len(taken) - 1))]:.0f}, {taken[-1]:.0f}"


def past(folder: Path, storage: Path) -> None:
    """Put the hours of the panels' runs into a Prometheus' storage."""
    files = write_history(folder, runs=PANEL_RUNS, epochs=PANEL_EPOCHS, every=PANEL_ILL_EVERY, hours=HOURS)
    for file in files:
        command = ["promtool", "tsdb", "create-blocks-from", "openmetrics", str(file), str(storage)]
        subprocess.run(command, check=True, capture_output=True)
        file.unlink()


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--evaluations", type=int, default=10, help="of each group")
    parser.add_argument("--rounds", type=int, default=5, help="of each query after the first time")
    parser.add_argument("--beside", default="nothing", help="what else ran on the machine, for the result")
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(2, mp_context=context) as pool:
            seconds = 3600 * HOURS / PANEL_EPOCHS
            wanted = [(folder / f"live-{runs}", runs, LIVE_EPOCHS, ILL_EVERY) for runs in (1, *SIZES)]
            made = [
                pool.submit(fill, where, runs, epochs=epochs, seconds=seconds, every=every)
                for where, runs, epochs, every in (
                    (folder / "panels", PANEL_RUNS, PANEL_EPOCHS, PANEL_ILL_EVERY),
                    *wanted,
                )
            ]
            imported = pool.submit(past, folder / "past", folder / "panels-prometheus" / "data")
            imported.result()
            for future in made:
                future.result()
        _say(began, "the stores are filled")
        rows: list[str] = []
        found: dict[int, Evaluated] = {}
        for runs in (1, *SIZES):
            with served(folder / f"live-{runs}") as service:
                rows += scrape_rows(service, runs, LIVE_EPOCHS)
                if runs in SIZES:
                    found[runs] = evaluate(
                        folder / f"rules-{runs}",
                        service,
                        runs,
                        options.evaluations,
                        variants=runs == max(SIZES),
                    )
            _say(began, f"{runs} runs are measured")
        with served(folder / "panels") as service:
            rows += scrape_rows(service, PANEL_RUNS, PANEL_EPOCHS)
            asked = ask_panels(folder / "panels-prometheus", service, options.rounds)
        _say(began, "panels are measured")
    text = f"""# What alerts, panels and scrapes cost, on 2 CPU cores

{setting("prometheus_client", "sqlalchemy").strip()}
{_version()} Beside it ran: {options.beside}.

A run has four ranks and one metric. Rules are evaluated every {EVALUATION_SECONDS} s here, so that there are
{options.evaluations} evaluations of each group in a short time; the service is scraped as the built configuration says,
meanwhile and on the same cores. After that the variants are evaluated beside the built rules, every
{VARIANTS_SECONDS} s.

{rules_text(found)}
{asked}
{scrapes_text(rows)}"""
    RESULT.write_text(text, encoding="utf-8")
    print(text)


def _version() -> str:
    said = subprocess.run(["prometheus", "--version"], check=True, capture_output=True, text=True)
    return (
        " ".join((said.stdout + said.stderr).split()[:3]).rstrip(",").capitalize().replace(" version", "")
        + "."
    )


def _say(began: float, what: str) -> None:
    print(f"{time.monotonic() - began:.0f} s: {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
