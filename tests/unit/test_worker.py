"""A worker from start to ending: attempts, errors of the user's code, and what the next attempt makes of them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from curvewatch_workers.checkpoint import Checkpoints, FolderCheckpoints, NoCheckpoints
from curvewatch_workers.contract import (
    AttemptStarted,
    Control,
    EpochFinished,
    Outcome,
    RunLayout,
    WorkerJob,
    last_failure,
    repeated_failure,
)
from curvewatch_workers.errors import ExitedError, StorageError, SupersededError
from curvewatch_workers.group import SoloGroup
from curvewatch_workers.testing import FakeGroup, RecordingReporter
from curvewatch_workers.worker import WorkerEnding, latest_attempt, run_worker
from engine_support import make_spec

USERS_FILE = '''
from pathlib import Path
from engine_support import make_task
from torch.utils.data import Dataset

class Fails(Dataset):
    """Raises for sample 7 as often as the file says."""
    def __init__(self, inner, counter):
        self.inner, self.counter = inner, Path(counter)
    def __len__(self):
        return len(self.inner)
    def __getitem__(self, index):
        left = int(self.counter.read_text())
        if index == 7 and left:
            self.counter.write_text(str(left - 1))
            raise OSError("sample 7 cannot be read")
        return self.inner[index]

def build(counter):
    task = make_task()
    return make_task(model=task.model, optimizer=task.optimizer, train=Fails(task.train, counter))
'''


@pytest.fixture
def counter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "failing_job.py").write_text(USERS_FILE)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("failing_job", None)
    return tmp_path / "counter"


def start(
    tmp_path: Path,
    params: dict[str, object],
    *,
    submission: int = 1,
    task: str = "failing_job:build",
    code: dict[str, str] | None = None,
    checkpoints: Checkpoints | None = None,
) -> tuple[WorkerEnding, RecordingReporter | None]:
    spec = make_spec(code=code or {"task": task}, params=params)
    job = WorkerJob(
        run_id="toy-1",
        submission=submission,
        spec=spec,
        storage_path=str(tmp_path / "runs"),
        service_url=None,
    )
    reporters: list[RecordingReporter] = []

    def make_reporter(_attempt: int) -> RecordingReporter:
        reporters.append(RecordingReporter())
        return reporters[-1]

    checkpoints = checkpoints or FolderCheckpoints(
        RunLayout(job.storage_path, job.run_id).root, rank=0, keep=2
    )
    ending = run_worker(job, SoloGroup(), checkpoints, make_reporter)
    return ending, reporters[-1] if reporters else None


def test_a_run_tells_its_start_and_its_epochs(tmp_path: Path, counter: Path) -> None:
    counter.write_text("0")

    ending, reporter = start(tmp_path, {"counter": str(counter)})

    assert ending.outcome is Outcome.SUCCEEDED
    assert reporter is not None
    assert reporter.closed
    kinds = [type(message) for message in reporter.messages]
    assert kinds == [AttemptStarted, EpochFinished, EpochFinished]


def test_a_passing_failure_is_raised_and_the_next_attempt_trains(tmp_path: Path, counter: Path) -> None:
    counter.write_text("1")
    with pytest.raises(OSError, match="sample 7"):
        start(tmp_path, {"counter": str(counter)})

    ending, reporter = start(tmp_path, {"counter": str(counter)})

    assert ending.outcome is Outcome.SUCCEEDED
    assert reporter is not None
    assert {message.attempt for message in reporter.messages if isinstance(message, AttemptStarted)} == {2}


def test_what_fails_twice_at_one_step_is_not_tried_a_third_time(tmp_path: Path, counter: Path) -> None:
    counter.write_text("9")
    for _ in range(2):
        with pytest.raises(OSError, match="sample 7"):
            start(tmp_path, {"counter": str(counter)})

    ending, reporter = start(tmp_path, {"counter": str(counter)})

    assert ending.outcome is Outcome.FAILED
    assert reporter is None
    assert "failed twice at epoch 1, train step" in ending.reason
    assert "sample 7 cannot be read" in ending.reason
    assert ending.traceback is not None
    assert "failing_job.py" in ending.traceback
    assert counter.read_text() == "7"


def test_a_task_that_cannot_be_built_ends_the_run_at_once(tmp_path: Path, counter: Path) -> None:
    counter.write_text("0")

    ending, _ = start(tmp_path, {"no_such_param": 1})

    assert ending.outcome is Outcome.FAILED
    assert "does not take the job's params" in ending.reason


def test_attempts_are_numbered_over_all_starts(tmp_path: Path, counter: Path) -> None:
    counter.write_text("0")
    attempts = []
    for _ in range(3):
        _, reporter = start(tmp_path, {"counter": str(counter)})
        assert reporter is not None
        attempts += [message.attempt for message in reporter.messages if isinstance(message, AttemptStarted)]

    assert attempts == [1, 2, 3]


def test_failures_of_an_earlier_submission_do_not_count(tmp_path: Path, counter: Path) -> None:
    counter.write_text("2")
    for _ in range(2):
        with pytest.raises(OSError, match="sample 7"):
            start(tmp_path, {"counter": str(counter)})

    ending, _ = start(tmp_path, {"counter": str(counter)}, submission=2)

    assert ending.outcome is Outcome.SUCCEEDED


def test_the_last_failure_can_be_told_when_there_is_no_further_attempt(tmp_path: Path, counter: Path) -> None:
    counter.write_text("1")
    with pytest.raises(OSError, match="sample 7"):
        start(tmp_path, {"counter": str(counter)})
    layout = RunLayout(tmp_path / "runs", "toy-1")

    failure = last_failure(layout, 1)

    assert failure is not None
    assert "failed at epoch 1, train step" in failure.told("failed")
    assert "failing_job.py" in failure.traceback
    assert last_failure(layout, 2) is None
    assert repeated_failure(layout, 1) is None


def test_a_start_of_the_job_that_outlives_its_successor_does_not_train_again(
    tmp_path: Path, counter: Path
) -> None:
    """Its workers were ended by a later attempt; its own controller, cut off, starts them again."""
    counter.write_text("0")
    start(tmp_path, {"counter": str(counter)}, submission=1)
    start(tmp_path, {"counter": str(counter)}, submission=2)

    ending, reporter = start(tmp_path, {"counter": str(counter)}, submission=1)

    assert ending.outcome is Outcome.FAILED
    assert "start 2 of it has begun to train" in ending.reason
    assert reporter is None
    assert latest_attempt(RunLayout(tmp_path / "runs", "toy-1")) == 2


def test_an_attempt_ends_before_it_tells_an_epoch_when_a_later_one_has_started(
    tmp_path: Path, counter: Path
) -> None:
    counter.write_text("0")
    layout = RunLayout(tmp_path / "runs", "toy-1")

    class OvertakenAfterOneEpoch(RecordingReporter):
        """While this attempt is in its second epoch, another group claims the next number."""

        asked = 0

        def control(self) -> Control:
            self.asked += 1
            (layout.attempts / "000002").touch()
            return super().control()

    reporter = OvertakenAfterOneEpoch()
    job = WorkerJob(
        run_id="toy-1",
        submission=1,
        spec=make_spec(code={"task": "failing_job:build"}, params={"counter": str(counter)}, epochs=3),
        storage_path=str(tmp_path / "runs"),
        service_url=None,
    )
    checkpoints = FolderCheckpoints(layout.root, rank=0, keep=2)

    with pytest.raises(SupersededError, match="attempt 2 of this run has started"):
        run_worker(job, SoloGroup(), checkpoints, lambda _attempt: reporter)

    assert [record.epoch for record in reporter.records] == [1]
    assert (reporter.asked, reporter.closed) == (1, True)
    assert checkpoints.names() == ("epoch-000001",)
    assert last_failure(layout, 1) is None, "it is no failure of the run"
    assert latest_attempt(layout) == 2


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise SystemExit(0)", "importing broken_job raised SystemExit"),
        ("def build():\n    raise ValueError('caf\\udce9.png')", "ValueError: caf\\udce9.png"),
        (
            "from engine_support import make_task\ndef build():\n    return make_task(metrics=[len])",
            "metrics must be a dict",
        ),
        (
            "from engine_support import make_task\n"
            "class Odd:\n    def __getitem__(self, i): return i\n    def __len__(self): raise NotImplementedError\n"
            "def build():\n    return make_task(train=Odd())",
            "looking at TrainingTask.train raised NotImplementedError",
        ),
    ],
)
def test_every_way_to_build_no_task_is_an_ending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, reason: str
) -> None:
    (tmp_path / "broken_job.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("broken_job", None)

    ending, _ = start(tmp_path, {}, task="broken_job:build")

    assert ending.outcome is Outcome.FAILED
    assert reason in ending.reason
    assert WorkerEnding.model_validate_json(ending.model_dump_json()) == ending


def test_what_another_rank_finds_wrong_ends_this_one_before_its_next_collective(
    tmp_path: Path, counter: Path
) -> None:
    counter.write_text("0")
    told = WorkerEnding(outcome=Outcome.FAILED, reason="rank 1 has no such file")

    class OtherRankFails(FakeGroup):
        asked = 0

        def first_problem(self, problem: str | None) -> str | None:
            assert problem is None
            self.asked += 1
            return told.model_dump_json() if self.asked == 2 else None

    group = OtherRankFails(0, 2)
    spec = make_spec(code={"task": "failing_job:build"}, params={"counter": str(counter)})
    job = WorkerJob(
        run_id="toy-2", submission=1, spec=spec, storage_path=str(tmp_path / "runs"), service_url=None
    )

    ending = run_worker(job, group, NoCheckpoints(), lambda _attempt: RecordingReporter())

    assert ending == told
    assert group.reduced == []


STATEFUL_FILE = """
import torch
from pathlib import Path
from engine_support import make_task

class AfterAStep(torch.optim.SGD):
    def step(self, closure=None):
        super().step(closure)
        for state in self.state.values():
            state["place"] = Path("x")

class Schedule(torch.optim.lr_scheduler.StepLR):
    def __init__(self, optimizer):
        super().__init__(optimizer, 1)
        self.place = Path("x")

def build(part):
    task = make_task()
    made = AfterAStep(task.model.parameters(), lr=0.1, momentum=0.9)
    if part == "optimizer":
        return make_task(model=task.model, optimizer=made)
    return make_task(model=task.model, optimizer=task.optimizer, scheduler=Schedule(task.optimizer))
"""


@pytest.mark.parametrize(("part", "trained"), [("optimizer", 1), ("scheduler", 0)])
def test_state_that_no_checkpoint_can_hold_ends_the_run_at_its_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, trained: int
) -> None:
    (tmp_path / "stateful_job.py").write_text(STATEFUL_FILE)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("stateful_job", None)

    ending, reporter = start(tmp_path, {"part": part}, task="stateful_job:build")

    assert ending.outcome is Outcome.FAILED
    assert f"TrainingTask.{part}: " in ending.reason
    assert "pathlib" in ending.reason
    assert "add_safe_globals" in ending.reason
    assert reporter is not None
    assert [record.epoch for record in reporter.records] == [1] * trained
    assert not list((tmp_path / "runs" / "toy-1").glob("*epoch-*"))


RAISING_FILE = """
import itertools, sys, tempfile
from engine_support import make_task
from torch.utils.data import Dataset

class Raises(Dataset):
    def __init__(self, inner, how):
        self.inner, self.how = inner, how
    def __len__(self):
        return len(self.inner)
    def __getitem__(self, index):
        if index == 7:
            getattr(self, self.how)()
        return self.inner[index]
    def exits(self):
        sys.exit(0)
    def names_itself(self):
        raise ValueError(f"{object()} in {tempfile.mkdtemp()} is empty")

def build(how):
    task = make_task()
    return make_task(model=task.model, optimizer=task.optimizer, train=Raises(task.train, how))

def loop(how):
    sys.exit(0)
"""


@pytest.fixture
def raising(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "raising_job.py").write_text(RAISING_FILE)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("raising_job", None)


@pytest.mark.usefixtures("raising")
def test_an_error_that_names_addresses_and_temporary_folders_is_known_again(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match="is empty"):
            start(tmp_path, {"how": "names_itself"}, task="raising_job:build")

    ending, _ = start(tmp_path, {"how": "names_itself"}, task="raising_job:build")

    assert ending.outcome is Outcome.FAILED
    assert "failed twice" in ending.reason
    failure = last_failure(RunLayout(tmp_path / "runs", "toy-1"), 1)
    assert failure is not None
    assert failure.kind == "builtins.ValueError"
    assert any(frame.startswith("raising_job.py:") and "names_itself" in frame for frame in failure.frames)


@pytest.mark.usefixtures("raising")
@pytest.mark.parametrize("code", [{"task": "raising_job:build"}, {"loop": "raising_job:loop"}])
def test_code_that_exits_has_failed(tmp_path: Path, code: dict[str, str]) -> None:
    for _ in range(2):
        with pytest.raises(ExitedError, match=r"called sys\.exit\(0\) in a worker"):
            start(tmp_path, {"how": "exits"}, code=code)

    ending, _ = start(tmp_path, {"how": "exits"}, code=code)

    assert ending.outcome is Outcome.FAILED
    assert "sys.exit(0)" in ending.reason
    assert ending.traceback is not None
    assert "raising_job.py" in ending.traceback


def test_a_storage_that_fails_twice_at_one_step_does_not_end_the_run(tmp_path: Path, counter: Path) -> None:
    counter.write_text("0")

    class Full(NoCheckpoints):
        def save(self, *_arguments: object, **_options: object) -> str | None:
            raise OSError("no space left on device")

    for _ in range(3):
        with pytest.raises(StorageError, match="could not be kept: no space left"):
            start(tmp_path, {"counter": str(counter)}, checkpoints=Full())


def test_an_attempt_that_cannot_be_numbered_is_told_in_a_sentence(tmp_path: Path, counter: Path) -> None:
    counter.write_text("0")
    layout = RunLayout(str(tmp_path / "runs"), "toy-1")
    layout.root.mkdir(parents=True)
    layout.attempts.write_text("no folder")

    with pytest.raises(StorageError, match=r"attempts cannot be written: .*; make room there"):
        start(tmp_path, {"counter": str(counter)})
