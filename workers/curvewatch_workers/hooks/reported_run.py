"""A run of a service that a trainer outside of its cluster reports, whatever becomes of the service meanwhile."""

from __future__ import annotations

import atexit
import datetime as dt
import logging
import os
import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import requests
from pydantic import ValidationError
from urllib3.exceptions import LocationParseError

from curvewatch_workers.contract import (
    MOST_EPOCHS,
    AttemptStarted,
    Control,
    EpochFinished,
    IngestMessage,
    Outcome,
    Profile,
    ProfileError,
    ReportedRun,
    ReportedRunAnswer,
    ReportedState,
    RunFinished,
    RunLayout,
    keep_state,
    kept_messages,
    new_run_id,
    read_profile,
    read_state,
)
from curvewatch_workers.deadline import DeadlineSession
from curvewatch_workers.errors import HookError
from curvewatch_workers.hooks.curve_file import Row
from curvewatch_workers.hooks.run_feed import Beginning, Stopwatch, record_of
from curvewatch_workers.reporter import HttpPost, Refused, SpoolingReporter, Undeliverable, is_final

logger = logging.getLogger(__name__)

FOLDER: Final = "curvewatch-runs"
"""Where what is told of runs is kept until the service has it: beside the curve's file, else where the trainer runs."""
_POLL_SECONDS: Final = 5.0
"""Between two questions whether to go on; they tell the service that the trainer lives."""
_REQUEST_SECONDS: Final = 10.0
_FLUSH_SECONDS = 15.0
"""How long a training that is over waits for the service."""
_MESSAGES_ARE_WRONG: Final = frozenset({400, 413, 422})
"""Answers of the service that speak of what is told; no other may drop it."""
_INTERRUPTED = KeyboardInterrupt | SystemExit


class ReportedRunFeed:
    """Tells a service of a training; the service need not be there meanwhile.

    Args:
        name: Name of the run.
        framework: What trains it, and whose means the numbers are.
        folder: Where to keep what is told.

    Raises:
        HookError: The name or the profile cannot be used.
    """

    def __init__(self, name: str, framework: str, folder: Path) -> None:
        self._name, self._framework, self._folder = name, framework, folder
        self._profile = _profile()
        _described(name, framework, planned=None, processes=1)
        self._state: ReportedState | None = None
        self._registration: Registration | None = None
        self._reporter: SpoolingReporter | None = None
        self._process = 0
        self._watch = Stopwatch()

    def begin(self, beginning: Beginning) -> None:
        """Make a run, or go on with the one that a crash has left.

        Raises:
            HookError: The service refuses it, or what is told cannot be kept.
        """
        self.end("", KeyboardInterrupt("the training began anew"))
        left = self._left() if beginning.after else None
        if left is not None and beginning.after < left.unknown_epochs:
            left = None  # it begins before what that run is about
        try:
            registration = self._registered(beginning, left)
            state = registration.state
            spool = RunLayout(self._folder, state.run_id).spool
            unheard = [message for message in kept_messages(spool) if message is not None]
            reporter = SpoolingReporter(
                spool / f"attempt-{state.attempt:06d}.jsonl",
                registration,
                poll_seconds=_POLL_SECONDS,
                flush_seconds=_FLUSH_SECONDS,
                remedy=f"`curvewatch send {self._folder}` sends what is kept, when the service is back",
                # Of these the service may lack the last, and takes none twice.
                unsent=unheard,
            )
        except OSError as error:
            raise HookError(
                f"what is told of run {self._name!r} cannot be kept in {self._folder}: {error}"
            ) from error
        self._state, self._reporter, self._registration = state, reporter, registration
        self._process = os.getpid()
        atexit.register(self._leave)
        now = dt.datetime.now(dt.UTC)
        reporter.send(
            AttemptStarted(
                attempt=state.attempt,
                world_size=beginning.processes,
                time=now,
                resumed_after_epoch=max(beginning.after - state.unknown_epochs, 0),
            )
        )
        told = {message.record.epoch for message in unheard if isinstance(message, EpochFinished)}
        if state.attempt == 1:
            rows = {number: beginning.known[at] for number, at in enumerate(sorted(beginning.known), start=1)}
        else:
            rows = {at - state.unknown_epochs: row for at, row in beginning.known.items()}
        for number, row in rows.items():
            # All of a new run; else what a crash has kept from the disk.
            if number > 0 and number not in told:
                self._send(number, row, now, 0.0)
        self._watch = Stopwatch()

    def tell(self, epoch: int, row: Row) -> bool:
        """Tell a finished epoch; return whether the service wants the run to end."""
        unknown = 0 if self._state is None else self._state.unknown_epochs
        self._send(epoch - unknown, row, *self._watch.lap())
        return self._reporter is not None and self._reporter.control().stops

    def note(self, epoch: int) -> None:
        """Do nothing: only the leader has this feed."""

    def end(self, reason: str, error: BaseException | None = None) -> None:
        """Say that the training is over, and wait for the service for a while."""
        if os.getpid() != self._process:
            return  # a fork of the program that trains has no say in how it ends
        reporter, registration, self._reporter = self._reporter, self._registration, None
        if reporter is None or registration is None:
            return
        atexit.unregister(self._leave)
        outcome, text, trace = Outcome.SUCCEEDED, reason, None
        if isinstance(error, _INTERRUPTED):
            outcome, text = Outcome.STOPPED, str(error) or "interrupted"
        elif error is not None:
            outcome, text = Outcome.FAILED, f"{type(error).__name__}: {error}"
            trace = "".join(traceback.format_exception(error))
        elif reporter.control().stops:
            asked = "request" if reporter.control() is Control.STOP else "an alert"
            outcome, text = Outcome.STOPPED, f"stopped on {asked}"
        reporter.send(
            RunFinished(
                submission=1,
                time=dt.datetime.now(dt.UTC),
                outcome=outcome,
                reason=text[:4096],
                traceback=None if trace is None else trace[-65536:],
            )
        )
        try:
            # Before the wait: who is killed there has told its end, which `curvewatch send` sends.
            registration.keep(ended=True)
        except OSError as trouble:
            logger.warning(
                "The end of run %s is not written down: %s",
                registration.state.run_id,
                trouble,
                extra={"action": "reported_state_not_kept"},
            )
        reporter.close()

    def _leave(self) -> None:
        """Say how the program ends whose training did not tell its end."""
        error = getattr(sys, "last_value", None)
        self.end("", error or RuntimeError("the program ended before the training did"))

    def _send(self, epoch: int, row: Row, started_at: dt.datetime, seconds: float) -> None:
        if self._reporter is None or self._state is None:
            return
        state = self._state
        record = record_of(
            row,
            started_at,
            seconds,
            run_id=state.run_id,
            attempt=state.attempt,
            epoch=epoch,
            ranks=state.run.world_size,
            framework=self._framework,
        )
        self._reporter.send(EpochFinished(record=record))

    def _left(self) -> ReportedState | None:
        """Return the latest run of this name that has not told its end to the same service."""
        states = []
        for path in self._folder.glob("*/reported.json"):
            try:
                states.append((path.stat().st_mtime, read_state(path)))
            except (OSError, ValidationError):
                continue
        ours = [
            (at, state)
            for at, state in states
            if state.run.name == self._name and state.server == self._profile.server
        ]
        latest = max(ours, key=lambda one: one[0])[1] if ours else None
        return None if latest is None or latest.ended else latest

    def _registered(self, beginning: Beginning, left: ReportedState | None) -> Registration:
        unknown = beginning.after - len(beginning.known) if left is None else left.unknown_epochs
        # Epochs beyond all reason are a way to say that the training ends by itself.
        open_end = beginning.planned is None or beginning.planned > MOST_EPOCHS
        planned = None if open_end else max((beginning.planned or 0) - unknown, 1)
        run = _described(self._name, self._framework, planned, beginning.processes)
        if left is None:
            run_id, server = new_run_id(run.name), self._profile.server
            state = ReportedState(run_id=run_id, run=run, server=server, attempt=1, unknown_epochs=unknown)
        else:
            state = left.model_copy(update={"run": run, "attempt": left.attempt + 1})
        registration = Registration(state, self._profile, self._folder)
        try:
            registration.make()
        except Refused as error:
            if left is not None and isinstance(error, Taken):
                # The service holds it for ended: the training goes on as a new run, with the curve so far.
                return self._registered(beginning, None)
            raise HookError(
                f"CurvewatchCallback(run={self._name!r}): {self._profile.server} does not take the run: {error}"
            ) from error
        except Undeliverable as error:
            logger.warning(
                "Run %s is told to %s as soon as it answers (%s); until then its epochs are kept in %s",
                state.run_id,
                self._profile.server,
                error,
                self._folder,
                extra={"action": "reported_run_waits"},
            )
        else:
            logger.info(
                "Run %s: %s/runs/%s",
                state.run_id,
                self._profile.server,
                state.run_id,
                extra={"action": "reported_run", "run_id": state.run_id},
            )
        return registration


class Taken(Refused):
    """The run's id is another's, or the run has ended."""


class Registration:
    """Makes the run at the service before the first message, once the service answers; sends what comes then.

    Args:
        state: The run; kept in its folder.
        profile: The service, and its user.
        folder: Folder of the runs.

    Raises:
        OSError: The state cannot be kept.
    """

    def __init__(self, state: ReportedState, profile: Profile, folder: Path) -> None:
        self.state = state
        self._profile, self._folder = profile, folder
        self._post: HttpPost | None = None
        self._lock = threading.Lock()  # the end and the token come from two threads
        keep_state(folder, state)

    def __call__(self, messages: Sequence[IngestMessage]) -> Control:
        """Send messages."""
        try:
            post = self._post or self.make()
        except Refused as error:
            raise Undeliverable(str(error)) from error
        try:
            return post(tuple(messages))
        except Refused as error:
            if error.status in _MESSAGES_ARE_WRONG:
                raise
            # Not for ever, and no reason to drop them: a later start has the run, the service has lost it, or a
            # gateway answers in the place of the service.
            raise Undeliverable(f"the run has another token by now, or is gone: {error}") from error

    def keep(self, **changes: object) -> None:
        """Change what is remembered of the run, unless a later start has it.

        Raises:
            OSError: It cannot be written.
        """
        with self._lock:
            self.state = self.state.model_copy(update=changes)
            if not self._taken_over():
                keep_state(self._folder, self.state)

    def _taken_over(self) -> bool:
        try:
            there = read_state(RunLayout(self._folder, self.state.run_id).reported)
        except (OSError, ValidationError):
            return False
        return there.attempt > self.state.attempt

    def make(self) -> HttpPost:
        """Make the run, or shut out an earlier process of it.

        Raises:
            Taken: The id cannot be used.
            Refused: The service will never take it.
            Undeliverable: It does not answer now.
        """
        if self._taken_over():
            raise Undeliverable("a later start of this training has the run")
        address = f"{self._profile.server}/api/v1/runs/{self.state.run_id}"
        session = DeadlineSession(address)
        session.headers.update(
            {"Authorization": f"Bearer {self._profile.token}", "Content-Type": "application/json"}
        )
        body = self.state.run.model_dump_json()
        try:
            with session:
                response = session.send_within(_REQUEST_SECONDS, address, body, method="PUT")
        except (requests.exceptions.InvalidURL, LocationParseError) as error:
            raise Refused(f"its address cannot be used: {error}") from error
        except requests.RequestException as error:
            raise Undeliverable(str(error)) from error
        except OSError as error:  # $REQUESTS_CA_BUNDLE names no file
            raise Refused(str(error)) from error
        if not response.ok:
            raise _refusal(response)
        try:
            token = ReportedRunAnswer.model_validate_json(response.content).ingest_token
        except ValidationError as error:
            raise Undeliverable(f"{response.status_code}, but no answer of a Curvewatch service") from error
        self.keep(ingest_token=token)
        self._post = HttpPost(f"{address}/ingest", token, outside=True)
        return self._post


def _refusal(response: requests.Response) -> Exception:
    try:
        detail = str(response.json()["detail"])
    except (ValueError, KeyError, TypeError):
        detail = response.text[:500]
    if response.status_code == 409:
        return Taken(detail, response.status_code)
    if is_final(response.status_code):
        return Refused(detail, response.status_code)
    return Undeliverable(f"{response.status_code}: {detail}")


def _profile() -> Profile:
    try:
        profile = read_profile()
    except ProfileError as error:
        raise HookError(f"CurvewatchCallback(run=...): {error}") from error
    return profile.model_copy(update={"server": profile.server.rstrip("/")})


def _described(name: str, framework: str, planned: int | None, processes: int) -> ReportedRun:
    try:
        return ReportedRun(name=name, trained_by=framework, epochs=planned, world_size=processes)
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
        rule = (
            "a run's name is letters, digits, `.`, `_` and `-`, at most 63 characters, the first and last no mark"
            if wrong["loc"] == ("name",)
            else f"{'.'.join(map(str, wrong['loc']))}: {wrong['msg']}"
        )
        raise HookError(f"CurvewatchCallback(run={name!r}): {rule}; choose another") from error
