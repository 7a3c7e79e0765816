"""Feed the trackers of a job as attempts do, and read back what each wrote with its own library."""

from __future__ import annotations

import csv
import json
import math
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata
from wandb.proto import wandb_internal_pb2

from curvewatch_workers.contract import (
    AttemptStarted,
    EpochFinished,
    EpochRecord,
    RunLayout,
    WorkerEvent,
    WorkerJob,
)
from curvewatch_workers.testing import RecordingReporter
from curvewatch_workers.trackers import tracked
from engine_support import make_spec
from record_support import START

_WANDB_RECORD: Any = wandb_internal_pb2.Record  # type: ignore[attr-defined]  # made when it is imported

TRACKERS = ("tensorboard", "wandb", "mlflow", "csv", "jsonl")

Curve = list[tuple[int, dict[str, float]]]
"""Epochs in the order in which a tracker has them, with their numbers by name."""

OTHERS_WARNINGS = pytest.mark.filterwarnings(
    # MLflow's own use of SQLAlchemy.
    "ignore:The ``noload`` loader strategy"
)


def make_job(storage: Path, *track: str, **changes: Any) -> WorkerJob:
    """Return a job with trackers, some params and a label."""
    fields: dict[str, Any] = {
        "params": {"lr": 0.5, "layers": [8, 4], "nested": {"dropout": None, "name": "a"}},
        "labels": {"team": "vision"},
        "track": track,
    }
    spec = make_spec(**{**fields, **changes})
    return WorkerJob(run_id="toy-1", submission=1, spec=spec, storage_path=str(storage), service_url=None)


def plain_environment(home: Path) -> dict[str, str]:
    """Return an environment in which no tracker is configured, and none tells its makers of its use."""
    return {
        "HOME": str(home),
        "PATH": "/usr/bin:/bin",
        "OMP_NUM_THREADS": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "WANDB_ERROR_REPORTING": "false",
    }


def run_attempt(
    job: WorkerJob,
    attempt: int,
    environment: Mapping[str, str],
    *,
    checkpoint: Sequence[EpochRecord] = (),
    trained: Iterable[EpochRecord] = (),
) -> RecordingReporter:
    """Send what a worker sends: the checkpoint's epochs, its start, then each epoch that it trains."""
    inner = RecordingReporter()
    # Long: a machine that does much else must not decide what a test sees.
    reporter = tracked(job, attempt, inner, environment, flush_seconds=200)
    for record in checkpoint:
        reporter.send(EpochFinished(record=record))
    reporter.send(
        AttemptStarted(attempt=attempt, world_size=1, time=START, resumed_after_epoch=len(checkpoint))
    )
    for record in trained:
        reporter.send(EpochFinished(record=record))
    reporter.close()
    assert inner.closed
    return inner


def events(reporter: RecordingReporter) -> list[str]:
    """Return the messages of the events, all of failed trackers."""
    found = [message for message in reporter.messages if isinstance(message, WorkerEvent)]
    assert all(event.reason == "tracker_failed" for event in found)
    return [event.message for event in found]


def read_curve(name: str, job: WorkerJob) -> Curve:
    """Read the curve that a tracker shows."""
    return read_tracking(name, RunLayout(job.storage_path, job.run_id).tracking)


def read_tracking(name: str, folder: Path) -> Curve:
    """Read the curve that a tracker shows, from the run's folder of trackers."""
    return _READERS[name](folder)


def _read_csv(folder: Path) -> Curve:
    with (folder / "epochs.csv").open(newline="") as file:
        return [_split(row) for row in csv.DictReader(file)]


def _read_jsonl(folder: Path) -> Curve:
    return [_split(json.loads(line)) for line in (folder / "epochs.jsonl").read_text().splitlines()]


def _split(row: dict[str, Any]) -> tuple[int, dict[str, float]]:
    epoch = int(row.pop("epoch"))
    row.pop("finished_at")
    return epoch, {name: float(value) for name, value in row.items() if value != ""}


def _read_tensorboard(folder: Path) -> Curve:
    events = load_tensorboard(folder)
    return _join(
        (event.step, name, event.value) for name in events.Tags()["scalars"] for event in events.Scalars(name)
    )


def load_tensorboard(folder: Path) -> EventAccumulator:
    """Read the event files as TensorBoard does, keeping every point."""
    loaded = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    return loaded.Reload()


def tensorboard_settings(folder: Path) -> dict[str, Any]:
    """Return the hyper-parameters that TensorBoard shows."""
    plugin = load_tensorboard(folder).SummaryMetadata("_hparams_/session_start_info").plugin_data
    started = metadata.parse_session_start_info_plugin_data(plugin.content)
    return {key: getattr(value, value.WhichOneof("kind")) for key, value in started.hparams.items()}


def mlflow_client(folder: Path) -> MlflowClient:
    """Return MLflow's own client of the run's database."""
    return MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow' / 'mlflow.db'}")


def mlflow_run(folder: Path) -> Run:
    """Return the only run that MLflow lists."""
    client = mlflow_client(folder)
    (experiment,) = (one for one in client.search_experiments() if one.name != "Default")
    (run,) = client.search_runs([experiment.experiment_id])
    return run


def _read_mlflow(folder: Path) -> Curve:
    client, run = mlflow_client(folder), mlflow_run(folder)
    return _join(
        (metric.step, name, metric.value)
        for name in run.data.metrics
        for metric in client.get_metric_history(run.info.run_id, name)
    )


def _join(points: Iterable[tuple[int, str, float]]) -> Curve:
    """Gather numbers by epoch; a number that stands twice for an epoch makes the epoch stand twice."""
    rows: list[tuple[int, dict[str, float]]] = []
    for epoch, name, value in points:
        row = next((values for known, values in rows if known == epoch and name not in values), None)
        if row is None:
            rows.append((epoch, row := {}))
        row[name] = value
    return rows


def _read_wandb(folder: Path) -> Curve:
    (path,) = folder.glob("wandb/*run-*/run-*.wandb")
    rows = [record.history for record in wandb_records(path) if record.HasField("history")]
    curve = []
    for row in rows:
        values = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in row.item}
        shown = {name: float(value) for name, value in values.items() if not name.startswith("_")}
        curve.append((int(shown.pop("epoch")), shown))
    return curve


def wandb_records(path: Path) -> Iterator[Any]:
    """Read an offline file: seven bytes of W&B's, then the blocks of a LevelDB log, which hold its records.

    The library reads these files in its Go program only, to upload them.
    """
    data, block, head = path.read_bytes(), 32768, 7
    position, record = head, b""
    while position < len(data):
        if (left := block - position % block) < head:
            position += left
            continue
        _checksum, length, part = struct.unpack("<IHB", data[position : position + head])
        record += data[position + head : position + head + length]
        position += head + length
        if part in (1, 4):  # whole, or the last part
            yield _WANDB_RECORD.FromString(record)
            record = b""


_READERS: dict[str, Callable[[Path], Curve]] = {
    "tensorboard": _read_tensorboard,
    "wandb": _read_wandb,
    "mlflow": _read_mlflow,
    "csv": _read_csv,
    "jsonl": _read_jsonl,
}


def same(one: float, other: float) -> bool:
    """Return whether two numbers are equal as far as float32 goes; NaN equals itself."""
    return math.isclose(one, other, rel_tol=1e-6) or (math.isnan(one) and math.isnan(other))
