"""A reconciler with everything around it but Ray and time."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from curvewatch_service.reconcile import Reconciler
from curvewatch_service.runs import RunState
from curvewatch_service.settings import Settings
from curvewatch_service.store import Run, Store
from curvewatch_service.testing import FakeCluster
from curvewatch_workers.contract import IngestMessage, Outcome, RunFinished, RunLayout
from store_support import START, attempt_message, database_url, epoch_message, new_run


class Clock:
    """A clock that moves when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def time_of_day(self) -> datetime:
        """The real time, as far ahead as the test has moved this clock."""
        return datetime.now(UTC) + timedelta(seconds=self.now - 1000.0)


@dataclass
class World:
    """A store, a fake cluster and the reconciler between them."""

    settings: Settings
    store: Store
    cluster: FakeCluster
    clock: Clock
    reconciler: Reconciler

    @classmethod
    def build(cls, folder: Path, *, ray_address: str | None = None) -> World:
        settings = Settings(data_dir=folder, ray_address=ray_address, shutdown_grace_seconds=20)
        store, cluster, clock = Store(database_url(folder)), FakeCluster(), Clock()
        reconciler = Reconciler(store, cluster, settings, clock=clock, now=clock.time_of_day)
        return cls(settings=settings, store=store, cluster=cluster, clock=clock, reconciler=reconciler)

    def restarted(self) -> World:
        """The same after a new start of the service: what was in memory is gone."""
        reconciler = Reconciler(
            self.store, self.cluster, self.settings, clock=self.clock, now=self.clock.time_of_day
        )
        return World(self.settings, self.store, self.cluster, self.clock, reconciler)

    def run(self, run_id: str = "digits-1") -> Run:
        return self.store.run(run_id)

    def reasons(self, run_id: str = "digits-1") -> list[str]:
        return [event.reason for event in self.store.events(run_id)]

    def spool(self, *messages: IngestMessage, run_id: str = "digits-1", source: str = "attempt-1") -> Path:
        """Write messages as a worker does."""
        text = "".join(message.model_dump_json() + "\n" for message in messages)
        return self.spool_text(text, run_id=run_id, source=source)

    def spool_text(self, text: str, *, run_id: str = "digits-1", source: str = "attempt-1") -> Path:
        path = RunLayout(self.settings.storage_path, run_id).spool / f"{source}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(text)
        return path

    def running(self, run_id: str = "digits-1", *, epochs: int = 2) -> str:
        """Bring a new run to RUNNING, with some epochs told; return its job."""
        new_run(self.store, run_id)
        self.reconciler.step()
        job = f"{run_id}-1"
        self.cluster.start(job)
        self.store.ingest(run_id, [attempt_message(1)])
        for epoch in range(1, epochs + 1):
            self.store.ingest(run_id, [epoch_message(epoch, run_id=run_id)])
        assert self.run(run_id).state is RunState.RUNNING
        return job


def finished(outcome: Outcome, *, submission: int = 1, reason: str = "it said so") -> RunFinished:
    """What a driver tells last."""
    return RunFinished(
        submission=submission, time=START + timedelta(seconds=500), outcome=outcome, reason=reason
    )
