"""What the hooks of all frameworks share: a row for each epoch, the verdict on the curve, and whether to stop.

A hook gives the numbers that its framework reports. They are taken as they are: means over batches or samples, of all
ranks or of one, as the framework and the user's code make them.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from curvewatch_workers.diagnosis import (
    ACCURACIES_OF_TOOLS,
    VALIDATION_SPLITS,
    Diagnosis,
    OnlineDiagnosis,
    Verdict,
)
from curvewatch_workers.errors import HookError
from curvewatch_workers.hooks.curve_file import Row, Unit, read_rows, write_rows
from curvewatch_workers.hooks.run_feed import Beginning, JobRun, NoRun, RunFeed
from curvewatch_workers.meter_run import RUN

logger = logging.getLogger(__name__)

_FINISHED: Final = "the training has finished"
_NO_TROUBLE: Final = frozenset({Verdict.GOOD_FIT, Verdict.TOO_EARLY})


class CurveFeed:
    """Takes an epoch's numbers, writes them down, reads the curve, and says whether to stop.

    Every process of a training makes one and gives it the same epochs; only the leader's writes, logs and decides.

    In a job whose loop is the user's (`code.loop`), the leader tells the run as well, and obeys the service; elsewhere
    it tells a run of its own, if that has a name.

    Args:
        framework: Whose numbers they are.
        file: CSV that is written after each epoch; None writes none.
        stop: Stop when the diagnosis says so.
        stop_on: Verdicts at which to stop as soon as they are raised; a single one may be given by itself.
        run: Name of the run at the service that the profile names; None tells none outside of a job.

    Raises:
        HookError: A verdict is unknown, or no reason to stop.
    """

    def __init__(
        self,
        framework: str,
        file: str | os.PathLike[str] | None,
        *,
        stop: bool = False,
        stop_on: str | Collection[str] = (),
        run: str | None = None,
    ) -> None:
        self._file = None if file is None else Path(file)
        self._stop, self._stop_on = stop, _verdicts(stop_on)
        self._framework = framework
        self._name = run
        self._run: RunFeed = NoRun()
        self._ending = _FINISHED
        self._unit: Unit = "epoch"
        self._leads = True
        self._rows: dict[int, Row] = {}
        self._online = OnlineDiagnosis()
        self._verdict: Verdict | None = None
        self._told: set[str] = set()

    @property
    def rows(self) -> tuple[Row, ...]:
        """The curve so far, in order."""
        return tuple(self._rows[at] for at in sorted(self._rows))

    @property
    def whole(self) -> int:
        """How many rows have both losses: the epochs that the verdict speaks of."""
        return sum(_is_whole(row) for row in self._rows.values())

    @property
    def diagnosis(self) -> Diagnosis:
        """What the curve says so far, on the leader."""
        return self._online.diagnosis()

    def restore(self, rows: Iterable[Row]) -> None:
        """Take the curve that a checkpoint holds for that of the epochs before; comes before `begin`."""
        self._rows = {row.at: row for row in rows}

    def begin(
        self,
        after: int,
        *,
        unit: Unit = "epoch",
        leads: bool = True,
        processes: int = 1,
        planned: int | None = None,
    ) -> None:
        """Begin or go on with a training, whose next row is later than `after`; 0 begins anew.

        What is known of later rows, which are trained again, is forgotten. An earlier training's file is written over.

        Args:
            after: The last epoch or step that is not trained again.
            unit: What rows are counted in.
            leads: Whether this is the process that writes and decides.
            processes: How many train together.
            planned: The rows that the training is to have in all; None when that is open.

        Raises:
            HookError: The file is there and something else; the workers of the job do not train together; or the
                service refuses the run.
        """
        self._unit, self._leads = unit, leads
        known = dict(self._rows)
        if self._file is not None and leads:
            known = {row.at: row for row in read_rows(self._file)} | known
        self._rows = {at: known[at] for at in sorted(known) if at <= after}
        with self._harmless():
            self._reread()
        self._ending = _FINISHED
        self._run = self._feed_of_run()
        self._run.begin(
            Beginning(
                after=self._number(after),
                processes=processes,
                planned=planned,
                known={self._number(row.at): row for row in self._rows.values() if _is_whole(row)},
            )
        )
        missing = [] if unit == "step" else [at for at in range(1, after + 1) if at not in self._rows]
        if missing and leads:
            logger.warning(
                "Of the epochs before %d, %d are not known (%s to %s): the verdict rests on the others",
                after + 1,
                len(missing),
                missing[0],
                missing[-1],
                extra={"action": "curve_incomplete"},
            )

    def add(self, row: Row) -> bool:
        """Take in a finished epoch; return whether this process wants the training to stop after it.

        Args:
            row: Its numbers. Without one of both losses it is written down, but is no epoch of the curve.
        """
        again = row.at in self._rows
        self._rows[row.at] = row
        # A trainer that must go on after a stop was advised, for a least number of epochs, may finish yet.
        self._ending = _FINISHED
        number = self._number(row.at)
        if not self._leads:
            self._run.note(number)
            return False
        self._write()
        if not _is_whole(row):
            return False
        stops = self._run.tell(number, row)
        with self._harmless():
            if again:
                self._reread()
            else:
                self._read(row)
            return self._decides(row) or stops
        return stops

    def end(self, remedy: str) -> None:
        """Tell the run that the training is over; say so when it had no epoch with both losses.

        Args:
            remedy: What the user can do about it.
        """
        if not self.whole:
            self.warn(f"No epoch had both losses, so there is no curve to read; {remedy}")
        self._run.end(self._ending)

    def fail(self, error: BaseException) -> None:
        """Tell the run what has ended the training."""
        self._run.end("", error)

    def warn(self, message: str) -> None:
        """Log something that the user should know of, once, on the leader."""
        if self._leads and message not in self._told:
            self._told.add(message)
            logger.warning(message, extra={"action": "hook_warning"})

    def _feed_of_run(self) -> RunFeed:
        job = RUN.get()
        if job is not None:
            return JobRun(job, self._framework)
        if self._name is None or not self._leads:
            return NoRun()
        if isinstance(self._run, NoRun):
            # Only now: it needs pydantic and requests, which a curve in a file does without.
            from curvewatch_workers.hooks.reported_run import FOLDER, ReportedRunFeed

            folder = Path(FOLDER) if self._file is None else self._file.parent / FOLDER
            return ReportedRunFeed(self._name, self._framework, folder.absolute())
        return self._run

    @contextlib.contextmanager
    def _harmless(self) -> Iterator[None]:
        """Let no fault of the diagnosis cost the training."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - told, and the training goes on
            self.warn(
                f"The curve cannot be read any more ({type(error).__name__}: {error}); the training goes on"
            )

    def _number(self, at: int) -> int:
        """Return how many epochs of the curve there are up to a row; those that are not known count."""
        until = [row for row in self._rows.values() if row.at <= at]
        if self._unit == "step":
            return sum(map(_is_whole, until))
        return at - sum(not _is_whole(row) for row in until)

    def _reread(self) -> None:
        self._online, self._verdict = OnlineDiagnosis(), None
        for row in filter(_is_whole, self.rows):
            self._read(row)

    def _read(self, row: Row) -> None:
        accuracy = {} if row.accuracy is None else {"accuracy": row.accuracy}
        self._online.add(
            _known(row.train),
            _known(row.validation),
            metrics=accuracy,
            learning_rate=_known(row.learning_rate),
        )

    def _write(self) -> None:
        if self._file is None:
            return
        try:
            write_rows(self._file, self.rows, self._unit)
        except OSError as error:
            # What is observed must not end what observes it; the next epoch writes all rows again.
            self.warn(f"The curve cannot be written to {self._file} ({error}); the training goes on")

    def _decides(self, row: Row) -> bool:
        said = self.diagnosis
        stops = (self._stop and said.stop) or said.verdict in self._stop_on
        if stops or said.verdict != self._verdict:
            logger.log(
                logging.INFO if said.verdict in _NO_TROUBLE else logging.WARNING,
                "%s after %s %d: %s %s%s",
                said.verdict,
                self._unit,
                row.at,
                said.summary,
                said.advice,
                " The training stops." if stops else "",
                extra={"action": "hook_stop" if stops else "hook_verdict", "verdict": str(said.verdict)},
            )
        self._verdict = said.verdict
        if stops:
            self._ending = f"stopped by the verdict {said.verdict} after {self._unit} {row.at}"
        return stops


def number_in(logs: Mapping[str, object], name: str, option: str) -> float:
    """Return a number that the training logs.

    Args:
        logs: What it logs, by name.
        name: The number's name.
        option: The option of the hook that gives the name.

    Raises:
        HookError: It logs no number of this name.
    """
    try:
        return float(logs[name])  # type: ignore[arg-type] # tensors of one number, NumPy's and Python's
    except KeyError:
        there = ", ".join(sorted(logs)) or "nothing"
        raise HookError(
            f"CurvewatchCallback: the training logs no {name!r}, which {option} names; it logs {there}. "
            f"Name one of them: CurvewatchCallback({option}=...)"
        ) from None
    except (TypeError, ValueError, RuntimeError) as error:
        raise HookError(
            f"CurvewatchCallback: what the training logs as {name!r} is no single number ({error}); {option} must "
            "name the mean loss"
        ) from None


def accuracy_in(logs: Mapping[str, object]) -> float | None:
    """Return the validation accuracy that the training logs under a usual name; None without one."""
    names = (f"{split}_{name}" for name in ACCURACIES_OF_TOOLS for split in VALIDATION_SPLITS)
    found = next((name for name in names if name in logs), None)
    with contextlib.suppress(HookError):  # such as one for each class
        return None if found is None else number_in(logs, found, "accuracy")
    return None


def _verdicts(names: str | Collection[str]) -> frozenset[Verdict]:
    known = [str(verdict) for verdict in Verdict if verdict not in _NO_TROUBLE]
    for name in (names := (names,) if isinstance(names, str) else names):
        if name not in known:
            raise HookError(
                f"CurvewatchCallback(stop_on=...): {name!r} is no verdict to stop at; there are {', '.join(known)}"
            )
    return frozenset(map(Verdict, names))


def _is_whole(row: Row) -> bool:
    return row.train is not None and row.validation is not None


def _known(number: float | None) -> float:
    return math.nan if number is None else number
