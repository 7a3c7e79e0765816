"""A run on Weights & Biases, or its offline files in `wandb/`.

WANDB_MODE, WANDB_PROJECT, WANDB_ENTITY, WANDB_DIR, WANDB_BASE_URL and the other variables of the library hold. Without
WANDB_MODE and without an API key the run is written offline, for `wandb sync` later.
"""

from __future__ import annotations

import netrc
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import wandb

from curvewatch_workers.trackers.points import Point, settings_of
from curvewatch_workers.trackers.tracker import FLUSH_SECONDS, TrackedRun

_HOST = "https://api.wandb.ai"


class WandbTracker:
    """Starts the W&B run anew at each attempt, under the same id: W&B then takes the new curve for the old one."""

    def __init__(self, run: TrackedRun) -> None:
        self._run = run
        self._folder = Path(run.environment.get("WANDB_DIR") or run.folder)
        self._wandb: wandb.Run | None = None

    def rewrite(self, curve: Sequence[Point]) -> None:
        """Start the run, write the curve, then remove the files of earlier attempts."""
        self._finish()
        run = self._wandb = self._start()
        run.define_metric("epoch")
        run.define_metric("*", step_metric="epoch")
        for point in curve:
            _log(run, point)
        current = Path(run.dir).parent
        # A second run in one second has a number at the end.
        for old in self._folder.glob(f"wandb/*run-*-{self._run.key}*"):
            if old.resolve() != current.resolve():
                shutil.rmtree(old)

    def append(self, point: Point) -> None:
        """Write an epoch."""
        if self._wandb is not None:
            _log(self._wandb, point)

    def close(self) -> None:
        """End the run; what a service did not take in time stays in the files, for `wandb sync`."""
        self._finish()
        # The library's service still writes when `finish` returns, and may be killed with the worker. Without a run
        # of the user's it is ours to end.
        if wandb.run is None:
            wandb.teardown()

    def _finish(self) -> None:
        run, self._wandb = self._wandb, None
        if run is not None:
            run.finish()

    def _start(self) -> wandb.Run:
        environment, spec = self._run.environment, self._run.spec
        offline = "WANDB_MODE" not in environment and not has_credentials(environment)
        self._folder.mkdir(parents=True, exist_ok=True)
        return wandb.init(
            id=self._run.key,
            name=self._run.run_id,
            project=environment.get("WANDB_PROJECT") or spec.name,
            dir=self._folder,
            config=settings_of(spec),
            mode="offline" if offline else None,
            # The user's code may have a W&B run of its own.
            reinit="create_new",
            settings=wandb.Settings(
                silent=True,
                console="off",
                x_disable_stats=True,
                disable_git=True,
                disable_code=True,
                # The library waits for its service when the process ends, too.
                init_timeout=FLUSH_SECONDS,
                finish_timeout=0.8 * FLUSH_SECONDS,
                finish_timeout_raises=True,
            ),
        )


def _log(run: wandb.Run, point: Point) -> None:
    row = {"epoch": point.epoch, "_timestamp": point.time.timestamp(), **point.values}
    run.log(row, step=point.epoch, commit=True)


def has_credentials(environment: Mapping[str, str]) -> bool:
    """Return whether W&B finds an API key: in its variables, or where `wandb login` keeps it.

    Raises:
        netrc.NetrcParseError: The netrc file cannot be read.
    """
    if environment.get("WANDB_API_KEY") or environment.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    path = Path(environment.get("NETRC") or Path(environment.get("HOME", "/"), ".netrc"))
    host = urlsplit(environment.get("WANDB_BASE_URL") or _HOST).hostname or ""
    return path.is_file() and netrc.netrc(path).authenticators(host) is not None
