"""A browser, a service that serves the page, and a run that was really trained, for tests of the page."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from playwright.sync_api import Browser, Page, Request, sync_playwright
from pydantic import TypeAdapter

from api_support import ServedApi
from curvewatch_service.runs import RunState
from curvewatch_workers.contract import (
    AttemptStarted,
    EpochFinished,
    EpochRecord,
    IngestMessage,
    JobSpec,
    RunLayout,
    read_job_spec,
)

CHROMIUM = Path("/usr/bin/chromium")
TRAIN_SECONDS = 240
PAGE_MILLISECONDS = 20_000
"""How long a page may take to show what it must; many times what it takes on a busy machine."""
_MESSAGE: TypeAdapter[IngestMessage] = TypeAdapter(IngestMessage)


def train(example: Path, output: Path) -> list[IngestMessage]:
    """Train an example on two ranks of this machine and return what its workers told."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "curvewatch_workers.torchrun", str(example), "--output", str(output), "--device=cpu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TRAIN_SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    spools = sorted(RunLayout(output, read_job_spec(example).name).spool.glob("*.jsonl"))
    return [_MESSAGE.validate_json(line) for path in spools for line in path.read_text().splitlines()]


@dataclass
class ShownRun:
    """A run of the served store, fed with messages of a real one."""

    api: ServedApi
    run_id: str
    told: Sequence[IngestMessage]

    @classmethod
    def start(cls, api: ServedApi, run_id: str, spec: JobSpec, told: Sequence[IngestMessage]) -> ShownRun:
        """Add a run that is given to the cluster and has told nothing yet."""
        renamed = [_renamed(message, run_id) for message in told]
        store = api.services.store
        store.create_run(
            run_id=run_id, spec=spec, owner="ada", code_hash="c0de" * 16, ingest_token_hash="f" * 64
        )
        store.begin_submission(run_id)
        return cls(api, run_id, renamed)

    @property
    def epochs(self) -> list[EpochRecord]:
        """Epochs that the store shows."""
        return self.api.services.store.epochs(self.run_id)

    def tell(self, epochs: int) -> None:
        """Tell the start and the first epochs."""
        started = [message for message in self.told if isinstance(message, AttemptStarted)]
        finished = [message for message in self.told if isinstance(message, EpochFinished)]
        self.api.services.store.ingest(self.run_id, [*started, *finished[:epochs]])

    def finish(self) -> None:
        """Tell everything, and let the run succeed."""
        self.api.services.store.ingest(self.run_id, self.told)
        reason = f"all {len(self.epochs)} epochs are done"
        moved = self.api.services.store.transition(
            self.run_id, RunState.SUCCEEDED, expected=[RunState.RUNNING], reason=reason, message=reason
        )
        assert moved


def _renamed(message: IngestMessage, run_id: str) -> IngestMessage:
    if not isinstance(message, EpochFinished):
        return message
    record = message.record.model_copy(update={"run_id": run_id})
    return message.model_copy(update={"record": record})


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start a headless Chromium."""
    with sync_playwright() as playwright:
        # Without a sandbox: as root, and in containers, Chromium's own cannot be set up.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


class Site(Protocol):
    """A service that can be visited."""

    url: str
    token: str


@dataclass
class Visit:
    """A signed-in browser window, and what went wrong in it."""

    page: Page
    url: str
    troubles: list[str] = field(default_factory=list)
    """Errors of the console and of scripts, and requests that left the service."""

    def open(self, path: str) -> Page:
        """Go to a page of the service."""
        self.page.goto(f"{self.url}{path}")
        return self.page


@contextmanager
def visit(
    browser: Browser,
    site: Site,
    *,
    size: tuple[int, int] = (1280, 900),
    dark: bool = False,
    signed_in: bool = True,
) -> Iterator[Visit]:
    """Open a window of its own, signed in through the page unless told otherwise."""
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]}, color_scheme="dark" if dark else "light"
    )
    page = context.new_page()
    page.set_default_timeout(PAGE_MILLISECONDS)
    visitor = Visit(page=page, url=site.url)
    page.on("console", lambda line: visitor.troubles.extend([line.text] if line.type == "error" else []))
    page.on("pageerror", lambda error: visitor.troubles.append(str(error)))
    page.on("request", lambda request: _note_foreign(request, visitor))
    try:
        if signed_in:
            sign_in(visitor, site.token)
        yield visitor
    finally:
        context.close()


def sign_in(visitor: Visit, token: str) -> None:
    """Fill in the form of the sign-in page, as a person does."""
    if "/login" not in visitor.page.url:
        visitor.open("/login")
    visitor.page.get_by_label("API token").fill(token)
    visitor.page.get_by_role("button", name="Sign in").click()


def _note_foreign(request: Request, visitor: Visit) -> None:
    if not request.url.startswith((f"{visitor.url}/", "data:")):
        visitor.troubles.append(f"request to {request.url}")


@dataclass(frozen=True, kw_only=True)
class DrawnTrace:
    """One line of a chart, as the chart library drew it."""

    name: str
    x: list[float]
    y: list[float | None]
    drawn_points: int
    """Points of it in the picture."""


def drawn_traces(page: Page, chart: str) -> dict[str, DrawnTrace]:
    """Read the traces of a chart back from the page."""
    page.wait_for_selector(f"#{chart} .scatterlayer .trace .points path")
    found = page.evaluate(
        """chart => JSON.stringify(document.getElementById(chart).data.map((trace, index) => ({
            name: trace.name, x: trace.x, y: trace.y,
            drawn_points: document.getElementById(chart).querySelectorAll('.scatterlayer .trace')[index]
                .querySelectorAll('.points path').length,
        })))""",
        chart,
    )
    return {entry["name"]: DrawnTrace(**entry) for entry in json.loads(found)}
