"""What is kept of an exception, and what the next attempt, the driver and the service read from it."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from curvewatch_workers.contract import KeptFailure, RunLayout, last_failure, repeated_failure
from record_support import START

CAUSE, LONELY = "OSError: sample 7 cannot be read", "RuntimeError: connection reset by peer 127.0.0.1:30938"


@pytest.fixture
def layout(tmp_path: Path) -> RunLayout:
    made = RunLayout(tmp_path, "toy-1")
    made.attempts.mkdir(parents=True)
    return made


def _keep(
    layout: RunLayout,
    attempt: int,
    *,
    rank: int = 0,
    error: str = CAUSE,
    step: int = 4,
    submission: int = 1,
    second: int = 0,
    **changes: Any,
) -> KeptFailure:
    failure = KeptFailure(
        submission=submission,
        time=START + timedelta(seconds=second),
        error=error,
        position=(3, "train", step),
        traceback=f"Traceback of {error}",
        **changes,
    )
    path = layout.attempts / f"{attempt:06d}-failure-{rank:04d}.json"
    path.write_text(failure.model_dump_json())
    return failure


def test_the_first_rank_that_failed_is_the_cause(layout: RunLayout) -> None:
    _keep(layout, 1, error="OSError: of an earlier attempt")
    _keep(layout, 2, rank=0, error=LONELY, second=9)
    cause = _keep(layout, 2, rank=1, second=3)

    assert last_failure(layout, 1) == cause
    assert cause.told("failed") == "failed at epoch 3, train step 5: OSError: sample 7 cannot be read"


def test_the_same_at_the_same_step_of_two_attempts_repeats_on_whatever_rank(layout: RunLayout) -> None:
    _keep(layout, 1, rank=1)
    _keep(layout, 3, rank=0, error=LONELY, second=9)
    again = _keep(layout, 3, rank=2, second=3)

    assert repeated_failure(layout, 1) == again


@pytest.mark.parametrize(("error", "step"), [("OSError: sample 8 cannot be read", 4), (CAUSE, 5)])
def test_another_error_or_another_step_does_not_repeat(layout: RunLayout, error: str, step: int) -> None:
    _keep(layout, 1)
    _keep(layout, 2, error=error, step=step)

    assert repeated_failure(layout, 1) is None


@pytest.mark.parametrize(
    ("once", "again"),
    [
        ("<Net object at 0x7f3a10> is empty", "<Net object at 0x55e0c8a1b2f0> is empty"),
        ("/tmp/tmpab12_x9z/sample-7.pt is torn", "/tmp/tmpq0q1r2s3/sample-7.pt is torn"),
        (
            "no cache 0b6f1c9e-3c1d-4c55-9c53-1f2b7a0e8d11",
            "no cache 5e2d8f7a-9b1c-4d3e-8f6a-7c5b4a392817",
        ),
    ],
)
def test_what_each_process_names_anew_tells_no_error_from_another(
    layout: RunLayout, once: str, again: str
) -> None:
    _keep(layout, 1, error=f"ValueError: {once}")
    last = _keep(layout, 2, error=f"ValueError: {again}")

    assert repeated_failure(layout, 1) == last


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "their.OSError"},
        {"frames": ("job.py:8 in load", "job.py:30 in parse")},
    ],
)
def test_one_message_of_two_errors_does_not_repeat(layout: RunLayout, changes: dict[str, Any]) -> None:
    _keep(layout, 1, kind="builtins.OSError", frames=("job.py:8 in load",))
    _keep(layout, 2, **{"kind": "builtins.OSError", "frames": ("job.py:8 in load",), **changes})

    assert repeated_failure(layout, 1) is None


def test_what_may_pass_never_ends_a_run(layout: RunLayout) -> None:
    _keep(layout, 1, passing=True)
    last = _keep(layout, 2, passing=True)

    assert repeated_failure(layout, 1) is None
    assert last_failure(layout, 1) == last


def test_another_start_of_the_job_does_not_count(layout: RunLayout) -> None:
    _keep(layout, 1)
    _keep(layout, 2, submission=2)

    assert repeated_failure(layout, 1) is None
    assert repeated_failure(layout, 2) is None
    assert last_failure(layout, 3) is None


def test_a_file_that_cannot_be_read_is_passed_over(layout: RunLayout) -> None:
    kept = _keep(layout, 1)
    (layout.attempts / "000002-failure-0000.json").write_text('{"submission": 1')

    assert last_failure(layout, 1) == kept


def test_a_run_without_a_folder_has_none(tmp_path: Path) -> None:
    assert last_failure(RunLayout(tmp_path, "toy-2"), 1) is None
