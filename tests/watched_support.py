"""A Prometheus that watches a service with runs of every kind, for what dashboards ask of it."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

from curvewatch_service.runs import RunState
from curvewatch_service.store import Store
from curvewatch_workers.contract import EpochFinished, MetricTotals, MonitoringSpec, SplitRecord, TrainingSpec
from prometheus_support import JOB, RULES, Prometheus, prometheus_of
from served_support import served, services_over
from store_support import attempt_message, database_url, new_run, record, split

DCGM = Path(__file__).parent / "recorded" / "dcgm_exporter.txt"
"""What DCGM's exporter says of two GPUs: written after its documented format, not taken from a machine."""

OVERFIT, GOOD, ENDED, LONG = "overfit-1", "good-1", "ended-1", "long-1"
BEST_EPOCH, RESTARTED_AFTER, EPOCHS = 10, 20, 30
LONG_EPOCHS = 150
NAN_EPOCH = 8
"""Epoch of the long run whose validation loss is not a number."""


@dataclass(frozen=True)
class Watched:
    """A running Prometheus, the store behind what it sees, and since when it watches."""

    prometheus: Prometheus
    store: Store
    since: float


def losses(run_id: str) -> list[tuple[float, float]]:
    """Return train and validation loss of each epoch of a run."""
    match run_id:
        case "overfit-1":
            return [(1.0 / epoch, 1.0 + 0.1 * abs(epoch - BEST_EPOCH)) for epoch in range(1, EPOCHS + 1)]
        case "long-1":
            return [
                (2.0 / epoch, math.nan if epoch == NAN_EPOCH else 2.5 / epoch)
                for epoch in range(1, LONG_EPOCHS + 1)
            ]
        case _:
            return [(1.0 / epoch, 1.1 / epoch) for epoch in range(1, EPOCHS + 1)]


CHOSEN = {
    "run": {
        "cluster": "embedded",
        "owner": ".*",
        "run": "digits",
        "run_id": OVERFIT,
        "Hostname": ".*",
    },
    "compare": {
        "cluster": ".*",
        "owner": "ada",
        "run": "digits|long",
        "run_id": f"{OVERFIT}|{GOOD}|{LONG}",
        "metric": "accuracy",
        "ended": "15m",
    },
    "fleet": {"cluster": ".*", "owner": ".*"},
}
"""What a person has chosen at the top of each dashboard."""


@contextmanager
def watched(folder: Path, *, epochs_apart: float = 0.0) -> Iterator[Watched]:
    """Let a Prometheus watch runs as they go on: a restart on other workers, a new learning rate, an end, an alert.

    Args:
        folder: For everything.
        epochs_apart: Seconds between two epochs of the run that overfits. Nothing waits for them: they give its curves
            over time a shape for those who draw them.
    """
    store = Store(database_url(folder))
    for run_id in (OVERFIT, GOOD, ENDED, LONG):
        _start(store, run_id)
    _tell(store, OVERFIT, 1, BEST_EPOCH)
    _tell(store, GOOD, 1, EPOCHS)
    _tell(store, ENDED, 1, EPOCHS)
    _tell(store, LONG, 1, LONG_EPOCHS)
    services = services_over(store, folder, linger_seconds=600)
    with served(services) as target, _serving(DCGM.read_bytes()) as gpus:
        every_second = {"scrape_interval": "1s", "scrape_timeout": "1s"}
        configuration = {
            "global": {**every_second, "evaluation_interval": "1s"},
            "rule_files": [str(RULES)],
            "scrape_configs": [
                {"job_name": JOB, "static_configs": [{"targets": [target]}]},
                {
                    "job_name": f"{JOB}-curves",
                    "metrics_path": "/metrics/curves",
                    "static_configs": [{"targets": [target]}],
                },
                {"job_name": "dcgm", "static_configs": [{"targets": [gpus]}]},
            ],
        }
        with prometheus_of(configuration, folder / "prometheus") as prometheus:
            yield _go_on(store, prometheus, epochs_apart)
    store.close()


def _go_on(store: Store, prometheus: Prometheus, epochs_apart: float) -> Watched:
    (moment,) = prometheus.wait(
        "all runs are scraped",
        lambda: (
            prometheus.query("vector(time())")
            if len(
                prometheus.query(
                    f"curvewatch_epoch == on (run_id) curvewatch_best_epoch{{run_id='{OVERFIT}'}}"
                )
            )
            and len(prometheus.query("count by (run_id) (curvewatch_epoch_loss)")) == 4
            and prometheus.query("DCGM_FI_DEV_GPU_UTIL")
            else None
        ),
        seconds=60,
    )
    for epoch in range(BEST_EPOCH + 1, RESTARTED_AFTER + 1):
        _tell(store, OVERFIT, epoch, epoch)
        time.sleep(epochs_apart)
    store.ingest(OVERFIT, [attempt_message(2, resumed_after_epoch=RESTARTED_AFTER, world_size=3)])
    for epoch in range(RESTARTED_AFTER + 1, EPOCHS + 1):
        _tell(store, OVERFIT, epoch, epoch, attempt=2, learning_rate=0.01)
        time.sleep(epochs_apart)
    assert store.transition(
        ENDED, RunState.SUCCEEDED, expected={RunState.RUNNING}, reason="done", message="done"
    )
    prometheus.wait(
        "the alert fires and the end is seen",
        lambda: (
            prometheus.query(
                f'ALERTS{{alertname="CurvewatchOverfitting",alertstate="firing",run_id="{OVERFIT}"}}'
            )
            and prometheus.query('curvewatch_runs_finished_total{outcome="succeeded"} == 1')
            and prometheus.query(f'curvewatch_epoch{{run_id="{OVERFIT}"}} == {EPOCHS}')
        ),
        seconds=90,
    )
    return Watched(prometheus, store, moment.value)


def _start(store: Store, run_id: str) -> None:
    epochs = len(losses(run_id))
    # Two runs of one name.
    name = "digits" if run_id in (OVERFIT, GOOD) else run_id.removesuffix("-1")
    new_run(
        store,
        run_id,
        name=name,
        training=TrainingSpec(epochs=epochs, global_batch_size=32),
        monitoring=MonitoringSpec(patience_epochs=5),
        scaling={"workers": 2, "gpus_per_worker": 1},
    )
    assert store.begin_submission(run_id) is not None
    store.ingest(run_id, [attempt_message(1)])


def _tell(
    store: Store, run_id: str, first: int, last: int, *, attempt: int = 1, learning_rate: float = 0.1
) -> None:
    curve: Sequence[tuple[float, float]] = losses(run_id)
    messages = []
    for epoch in range(first, last + 1):
        train, validation = curve[epoch - 1]
        made = record(
            epoch,
            run_id=run_id,
            attempt=attempt,
            train=_split(train),
            validation=_split(validation),
            gpu_memory=(10**9, 2 * 10**9),
        )
        messages.append(EpochFinished(record=made.model_copy(update={"learning_rate": learning_rate})))
    store.ingest(run_id, messages)


def _split(loss: float) -> SplitRecord:
    """A split whose accuracy goes the way of its loss: one that is kept would make it overconfidence."""
    if math.isnan(loss):
        return split(loss=0.0, nonfinite=100)
    accuracy = MetricTotals(total=100 / (1 + loss), count=100)
    return split(loss=loss).model_copy(update={"metrics": {"accuracy": accuracy}})


@contextmanager
def _serving(content: bytes) -> Iterator[str]:
    """Serve one exposition on loopback; gives `host:port`."""

    class Exposition(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Stay quiet."""

    server = HTTPServer(("127.0.0.1", 0), Exposition)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join(10)
    server.server_close()
