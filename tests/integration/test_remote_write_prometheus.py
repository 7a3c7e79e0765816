"""Remote write into a real Prometheus: every epoch is there, whatever dies, stays away or is refused."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from curvewatch_service.history import history_samples
from curvewatch_service.history_sink import BATCH_EPOCHS, HistorySink
from curvewatch_service.remote_write import Receiver, encode
from curvewatch_service.scrape import scraping
from curvewatch_service.store import Store
from curvewatch_workers.contract import EpochFinished, EpochRecord, IngestRequest
from curvewatch_workers.series import REMOTE_WRITE_EPOCHS, REMOTE_WRITE_FAILURES
from prometheus_support import Point, Prometheus, free_port, needs_prometheus, receiving, write_url
from ray_support import ServiceProcess, until
from store_support import attempt_message, database_url, new_run, record, split

CLUSTER = "lab"
EPOCH_SECONDS = 0.01
pytestmark = needs_prometheus


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def prometheus(port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """One for the tests that let it live; each has runs of its own."""
    with receiving(tmp_path_factory.mktemp("prometheus"), port=port) as running:
        yield running


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(database_url(tmp_path), to_outbox=True)
    yield opened
    opened.close()


@contextmanager
def sending(store: Store, port: int) -> Iterator[HistorySink]:
    sink = HistorySink(store, Receiver(write_url(port)), cluster=CLUSTER)
    sink.start()
    try:
        yield sink
    finally:
        sink.stop(seconds=10)


def short_epochs(run_id: str, numbers: Sequence[int], *, start: datetime | None = None) -> list[EpochRecord]:
    """Epochs of 10 ms, with losses that need every bit of a float64; the third has a loss of NaN."""
    start = start or datetime.now(UTC) - timedelta(minutes=1)
    records = []
    for number in numbers:
        began = start + timedelta(seconds=EPOCH_SECONDS * number)
        made = record(
            number,
            run_id=run_id,
            seconds=EPOCH_SECONDS,
            train=split(loss=math.pi / number, nonfinite=100 if number == 3 else 0),
            validation=split(loss=math.e / (number + 1)),
        )
        ended = began + timedelta(seconds=EPOCH_SECONDS)
        times = {"started_at": began, "finished_at": ended, "rank_seconds": (EPOCH_SECONDS,) * 2}
        records.append(made.model_copy(update=times))
    return records


def _tell(store: Store, records: Sequence[EpochRecord], *, at_once: int = 7) -> None:
    for first in range(0, len(records), at_once):
        messages = [EpochFinished(record=one) for one in records[first : first + at_once]]
        store.ingest(records[0].run_id, messages)


def _millisecond(of: EpochRecord) -> int:
    return (of.finished_at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)


def _expected(store: Store, records: Sequence[EpochRecord]) -> dict[frozenset[tuple[str, str]], list[Point]]:
    run = store.run(records[0].run_id)
    points: dict[frozenset[tuple[str, str]], list[Point]] = {}
    for one in records:
        time_of = _millisecond(one)
        for sample in history_samples(run, one, cluster=CLUSTER):
            labels = frozenset({"__name__": sample.series.name, **sample.labels}.items())
            points.setdefault(labels, []).append((time_of, sample.value))
    return points


def _stored(prometheus: Prometheus, run_id: str) -> dict[frozenset[tuple[str, str]], list[Point]]:
    return prometheus.points(f'{{__name__=~"curvewatch_history_.+", run_id="{run_id}"}}[1d]')


def _same(
    found: dict[frozenset[tuple[str, str]], list[Point]],
    expected: dict[frozenset[tuple[str, str]], list[Point]],
) -> None:
    assert found.keys() == expected.keys()
    for labels, points in expected.items():
        # As text: a NaN is not equal to itself.
        assert [(time_of, repr(value)) for time_of, value in found[labels]] == [
            (time_of, repr(value)) for time_of, value in points
        ], labels


def _pending(store: Store) -> int:
    with scraping(store) as scrape:
        return scrape.pending_epochs()


def _sent(store: Store) -> int:
    return store.counters.value(REMOTE_WRITE_EPOCHS, "sent")


def _refused(store: Store) -> int:
    return store.counters.value(REMOTE_WRITE_EPOCHS, "refused")


def test_every_epoch_of_10_ms_is_in_prometheus_with_each_value_to_the_last_bit(
    store: Store, port: int, prometheus: Prometheus
) -> None:
    start = datetime.now(UTC) - timedelta(minutes=1)
    curves = [short_epochs(run_id, range(1, 301), start=start) for run_id in ("short-1", "short-2")]
    for records in curves:
        new_run(store, records[0].run_id)
    with sending(store, port):
        for records in curves:
            _tell(store, records, at_once=37)
        until(lambda: not _pending(store), "all are sent", seconds=30)
    assert (_sent(store), _refused(store), store.counters.value(REMOTE_WRITE_FAILURES)) == (600, 0, 0)
    for records in curves:
        expected = _expected(store, records)
        assert len(expected) == 9
        _same(_stored(prometheus, records[0].run_id), expected)


def test_what_a_receiver_has_already_counts_as_sent(store: Store, port: int, prometheus: Prometheus) -> None:
    """As when the service died, or missed the answer, after the receiver had taken the request."""
    records = short_epochs("twice-1", range(1, 61))
    new_run(store, "twice-1")
    _tell(store, records)
    run = store.run("twice-1")
    receiver = Receiver(write_url(port))
    receiver.send(
        encode(
            (_millisecond(one), sample)
            for one in records[:40]
            for sample in history_samples(run, one, cluster=CLUSTER)
        )
    )
    receiver.close()
    with sending(store, port):
        until(lambda: not _pending(store), "all are settled", seconds=30)
    assert (_sent(store), _refused(store)) == (60, 0)
    assert all(event.reason != "history_refused" for event in store.events("twice-1"))
    _same(_stored(prometheus, "twice-1"), _expected(store, records))


def test_two_services_on_one_database_do_no_harm(
    store: Store, tmp_path: Path, port: int, prometheus: Prometheus
) -> None:
    records = short_epochs("shared-1", range(1, 401))
    new_run(store, "shared-1")
    with closing(Store(database_url(tmp_path), to_outbox=True)) as other:
        _tell(store, records, at_once=100)
        with sending(store, port), sending(other, port):
            until(lambda: not _pending(store), "all are settled", seconds=30)
        assert (_sent(store) + _sent(other), _refused(store) + _refused(other)) == (400, 0)
    _same(_stored(prometheus, "shared-1"), _expected(store, records))


def test_what_is_too_old_is_refused_once_and_costs_no_other(
    store: Store, port: int, prometheus: Prometheus
) -> None:
    now = datetime.now(UTC)
    new_run(store, "newest-1")
    newest = short_epochs("newest-1", [1], start=now)
    new_run(store, "mixed-1")
    old = short_epochs("mixed-1", range(1, 4), start=now - timedelta(hours=3))
    fresh = short_epochs("mixed-1", range(4, BATCH_EPOCHS + 50), start=now - timedelta(minutes=1))
    with sending(store, port):
        _tell(store, newest)
        until(lambda: not _pending(store), "the head has moved on", seconds=30)
        _tell(store, [*old, *fresh], at_once=500)
        until(lambda: not _pending(store), "all are settled", seconds=30)
    assert (_sent(store), _refused(store)) == (1 + len(fresh), 3)
    (event,) = [one for one in store.events("mixed-1") if one.reason == "history_refused"]
    assert event.message.startswith(
        "the remote-write receiver will never take epoch 1 (HTTP 400: out of bounds)"
    )
    _same(_stored(prometheus, "mixed-1"), _expected(store, fresh))
    _same(_stored(prometheus, "newest-1"), _expected(store, newest))


def test_a_prometheus_with_a_window_for_what_is_old_takes_it(store: Store, tmp_path: Path) -> None:
    """The receiver was away for hours, and had fresh samples of others before it got the old ones."""
    port = free_port()
    now = datetime.now(UTC)
    new_run(store, "newest-2")
    new_run(store, "old-2")
    old = short_epochs("old-2", range(1, 31), start=now - timedelta(hours=3))
    with sending(store, port):
        _tell(store, short_epochs("newest-2", [1], start=now))
        _tell(store, old)
        until(lambda: store.counters.value(REMOTE_WRITE_FAILURES), "nobody is there", seconds=30)
        assert _pending(store) == 31
        with receiving(tmp_path / "prometheus", port=port, out_of_order="6h") as prometheus:
            until(lambda: not _pending(store), "all are sent", seconds=30)
            assert (_sent(store), _refused(store)) == (31, 0)
            _same(_stored(prometheus, "old-2"), _expected(store, old))


def test_a_service_that_is_killed_before_it_could_send_and_while_it_does_loses_no_epoch(
    tmp_path: Path,
) -> None:
    port, run_id = free_port(), "killed-1-abcdefgh"
    service = ServiceProcess(
        tmp_path,
        # No Ray is needed, and none is started.
        ray_address=f"http://127.0.0.1:{free_port()}",
        cluster_name=CLUSTER,
        remote_write_url=write_url(port),
    )
    records = short_epochs(run_id, range(1, 81))
    try:
        service.start()
        token = _report_run(service, run_id)
        _post(service, run_id, token, records[:50])
        service.kill()
        with closing(Store(database_url(service.data_dir))) as store:
            assert _pending(store) == 50
        with receiving(tmp_path / "prometheus", port=port) as prometheus:
            service.start()
            _post(service, run_id, token, records[50:])
            # Once more, in the middle of its sending or just before or after it.
            service.kill()
            service.start()
            pending = "curvewatch_remote_write_pending_epochs"
            until(lambda: _metric(service, pending) == 0, "all are sent", seconds=30)
            assert service.terminate() == 0
            with closing(Store(database_url(service.data_dir))) as store:
                assert all(event.reason != "history_refused" for event in store.events(run_id))
                _same(_stored(prometheus, run_id), _expected(store, records))
    finally:
        service.destroy()


def _report_run(service: ServiceProcess, run_id: str) -> str:
    answer = httpx.put(
        f"{service.url}/api/v1/runs/{run_id}",
        headers={"Authorization": f"Bearer {service.token}"},
        json={"name": "killed", "trained_by": "keras", "epochs": 100},
    )
    assert answer.status_code == 201, answer.text
    token: str = answer.json()["ingest_token"]
    return token


def _post(service: ServiceProcess, run_id: str, token: str, records: Sequence[EpochRecord]) -> None:
    messages = (attempt_message(1), *(EpochFinished(record=one) for one in records))
    began = time.monotonic()
    answer = httpx.post(
        f"{service.url}/api/v1/runs/{run_id}/ingest",
        headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
        content=IngestRequest(messages=messages).model_dump_json(),
    )
    assert answer.status_code == 200, answer.text
    assert time.monotonic() - began < 5, "an ingest waits for no receiver"


def _metric(service: ServiceProcess, name: str) -> float:
    (line,) = [
        line for line in httpx.get(f"{service.url}/metrics").text.splitlines() if line.startswith(f"{name} ")
    ]
    return float(line.rsplit(" ", 1)[1])
