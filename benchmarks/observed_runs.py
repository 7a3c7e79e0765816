"""Runs for `observability.py`: a store filled with them, and what the exporter would have shown of them in the past."""

from __future__ import annotations

import math
import multiprocessing
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from api_support import serve_api
from curve_generator import make_curve, prefix
from curvewatch_service.curves import describe_curve
from curvewatch_service.export import run_samples
from curvewatch_service.export_curves import points, spread
from curvewatch_service.samples import Sample
from curvewatch_service.scrape import ScrapedRun
from curvewatch_service.settings import Settings
from curvewatch_service.store import Store
from curvewatch_service.stored import Run, Snapshot, Totals
from curvewatch_workers.contract import (
    AttemptStarted,
    EpochFinished,
    EpochRecord,
    MonitoringSpec,
    TrainingSpec,
)
from curvewatch_workers.diagnosis import Curve, Verdict, diagnoses
from record_support import make_record
from store_support import job

SCRAPE_SECONDS: Final = 15
CURVES_SECONDS: Final = 60
"""Between two scrapes, as in the built configuration of Prometheus."""
INSTANCE: Final = "curvewatch:8420"
"""What a scrape names the service: the port that it has this time must not part the past from the present."""
WORLD_SIZE: Final = 4
GPU_BYTES: Final = 12 * 2**30
LABELS: Final = {"team": "vision", "experiment": "sweep-7"}
OWNERS: Final = tuple(f"owner-{number}" for number in range(20))
WELL: Final = "good_fit"
ILL: Final = ("overfitting", "diverging", "not_finite", "stalled", "straggler")
"""What may be wrong with a run, one in turn; each has an alert."""


def name_of(number: int) -> str:
    """Return the name of a run; many runs share it."""
    return f"resnet-{number % 7}"


def run_id_of(number: int) -> str:
    """Return the id of a run."""
    return f"{name_of(number)}-{number:06x}"


def kind_of(number: int, every: int) -> str:
    """Return what a run is like: of so many runs the first is ill."""
    return ILL[number // every % len(ILL)] if number % every == 0 else WELL


def curve_of(kind: str, number: int, epochs: int) -> Curve:
    """Return the curve of a run, with noise of a hundredth."""
    if kind in set(Verdict) and kind != WELL:
        return make_curve(Verdict(kind), epochs=epochs, noise=0.01, seed=number)
    rng = random.Random(number)
    train = [0.05 + math.exp(-6 * epoch / epochs) for epoch in range(epochs)]
    return Curve(
        train=tuple(loss * (1 + rng.gauss(0, 0.005)) for loss in train),
        validation=tuple(1.1 * loss * (1 + rng.gauss(0, 0.01)) for loss in train),
    )


def records_of(
    run_id: str, curve: Curve, *, seconds: float, last: datetime, slow: bool = False
) -> Iterator[EpochRecord]:
    """Yield the epochs of a run on four GPUs, each as long as the others.

    Args:
        run_id: The run.
        curve: Its losses.
        seconds: Of an epoch.
        last: When the latest one ends.
        slow: Whether one rank is twice as slow as the others.
    """
    rng = random.Random(run_id)
    validation_seconds = [seconds / 8 * rng.uniform(0.97, 1.03) for _ in range(WORLD_SIZE)]
    validation_seconds[-1] *= 2 if slow else 1
    for epoch, (train, validation) in enumerate(zip(curve.train, curve.validation, strict=True), start=1):
        told = curve.metrics.get("accuracy")
        accuracy = told[epoch - 1] if told else 1 / (1 + validation) if math.isfinite(validation) else 0.5
        finished = last - timedelta(seconds=seconds * (len(curve) - epoch))
        # An epoch's totals hold no infinite sum: samples that are not finite are counted apart.
        train, validation = (loss if math.isfinite(loss) else math.nan for loss in (train, validation))
        made = make_record(
            epoch=epoch,
            train_loss=train,
            validation_loss=validation,
            accuracy=accuracy,
            run_id=run_id,
            world_size=WORLD_SIZE,
        )
        changed = {
            "started_at": finished - timedelta(seconds=seconds),
            "finished_at": finished,
            "learning_rate": 0.1 * (1 - epoch / (len(curve) + 1)),
            "gradient_norm": rng.uniform(0.5, 1.5),
            "rank_seconds": tuple(seconds * rng.uniform(0.97, 1) for _ in range(WORLD_SIZE)),
            "rank_validation_seconds": tuple(validation_seconds),
            "gpu_memory_peak_bytes": tuple(GPU_BYTES + rng.randrange(2**20) for _ in range(WORLD_SIZE)),
        }
        yield made.model_copy(update=changed)


def add_run(store: Store, number: int, kind: str, *, epochs: int, seconds: float, last: datetime) -> None:
    """Add a run that trains, with its epochs so far, the way in which its workers tell of them."""
    run_id = run_id_of(number)
    monitoring = {"patience_epochs": 5, "stalled_after_seconds": 1 if kind == "stalled" else None}
    spec = job(
        name=name_of(number),
        training=TrainingSpec(epochs=epochs + 10, global_batch_size=256),
        scaling={"workers": WORLD_SIZE, "gpus_per_worker": 1},
        monitoring=MonitoringSpec.model_validate(monitoring),
        labels=LABELS,
    )
    owner = OWNERS[number % len(OWNERS)]
    store.create_run(run_id=run_id, spec=spec, owner=owner, code_hash="c" * 64, ingest_token_hash="t" * 64)
    store.begin_submission(run_id)
    curve = curve_of(kind, number, epochs)
    start = last - timedelta(seconds=seconds * epochs)
    begun = AttemptStarted(attempt=1, submission=1, world_size=WORLD_SIZE, time=start, resumed_after_epoch=0)
    records = records_of(run_id, curve, seconds=seconds, last=last, slow=kind == "straggler")
    store.ingest(run_id, [begun, *(EpochFinished(record=record) for record in records)])


def fill(folder: Path, runs: int, *, epochs: int, seconds: float, every: int) -> Path:
    """Make the data folder of a service with runs that train; return it.

    Args:
        folder: It is made.
        runs: How many.
        epochs: Finished ones of each.
        seconds: Of an epoch.
        every: Of so many runs one is ill.
    """
    store = Store(Settings(data_dir=folder).database_url)
    now = datetime.now(UTC)
    for number in range(runs):
        add_run(store, number, kind_of(number, every), epochs=epochs, seconds=seconds, last=now)
    store.close()
    return folder


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve the API on such a folder in a process of its own; gives its URL."""
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(folder, theirs))
    process.start()
    try:
        if not ours.poll(60):
            raise RuntimeError("the service did not start within 60 s")
        yield ours.recv()
    finally:
        ours.send(None)
        process.join(30)


def _serve(folder: Path, told: Connection) -> None:
    with serve_api(folder) as api:
        told.send(api.url)
        told.recv()


class History:
    """What the exporter would have shown of a run at each moment while it trained, as lines of OpenMetrics."""

    def __init__(self, run: Run, records: Sequence[EpochRecord], *, began: datetime, ends: datetime) -> None:
        """Take a run whose epochs are spread evenly over a time."""
        self._run, self._records = run, records
        self._began, self._pace = began, (ends - began) / len(records)
        self._curve = Curve(
            train=tuple(record.train.loss for record in records),
            validation=tuple(record.validation.loss for record in records),
            metrics={"accuracy": tuple(record.validation.metric_values["accuracy"] for record in records)},
            nonfinite=tuple(
                bool(record.train.nonfinite_samples + record.validation.nonfinite_samples)
                for record in records
            ),
        )
        self._said = list(diagnoses(self._curve))
        self._points: dict[int, list[str]] = {}

    def metrics_at(self, time: datetime) -> list[str]:
        """Return the lines of `/metrics`, without their time."""
        done = (time - self._began) // self._pace
        if done < 1:
            return []
        finished = self._began + done * self._pace
        latest = self._records[done - 1].model_copy(
            update={"started_at": finished - self._pace, "finished_at": finished}
        )
        said = describe_curve(
            prefix(self._curve, done), window=self._run.spec.patience_epochs, said=self._said[done - 1]
        )
        verdicts = [one.verdict for one in reversed(self._said[:done])]
        stands = next((at for at, verdict in enumerate(verdicts) if verdict != verdicts[0]), done)
        counted = {"verdict_epochs": stands, "nonfinite_epochs": 0, "rank_slowness": [1.0] * WORLD_SIZE}
        totals = Totals(
            train_samples=done * latest.train.samples_seen,
            train_nonfinite_samples=0,
            validation_nonfinite_samples=0,
            worker_seconds=done * WORLD_SIZE * self._pace.total_seconds(),
            differing_epochs={},
        )
        run = replace(self._run, epoch=done, diagnosis={**said, **counted})
        scraped = ScrapedRun(snapshot=Snapshot(run=run, latest=latest, totals=totals), awaited_since=finished)
        page = f"http://127.0.0.1:8420/runs/{run.run_id}"
        return [_line(sample) for sample in run_samples(scraped, cluster="embedded", page=page)]

    def curve_at(self, time: datetime) -> list[str]:
        """Return the lines of `/metrics/curves`, without their time."""
        done = (time - self._began) // self._pace
        if done < 1:
            return []
        lines: list[str] = []
        for epoch in spread(range(1, done + 1), best=self._said[done - 1].best_epoch):
            if epoch not in self._points:
                made = points(self._run, self._records[epoch - 1])
                self._points[epoch] = [_line(sample) for sample in made]
            lines += self._points[epoch]
        return lines


def _line(sample: Sample) -> str:
    labels = ",".join(f'{name}="{value}"' for name, value in sample.labels.items())
    return f"{sample.series.name}{{{labels},$target}} {sample.value!r}"


def write_history(folder: Path, *, runs: int, epochs: int, every: int, hours: float) -> list[Path]:
    """Write what a Prometheus would have scraped in the past hours of runs that trained, as OpenMetrics with times.

    The epochs of `fill` with the same arguments are spread over the hours, and the scrapes are as far apart as in the
    built configuration. Ten runs are gone through; the others were as one of them, under their own names.

    Args:
        folder: Of the files, one for each path that is scraped; it is made.
        runs: How many.
        epochs: Of each.
        every: Of so many runs one is ill.
        hours: How long they took, until now.
    """
    seconds = hours * 3600 / epochs
    fill(folder, min(runs, 10), epochs=epochs, seconds=seconds, every=every)
    store = Store(Settings(data_dir=folder).database_url)
    ends = datetime.now(UTC)
    began = ends - timedelta(hours=hours)
    files = [folder / "metrics.txt", folder / "curves.txt"]
    with files[0].open("w", encoding="utf-8") as metrics, files[1].open("w", encoding="utf-8") as curves:
        for number in range(min(runs, 10)):
            told = store.run(run_id_of(number))
            history = History(told, store.epochs(told.run_id), began=began, ends=ends)
            for file, lines_at, scraped_as, interval in (
                (metrics, history.metrics_at, "curvewatch", SCRAPE_SECONDS),
                (curves, history.curve_at, "curvewatch-curves", CURVES_SECONDS),
            ):
                labels = f'job="{scraped_as}",instance="{INSTANCE}"'
                for scrape in range(round(hours * 3600 / interval)):
                    time = began + timedelta(seconds=scrape * interval)
                    text = "".join(f"{line} {time.timestamp():.3f}\n" for line in lines_at(time))
                    text = text.replace("$target", labels)
                    for other in range(number, runs, 10):
                        named = text.replace(f'run="{told.name}"', f'run="{name_of(other)}"')
                        file.write(named.replace(told.run_id, run_id_of(other)))
        for file in (metrics, curves):
            file.write("# EOF\n")
    store.close()
    return files
