from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import httpx
import pytest

from curvewatch_service.client import Client, ServiceAwayError
from curvewatch_service.follow import Change, StillGoingError, follow
from curvewatch_service.schemas import EpochList, EpochView, RunView
from views_support import curve, epoch_view, run_view

EPOCHS = curve()


@dataclass
class Script:
    """A service whose run moves one step each time that it is asked; None is a step at which it is away."""

    steps: Sequence[tuple[RunView, Sequence[EpochView]] | None]
    place: int = -1
    epochs_asked: int = 0
    slept: list[float] = field(default_factory=list)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/epochs"):
            self.epochs_asked += 1
            step = self.steps[self.place]
            assert step is not None
            return httpx.Response(200, text=EpochList(epochs=list(step[1])).model_dump_json())
        self.place += 1
        step = self.steps[self.place]
        if step is None:
            raise httpx.ConnectError("Connection refused", request=request)
        return httpx.Response(200, text=step[0].model_dump_json())

    def changes(self, clock: Callable[[], float] | None = None, limit: float = 1e9) -> Iterator[Change]:
        client = Client("http://curvewatch.test", "t", transport=httpx.MockTransport(self))
        ticks = itertools.count()
        return follow(
            client,
            "r",
            patience_seconds=3,
            limit_seconds=limit,
            sleep=self.slept.append,
            clock=clock or (lambda: float(next(ticks))),
        )


def at(count: int, state: str = "RUNNING", reason: str = "") -> tuple[RunView, Sequence[EpochView]]:
    return run_view(state=state, reason=reason, epochs=EPOCHS[:count]), EPOCHS[:count]


def test_each_change_is_told_once_and_the_last_has_all() -> None:
    script = Script(
        [at(0, "QUEUED"), at(0, "QUEUED"), at(0, "STARTING"), at(2), at(2), at(3), at(3, "SUCCEEDED")]
    )
    changes = list(script.changes())
    assert [
        (change.run.state, len(change.epochs), [e.epoch for e in change.new_epochs]) for change in changes
    ] == [
        ("QUEUED", 0, []),
        ("STARTING", 0, []),
        ("RUNNING", 2, [1, 2]),
        ("RUNNING", 3, [3]),
        ("SUCCEEDED", 3, []),
    ]
    assert [change.ended for change in changes] == [False, False, False, False, True]
    assert script.slept == [0.5] * 6


def test_epochs_are_asked_for_only_when_there_are_new_ones() -> None:
    script = Script([at(1), at(1), at(1), at(2), at(2), at(2, "SUCCEEDED")])
    list(script.changes())
    assert script.epochs_asked == 2


def test_a_run_that_has_ended_is_one_change() -> None:
    (change,) = Script([at(12, "FAILED")]).changes()
    assert change.ended
    assert len(change.new_epochs) == 12


def test_an_epoch_that_a_later_attempt_replayed_is_new_again() -> None:
    replayed = [EPOCHS[0], epoch_view(2, 1.0, 1.1, attempt=2)]
    script = Script([at(2), (run_view(state="SUCCEEDED", epochs=replayed), replayed)])
    last = list(script.changes())[-1]
    assert [(epoch.epoch, epoch.attempt) for epoch in last.new_epochs] == [(2, 2)]


def test_a_service_that_comes_back_in_time_is_waited_for() -> None:
    changes = list(Script([at(1), None, None, at(2), at(2, "SUCCEEDED")]).changes(clock=lambda: 0.0))
    assert [bool(change.away) for change in changes] == [False, True, False, False]
    assert changes[1].run == changes[0].run
    assert not changes[1].ended


def test_a_service_that_stays_away_is_an_error() -> None:
    times = iter([0.0, 0.0, 1.0, 1.0, 2.0, 2.0, 5.0, 5.0, 9.0])
    with pytest.raises(ServiceAwayError):
        list(Script([at(1), None, None, None, None, None]).changes(clock=lambda: next(times)))


def test_a_service_that_is_away_at_the_first_look_is_an_error_at_once() -> None:
    script = Script([None])
    with pytest.raises(ServiceAwayError):
        next(script.changes())
    assert script.slept == []


def test_a_run_that_does_not_end_in_time_is_an_error_with_its_place() -> None:
    steps = [at(2, "RUNNING", "attempt 1 trains")] * 10
    with pytest.raises(
        StillGoingError, match=r"still RUNNING after 5 s \(attempt 1 trains\), at epoch 2 of 12"
    ):
        list(Script(steps).changes(limit=5))
