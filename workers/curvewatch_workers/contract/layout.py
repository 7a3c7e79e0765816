"""Where a run keeps its files, below the storage path that workers and service share."""

from __future__ import annotations

import base64
import re
import secrets
from pathlib import Path


class RunLayout:
    """Paths of one run. Pure: nothing is created or read here."""

    def __init__(self, storage_path: str | Path, run_id: str) -> None:
        self.root = Path(storage_path) / run_id

    @property
    def ingest_token(self) -> Path:
        """The token that is good for this run's ingest only (mode 0600)."""
        return self.root / "ingest-token"

    def job(self, submission: int) -> Path:
        """Return the file that holds the `WorkerJob` of one start of the Ray job, from 1 (mode 0600)."""
        return self.root / f"job-{submission:06d}.json"

    @property
    def attempts(self) -> Path:
        """One file for each attempt, created exclusively: the fence. It holds the number of the job's start."""
        return self.root / "attempts"

    @property
    def spool(self) -> Path:
        """Folder of JSON-lines files, one `IngestMessage` a line, appended in order."""
        return self.root / "spool"

    @property
    def tracking(self) -> Path:
        """What the trackers write, one file or folder each."""
        return self.root / "tracking"

    @property
    def reported(self) -> Path:
        """What a trainer outside of the cluster remembers of the run that it reports (`ReportedState`)."""
        return self.root / "reported.json"


def new_run_id(name: str) -> str:
    """Return an id that tells the name to a person, in letters that every file system and URL takes.

    Args:
        name: Name of the run.
    """
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return f"{slug}-{base64.b32encode(secrets.token_bytes(5)).decode().lower()}"
