"""Runs that are trained outside of the cluster: how they begin, and how long nothing was heard of them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import datetime

from curvewatch_service.errors import RunTakenError
from curvewatch_service.rows import add_run
from curvewatch_service.runs import RunState
from curvewatch_service.store import Run, Store
from curvewatch_service.stored import run_from
from curvewatch_service.tables import RunRow
from curvewatch_workers.contract import JobSpec


def put_reported_run(store: Store, *, run_id: str, spec: JobSpec, owner: str, ingest_token_hash: str) -> bool:
    """Add a run that is trained elsewhere, or give its owner another ingest token for it, with its new plan.

    Returns:
        Whether it was added.

    Raises:
        RunTakenError: The id is a job's or another user's, or the run has ended.
    """
    with store.write() as session:
        row = session.get(RunRow, run_id, with_for_update=True)
        if row is None:
            add_run(
                session,
                RunState.STARTING,
                run_id=run_id,
                spec=spec,
                owner=owner,
                code_hash="",
                ingest_token_hash=ingest_token_hash,
                reason=f"waits for the first word of {spec.code.trained_by}",
                how=f"reported by {owner}",
                # Its trainer's word counts like that of a job's first start.
                submission=1,
            )
            return True
        known = run_from(row)
        if not known.trained_elsewhere:
            raise RunTakenError(run_id, "is a job on the cluster")
        if known.owner != owner:
            raise RunTakenError(run_id, "is another user's")
        if known.state.terminal:
            raise RunTakenError(run_id, f"has ended, {known.state.label}: {known.reason}")
        row.ingest_token_hash = ingest_token_hash
        # It may go on for more epochs, or on more processes.
        row.spec = spec.model_copy(update={"name": row.name}).model_dump_json()
        return False


class Silence:
    """How long the trainers of runs have been silent; used by one thread.

    By a clock that neither jumps nor goes on while the machine sleeps: a laptop that wakes up has heard nothing for
    hours, and its trainer neither said nor did anything meanwhile.
    """

    def __init__(self, store: Store, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock
        self._since: dict[str, tuple[datetime | None, float]] = {}

    def seconds(self, run: Run) -> float:
        """Return the seconds since a run's trainer was last heard, or since this was first asked."""
        heard = self._store.heard(run.run_id)
        if run.run_id not in self._since or self._since[run.run_id][0] != heard:
            self._since[run.run_id] = heard, self._clock()
        return self._clock() - self._since[run.run_id][1]

    def keep(self, active: Collection[str]) -> None:
        """Forget all runs but these."""
        for run_id in self._since.keys() - set(active):
            del self._since[run_id]
