"""The Prometheus export: a collector that reads the store at each scrape."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from importlib.metadata import version

from prometheus_client import Metric
from prometheus_client.registry import Collector

from curvewatch_service import replays
from curvewatch_service.counters import Counters
from curvewatch_service.pace import epoch_wait_limit
from curvewatch_service.runs import RunState
from curvewatch_service.samples import Sample
from curvewatch_service.scrape import Scrape, ScrapedRun, scraping
from curvewatch_service.settings import Settings
from curvewatch_service.store import Run, Store
from curvewatch_workers import series
from curvewatch_workers.contract import (
    SPLITS,
    AttemptStarted,
    EpochFinished,
    EpochRecord,
    RunFinished,
    WorkerEvent,
)
from curvewatch_workers.diagnosis import Verdict
from curvewatch_workers.series import TABLE, Kind, Series

MESSAGE_KINDS: tuple[str, ...] = tuple(
    message.model_fields["kind"].default
    for message in (AttemptStarted, EpochFinished, WorkerEvent, RunFinished)
)
_BY_DIAGNOSIS: dict[str, tuple[Series, dict[str, str]]] = {
    "best_validation_loss": (series.BEST_VALIDATION_LOSS, {}),
    "best_epoch": (series.BEST_EPOCH, {}),
    "epochs_since_best": (series.EPOCHS_SINCE_BEST, {}),
    "train_slope": (series.LOSS_SLOPE, {"split": "train"}),
    "validation_slope": (series.LOSS_SLOPE, {"split": "validation"}),
    "generalization_gap": (series.GENERALIZATION_GAP, {}),
}
_logger = logging.getLogger(__name__)


def utc_now() -> datetime:
    """Return the time."""
    return datetime.now(UTC)


class RunCollector(Collector):
    """Exports the runs that have not ended or did a short while ago, and the service's own counts."""

    def __init__(self, store: Store, settings: Settings, *, clock: Callable[[], datetime] = utc_now) -> None:
        self._store = store
        self._cluster, self._public_url = settings.cluster_name, settings.public_url
        self._linger = timedelta(seconds=settings.linger_seconds)
        self._clock = clock

    def describe(self) -> list[Metric]:
        """Return nothing: a registry would otherwise read the whole store to learn the names."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Read the store; a run that cannot be exported is counted and left out."""
        started = time.perf_counter()
        with scraping(self._store) as scrape:
            counters, since = self._store.counters, self._clock() - self._linger
            samples = list(exported(scrape, counters, since, self._run_samples))
            samples += _run_counts(scrape)
            samples.append(Sample(series.REMOTE_WRITE_PENDING, scrape.pending_epochs(), {}))
        samples += _counts(counters)
        samples.append(Sample(series.BUILD_INFO, 1, {"version": version("curvewatch")}))
        samples.append(Sample(series.COLLECTOR_DURATION, time.perf_counter() - started, {}))
        yield from families(samples)

    def _run_samples(self, scrape: Scrape, run_id: str) -> list[Sample]:
        return run_samples(
            scrape.run(run_id), cluster=self._cluster, page=f"{self._public_url}/runs/{run_id}"
        )


def exported(
    scrape: Scrape,
    counters: Counters,
    since: datetime,
    samples_of: Callable[[Scrape, str], Iterable[Sample]],
) -> Iterator[Sample]:
    """Yield the samples of each run that has not ended, or not before a moment.

    A run whose samples cannot be made is counted, logged and left out: it must not cost the others theirs.
    """
    for run_id in scrape.shown_since(since):
        try:
            samples = list(samples_of(scrape, run_id))
        except Exception:
            counters.add(series.COLLECTOR_ERRORS)
            _logger.exception(
                "Run %s could not be exported.", run_id, extra={"action": "export_failed", "run_id": run_id}
            )
        else:
            yield from samples


def _run_counts(scrape: Scrape) -> Iterator[Sample]:
    for state, number in scrape.count().items():
        yield Sample(series.RUNS, number, {"state": state.label})
        if state.terminal:
            yield Sample(series.RUNS_FINISHED, number, {"outcome": state.label.lower()})


def _counts(counters: Counters) -> Iterator[Sample]:
    for kind in MESSAGE_KINDS:
        yield Sample(series.INGESTED_MESSAGES, counters.value(series.INGESTED_MESSAGES, kind), {"kind": kind})
    for status in ("firing", "resolved"):
        yield Sample(
            series.ALERTS_RECEIVED, counters.value(series.ALERTS_RECEIVED, status), {"status": status}
        )
    for outcome in ("sent", "refused"):
        epochs = counters.value(series.REMOTE_WRITE_EPOCHS, outcome)
        yield Sample(series.REMOTE_WRITE_EPOCHS, epochs, {"outcome": outcome})
    for counted in (
        series.INGEST_ERRORS,
        series.RECONCILE_ERRORS,
        series.COLLECTOR_ERRORS,
        series.REMOTE_WRITE_FAILURES,
    ):
        yield Sample(counted, counters.value(counted), {})


def families(samples: Iterable[Sample]) -> Iterator[Metric]:
    """Group samples by series, in the order of the table; a series without a sample is left out."""
    by_name: dict[str, list[Sample]] = {}
    for sample in samples:
        by_name.setdefault(sample.series.name, []).append(sample)
    for name, described in TABLE.items():
        if name in by_name:
            # The library's own suffix: a counter's family is named without it.
            family = name.removesuffix("_total") if described.kind is Kind.COUNTER else name
            metric = Metric(family, described.help, described.kind.value)
            for sample in by_name[name]:
                metric.add_sample(name, dict(sample.labels), sample.value)
            yield metric


def run_samples(scraped: ScrapedRun, *, cluster: str, page: str) -> list[Sample]:
    """Return every series of a run; one whose value does not exist yet is left out."""
    snapshot = scraped.snapshot
    run, totals, latest = snapshot.run, snapshot.totals, snapshot.latest
    samples = [*_facts(run, cluster, page), *_wait(run, scraped.awaited_since)]
    if latest is not None:
        samples += _latest_epoch(latest)
    nonfinite = {
        "train": totals.train_nonfinite_samples,
        "validation": totals.validation_nonfinite_samples,
    }
    samples.append(Sample(series.SAMPLES, totals.train_samples, {}))
    samples += (Sample(series.NONFINITE_SAMPLES, nonfinite[split], {"split": split}) for split in SPLITS)
    for reason in (replays.NOT_FAITHFUL, replays.DIFFERS):
        differing = totals.differing_epochs.get(reason, 0)
        samples.append(Sample(series.REPLAY_MISMATCHES, differing, {"reason": reason}))
    gpu_seconds = totals.worker_seconds * run.spec.scaling.gpus_per_worker
    samples.append(Sample(series.GPU_SECONDS, gpu_seconds, {}))
    identity = {"run_id": run.run_id, "run": run.name}
    # Converted here, where what goes wrong costs this run only.
    return [Sample(sample.series, float(sample.value), {**identity, **sample.labels}) for sample in samples]


def _wait(run: Run, awaited_since: datetime | None) -> Iterator[Sample]:
    if awaited_since is not None:
        yield Sample(series.EPOCH_AWAITED_SINCE, awaited_since.timestamp(), {})
        longest = (run.diagnosis or {}).get("longest_epoch_seconds")
        yield Sample(series.EPOCH_WAIT_LIMIT, epoch_wait_limit(run.spec, longest), {})


def _facts(run: Run, cluster: str, page: str) -> Iterator[Sample]:
    spec = run.spec
    free = {f"label_{key}": value for key, value in spec.labels.items()}
    info = {"owner": run.owner, "cluster": cluster, "task": spec.code.entry, "page": page}
    yield Sample(series.RUN_INFO, 1, {**info, **free})
    for state in RunState:
        yield Sample(series.RUN_STATE, state is run.state, {"state": state.label})
    yield Sample(series.EPOCH, run.epoch, {})
    if run.epochs_planned is not None:
        yield Sample(series.EPOCHS_PLANNED, run.epochs_planned, {})
    yield Sample(series.PATIENCE_EPOCHS, spec.patience_epochs, {})
    yield Sample(series.WORKER_RESTARTS, max(run.attempt - 1, 0), {})
    if run.world_size is not None:
        yield Sample(series.WORLD_SIZE, run.world_size, {})
    if run.diagnosis is not None:
        for verdict in Verdict:
            yield Sample(series.VERDICT, verdict == run.diagnosis["verdict"], {"verdict": verdict})
        for field, (described, labels) in _BY_DIAGNOSIS.items():
            if run.diagnosis[field] is not None:
                yield Sample(described, run.diagnosis[field], labels)
        # Not there when no epoch has come since a Curvewatch that did not keep them.
        if "verdict_epochs" in run.diagnosis:
            yield Sample(series.VERDICT_EPOCHS, run.diagnosis["verdict_epochs"], {})
            yield Sample(series.NONFINITE_EPOCHS, run.diagnosis["nonfinite_epochs"], {})
        for rank, ratio in enumerate(run.diagnosis.get("rank_slowness") or ()):
            yield Sample(series.RANK_SLOWNESS, ratio, {"rank": str(rank)})


def _latest_epoch(record: EpochRecord) -> Iterator[Sample]:
    for name in SPLITS:
        split, labels = record.split(name), {"split": name}
        yield Sample(series.LOSS, split.loss, labels)
        if split.reported_by is None:
            yield Sample(series.RECEIPT_EXACT, split.exact, labels)
            yield Sample(series.RANK_LOSS_SPREAD, split.rank_loss_spread, labels)
        for metric, value in split.metric_values.items():
            yield Sample(series.METRIC, value, {**labels, "metric": metric})
    yield Sample(series.LEARNING_RATE, record.learning_rate, {})
    if record.gradient_norm is not None:
        yield Sample(series.GRADIENT_NORM, record.gradient_norm, {})
    seconds = record.duration_seconds
    yield Sample(series.EPOCH_DURATION, seconds, {})
    counted = record.train.reported_by is None
    if seconds > 0 and counted:
        samples = record.train.samples_seen + record.validation.samples_seen
        yield Sample(series.SAMPLES_PER_SECOND, samples / seconds, {})
    yield Sample(series.LAST_EPOCH_TIMESTAMP, record.finished_at.timestamp(), {})
    by_rank: tuple[tuple[Series, Iterable[float]], ...] = (
        (series.SHARD_SAMPLES, [share.samples for share in record.train.ranks] if counted else ()),
        (series.RANK_EPOCH_SECONDS, record.rank_seconds),
        (series.GPU_MEMORY_PEAK, record.gpu_memory_peak_bytes or ()),
    )
    for described, values in by_rank:
        for rank, value in enumerate(values):
            yield Sample(described, value, {"rank": str(rank)})
