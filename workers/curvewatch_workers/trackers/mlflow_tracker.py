"""A run in MLflow: on the server that MLFLOW_TRACKING_URI names, else in a database below `mlflow/`.

MLFLOW_EXPERIMENT_NAME names the experiment, else the job's name. MLflow takes the largest float64 for infinity.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Sequence

from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from curvewatch_workers.trackers.points import Point, flat_settings
from curvewatch_workers.trackers.tracker import TrackedRun

KEY_TAG = "curvewatch.key"
"""Tag that tells which runs in MLflow are attempts of one run."""
_METRICS_AT_ONCE, _PARAMS_AT_ONCE = 1000, 100
_LONGEST_PARAM = 6000
_REFUSED_IN_NAMES = re.compile(r"[^\w/. :-]")


class MlflowTracker:
    """Makes a new MLflow run at each attempt and deletes those of earlier ones: MLflow forgets no step of a run."""

    def __init__(self, run: TrackedRun) -> None:
        self._run = run
        self._uri = run.environment.get("MLFLOW_TRACKING_URI")
        if not self._uri:
            # Imported by the library at its first use, which is in another thread.
            importlib.import_module("mlflow.store.tracking.sqlalchemy_store")
        self._files = run.folder / "mlflow"
        self._client: MlflowClient | None = None
        self._mlflow_run = ""

    def rewrite(self, curve: Sequence[Point]) -> None:
        """Make a run with the curve, then delete the old ones."""
        client = self._client = self._connect()
        experiment = self._experiment(client)
        old = client.search_runs([experiment], f"tags.`{KEY_TAG}` = '{self._run.key}'")
        labels = dict(self._run.spec.labels)
        run = client.create_run(
            experiment, run_name=self._run.run_id, tags={KEY_TAG: self._run.key, **labels}
        )
        self._mlflow_run = run.info.run_id
        self._log(params=[Param(key, value[:_LONGEST_PARAM]) for key, value in _params(self._run)])
        self._log(metrics=[metric for point in curve for metric in _metrics(point)])
        for one in old:
            client.delete_run(one.info.run_id)

    def append(self, point: Point) -> None:
        """Write an epoch."""
        self._log(metrics=_metrics(point))

    def close(self) -> None:
        """End the run in MLflow."""
        client, self._client = self._client, None
        if client is not None:
            client.set_terminated(self._mlflow_run)

    def _connect(self) -> MlflowClient:
        if self._uri:
            return MlflowClient(tracking_uri=self._uri)
        self._files.mkdir(exist_ok=True)
        return MlflowClient(tracking_uri=f"sqlite:///{self._files / 'mlflow.db'}")

    def _experiment(self, client: MlflowClient) -> str:
        name = self._run.environment.get("MLFLOW_EXPERIMENT_NAME") or self._run.spec.name
        # Beside the database, not in a folder `mlruns` of whatever folder the worker runs in.
        artifacts = None if self._uri else (self._files / "artifacts").as_uri()
        if (found := client.get_experiment_by_name(name)) is not None:
            return str(found.experiment_id)
        try:
            return client.create_experiment(name, artifact_location=artifacts)
        except MlflowException:
            # Another run of the job may have made it meanwhile.
            if (found := client.get_experiment_by_name(name)) is None:
                raise
            return str(found.experiment_id)

    def _log(self, *, params: Sequence[Param] = (), metrics: Sequence[Metric] = ()) -> None:
        if self._client is None:
            return
        for start in range(0, len(params), _PARAMS_AT_ONCE):
            self._client.log_batch(self._mlflow_run, params=params[start : start + _PARAMS_AT_ONCE])
        for start in range(0, len(metrics), _METRICS_AT_ONCE):
            self._client.log_batch(self._mlflow_run, metrics=metrics[start : start + _METRICS_AT_ONCE])


def _params(run: TrackedRun) -> Iterator[tuple[str, str]]:
    """Return the job's settings; its labels are tags."""
    for name, value in flat_settings(run.spec).items():
        if not name.startswith("labels."):
            yield _name(name), str(value)


def _metrics(point: Point) -> list[Metric]:
    time = round(point.time.timestamp() * 1000)
    return [Metric(_name(name), float(value), time, point.epoch) for name, value in point.values.items()]


def _name(name: str) -> str:
    """Return a name that MLflow takes."""
    return _REFUSED_IN_NAMES.sub("_", name)
