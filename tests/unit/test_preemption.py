"""When the ranks look for notices, and when a checkpoint is taken for one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torchmetrics
from torch.utils.data import Dataset, IterableDataset

from curvewatch_workers import preemption
from curvewatch_workers.checkpoint import FolderCheckpoints
from curvewatch_workers.contract import WorkerEvent
from curvewatch_workers.group import SoloGroup
from curvewatch_workers.loop import Trainer
from curvewatch_workers.preemption import GRACE_SECONDS, LOOK_SECONDS, MARGIN_SECONDS, Lookout, Notice
from curvewatch_workers.task import TrainingTask
from curvewatch_workers.testing import RecordingReporter
from engine_support import make_spec, make_task


class Cluster:
    """Has a clock, and gives the notice that it was told of."""

    def __init__(self) -> None:
        self.time = 1000.0
        self.notice: Notice | None = None
        self.looks = 0

    def latest(self) -> Notice | None:
        self.looks += 1
        return self.notice

    def now(self) -> float:
        return self.time


def lookout(cluster: Cluster) -> Lookout:
    return Lookout(cluster, SoloGroup(), clock=cluster.now, now=cluster.now)


def train(watch: Lookout, cluster: Cluster, steps: int, *, pace: float, of: int = 10**6) -> int | None:
    """Take steps of so many seconds; return the first after which a checkpoint is taken."""
    for step in range(1, steps + 1):
        cluster.time += pace
        if watch.must_save(of - step):
            return step
    return None


@pytest.mark.parametrize("pace", [0.001, 0.1, 2.0, 60.0])
def test_looks_are_paced_by_the_clock(pace: float) -> None:
    cluster = Cluster()

    train(lookout(cluster), cluster, 10_000, pace=pace)

    looks = 10_000 / max(1, int(LOOK_SECONDS / pace))
    assert looks - 1 <= cluster.looks <= looks + 6


def test_a_checkpoint_waits_for_the_epoch_when_the_node_stays_that_long() -> None:
    cluster = Cluster()
    watch = lookout(cluster)
    cluster.notice = Notice(cluster.time + 100 + MARGIN_SECONDS + LOOK_SECONDS, (1,))

    assert train(watch, cluster, 100, pace=1.0, of=100) is None
    assert watch.notice == cluster.notice
    assert not watch.answered


def test_a_checkpoint_is_taken_at_once_when_the_node_leaves_before() -> None:
    cluster = Cluster()
    watch = lookout(cluster)
    train(watch, cluster, 50, pace=1.0)
    cluster.notice = Notice(cluster.time + 30, (0,))

    step = train(watch, cluster, 500, pace=1.0)

    assert step is not None
    assert step <= LOOK_SECONDS + 1
    assert watch.is_new


def test_it_is_taken_just_in_time_where_the_end_of_the_epoch_moves_away() -> None:
    cluster = Cluster()
    watch = lookout(cluster)
    cluster.notice = Notice(cluster.time + 60, (0,))
    assert not watch.must_save(20)  # so far a step has taken no time

    assert train(watch, cluster, 30, pace=1.0, of=40) is None  # 40 s fit
    assert train(watch, cluster, 30, pace=1.0, of=40 + 3600) is not None
    assert 1000 + 60 - cluster.time > MARGIN_SECONDS


def test_without_a_deadline_the_node_stays_as_long_as_ray_waits() -> None:
    cluster = Cluster()
    watch = lookout(cluster)
    cluster.notice = Notice(None, (0,))

    assert train(watch, cluster, 10, pace=1.0, of=90) is None
    assert watch.seconds_left() == pytest.approx(GRACE_SECONDS, abs=10)
    assert train(watch, cluster, 10, pace=1.0, of=1000) is not None


def test_one_notice_takes_one_checkpoint_and_the_next_another() -> None:
    cluster = Cluster()
    watch = lookout(cluster)
    cluster.notice = Notice(cluster.time + 20, (0,))
    assert train(watch, cluster, 100, pace=1.0) is not None
    watch.saved()

    assert train(watch, cluster, 100, pace=1.0) is None
    cluster.notice = Notice(cluster.time + 20, (0, 1))
    assert train(watch, cluster, 100, pace=1.0) is not None


def test_a_notice_that_is_taken_back_is_forgotten() -> None:
    cluster = Cluster()
    watch = lookout(cluster)
    cluster.notice = Notice(cluster.time + 1000, (0,))
    train(watch, cluster, 20, pace=1.0, of=100)
    assert watch.seconds_left() is not None
    cluster.notice = None
    train(watch, cluster, 20, pace=1.0, of=100)

    assert watch.notice is None
    assert watch.seconds_left() is None


def test_nobody_looks_where_nobody_tells() -> None:
    watch = Lookout(None, SoloGroup())

    assert not any(watch.must_save(10**9) for _ in range(100))
    watch.look_at_boundary()
    assert watch.notice is None


class Stream(IterableDataset[Any]):
    """A dataset in its order; it shards itself."""

    def __init__(self, inner: Dataset[Any]) -> None:
        self._inner = inner

    def __len__(self) -> int:
        return 50

    def __iter__(self) -> Iterator[Any]:
        return self.shard(0, 1)

    def shard(self, shard: int, shards: int) -> Iterator[Any]:
        return (self._inner[index] for index in range(shard, 50, shards))


def streaming_task() -> TrainingTask:
    task = make_task()
    assert isinstance(task.train, Dataset)
    return make_task(model=task.model, optimizer=task.optimizer, train=Stream(task.train))


def task_with_a_metric_that_is_no_sum() -> TrainingTask:
    metric: Any = torchmetrics.classification.MulticlassAccuracy(num_classes=3)
    return make_task(metrics={"accuracy": metric})


@pytest.mark.parametrize("make", [streaming_task, task_with_a_metric_that_is_no_sum])
@pytest.mark.parametrize("stays", [-100.0, 0.0, MARGIN_SECONDS / 2])
def test_an_epoch_that_nobody_could_go_on_with_is_not_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[], TrainingTask], stays: float
) -> None:
    monkeypatch.setattr(preemption, "LOOK_SECONDS", 0.0)
    cluster, reporter = Cluster(), RecordingReporter()
    cluster.notice = Notice(time.time() + stays, (0,))
    trainer = Trainer(
        run_id="toy",
        attempt=1,
        spec=make_spec(epochs=2, checkpoints={"min_interval_seconds": 0}),
        task=make(),
        group=SoloGroup(),
        checkpoints=FolderCheckpoints(tmp_path, rank=0, keep=9),
        reporter=reporter,
        notices=cluster,
    )

    trainer.run(after_epoch=0)

    events = [one.reason for one in reporter.messages if isinstance(one, WorkerEvent)]
    assert events == ["preemption_notice"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch-000001", "epoch-000002"]
