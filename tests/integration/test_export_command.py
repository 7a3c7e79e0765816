"""`curvewatch export --openmetrics` against the real API, promtool and Prometheus: every epoch, exactly."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse
from sqlalchemy import update

from api_support import ServedApi, serve_api
from cli_support import Shell
from curvewatch_service.client import Client
from curvewatch_service.profile import write_profile
from curvewatch_service.tables import EpochRow
from curvewatch_workers.contract import SPLITS, EpochFinished, EpochRecord, MetricTotals, Profile
from prometheus_support import Prometheus, needs_prometheus, prometheus_of
from store_support import attempt_message, epoch_message, new_run, record, split

PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="promtool is not installed (apt-get install prometheus)"
)
Points = dict[frozenset[tuple[str, str]], list[tuple[int, str]]]
SHORT = timedelta(seconds=0.2)
LENGTH = 300
RESUMED_AFTER = 150
BEGIN = datetime.now(UTC).replace(microsecond=0) - timedelta(days=2)
LONG_AGO = datetime(2024, 2, 29, 12, tzinfo=UTC)


def _epoch(
    run_id: str, epoch: int, train: float, validation: float, end: datetime, attempt: int
) -> EpochRecord:
    made = record(
        epoch,
        run_id=run_id,
        attempt=attempt,
        train=split(loss=train, samples=97),
        validation=split(loss=validation, samples=31),
        gradient_norm=None if epoch == 1 else math.sqrt(epoch),
    )
    times = {"started_at": end - SHORT, "finished_at": end, "learning_rate": 0.1 * 0.97**epoch}
    return made.model_copy(update=times)


def _overfit() -> tuple[list[EpochRecord], list[EpochRecord]]:
    """Two attempts of epochs of 0.2 s and less. The second is on a machine whose clock is 7 s behind, is done with
    some epochs within a millisecond, and rests for five hours in the middle."""
    first, second = [], []
    for epoch in range(1, LENGTH + 1):
        train, validation = 0.9 * 0.99**epoch, 0.5 + 0.4 * 0.95**epoch + max(0, epoch - 60) / 300
        if epoch <= RESUMED_AFTER + 20:
            first.append(_epoch("overfit-1", epoch, train, validation, BEGIN + epoch * SHORT, 1))
        if epoch > RESUMED_AFTER:
            end = BEGIN + epoch * SHORT - timedelta(seconds=7)
            if epoch in (201, 202, 203):
                end = BEGIN + 200 * SHORT - timedelta(seconds=7, microseconds=epoch - 200)
            if epoch > 250:
                end += timedelta(hours=5)
            second.append(_epoch("overfit-1", epoch, train + 1e-9, validation, end, 2))
    return first, second


def _not_finite() -> list[EpochRecord]:
    """Losses become NaN, and the perplexity more than a float64 holds, long ago."""
    records = []
    for epoch in range(1, 21):
        end = LONG_AGO + timedelta(minutes=30) * epoch
        made = _epoch("broken-1", epoch, 10.0**epoch, 3.0, end, 1)
        if epoch > 10:
            lost = split(loss=0.0, samples=97, nonfinite=97)
            perplexity = MetricTotals(total=1e6, count=1, form="exponential")
            made = made.model_copy(
                update={
                    "train": lost,
                    "validation": lost.model_copy(update={"metrics": {"perplexity": perplexity}}),
                }
            )
        records.append(made)
    return records


def _expected(run_id: str, records: list[EpochRecord]) -> Points:
    """What Prometheus has to know of a run, written down from its records; numbers as text, for NaN is not NaN."""
    points: Points = {}
    time = 0
    for one in records:
        time = max(int(one.finished_at.timestamp() * 1000 + 1e-3), time + 1)
        values: dict[tuple[str, ...], float | None] = {
            ("curvewatch_history_info",): 1,
            ("curvewatch_history_loss", "train"): one.train.loss,
            ("curvewatch_history_loss", "validation"): one.validation.loss,
            ("curvewatch_history_epoch",): one.epoch,
            ("curvewatch_history_learning_rate",): one.learning_rate,
            ("curvewatch_history_gradient_norm",): one.gradient_norm,
            ("curvewatch_history_epoch_duration_seconds",): 0.2,
        }
        for name in SPLITS:
            for metric, number in one.split(name).metric_values.items():
                values["curvewatch_history_metric", name, metric] = number
        for key, value in values.items():
            labels = {
                "run_id": run_id,
                "run": "digits",
                **dict(zip(("split", "metric"), key[1:], strict=False)),
            }
            if key[0] == "curvewatch_history_info":
                labels |= {"owner": "ada", "cluster": "lab"}
            if value is not None:
                series = frozenset({"__name__": key[0], **labels}.items())
                points.setdefault(series, []).append((time, repr(float(value))))
    return points


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedApi]:
    with serve_api(tmp_path_factory.mktemp("service"), cluster_name="lab") as served:
        store = served.services.store
        for run_id in ("overfit-1", "broken-1", "empty-1"):
            new_run(store, run_id)
        first, second = _overfit()
        store.ingest("overfit-1", [attempt_message(1), *map(_told, first)])
        store.ingest(
            "overfit-1", [attempt_message(2, resumed_after_epoch=RESUMED_AFTER), *map(_told, second)]
        )
        store.ingest("broken-1", [attempt_message(1), *map(_told, _not_finite())])
        yield served


def _told(record: EpochRecord) -> EpochFinished:
    return EpochFinished(record=record)


@pytest.fixture
def shell(
    api: ServedApi, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Shell:
    monkeypatch.setenv("CURVEWATCH_PROFILE", str(tmp_path / "profile.json"))
    write_profile(Profile(server=api.url, token=api.token))
    return Shell(capsys, monkeypatch)


@pytest.fixture(scope="module")
def prometheus(api: ServedApi, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A real Prometheus whose data are the blocks that promtool made of the real command's output, and no scrape."""
    assert PROMTOOL is not None
    folder = tmp_path_factory.mktemp("prometheus")
    for number, runs in enumerate((("overfit-1", "broken-1"), ("empty-1",))):
        exported = folder / f"{number}.om"
        with exported.open("wb") as out:
            subprocess.run(
                [sys.executable, "-m", "curvewatch_service.cli", "export", *runs, "--openmetrics"],
                env={**os.environ, "CURVEWATCH_SERVER": api.url, "CURVEWATCH_TOKEN": api.token},
                stdout=out,
                check=True,
                timeout=60,
            )
        subprocess.run(
            [PROMTOOL, "tsdb", "create-blocks-from", "openmetrics", exported, folder / "data"],
            check=True,
            capture_output=True,
            timeout=60,
        )
    configuration = {"global": {"scrape_interval": "1s"}}
    with prometheus_of(configuration, folder, "--storage.tsdb.retention.time=10y") as running:
        yield running


@needs_prometheus
@needs_promtool
def test_every_epoch_is_in_prometheus_at_its_time_and_exactly(api: ServedApi, prometheus: Prometheus) -> None:
    first, second = _overfit()
    visible = [*first[:RESUMED_AFTER], *second]
    assert [one.epoch for one in visible] == [*range(1, LENGTH + 1)]
    assert api.services.store.epochs("overfit-1") == visible
    expected = {**_expected("overfit-1", visible), **_expected("broken-1", _not_finite())}
    found = {
        labels: [(time, repr(value)) for time, value in points]
        for labels, points in prometheus.points('{__name__=~"curvewatch_.+"}[9y]').items()
    }
    assert found == expected
    assert sum(len(points) for points in found.values()) == (300 + 20) * 9 - 2
    written = {value for points in found.values() for _, value in points}
    assert {"nan", "inf", "1.0"} <= written


@needs_prometheus
@needs_promtool
def test_a_panel_over_time_draws_every_short_epoch(prometheus: Prometheus) -> None:
    start = BEGIN.timestamp()
    query = 'curvewatch_history_epoch{run_id="overfit-1"} * on (run_id) group_left (owner) curvewatch_history_info'
    drawn = prometheus.drawn(query, start=start, end=start + RESUMED_AFTER * 0.2, step=0.1)
    ((labels, points),) = drawn.items()
    assert ("owner", "ada") in labels
    assert {value for _, value in points} == {float(epoch) for epoch in range(1, RESUMED_AFTER + 1)}


@needs_prometheus
@needs_promtool
def test_epochs_that_are_longer_than_a_sample_is_shown_are_drawn_by_their_last_value(
    prometheus: Prometheus,
) -> None:
    start = (LONG_AGO + timedelta(minutes=30)).timestamp()
    query = 'last_over_time(curvewatch_history_epoch{run_id="broken-1"}[6h])'
    (points,) = prometheus.drawn(query, start=start, end=start + 19 * 1800, step=600).values()
    assert [value for _, value in points] == [1.0 + third // 3 for third in range(19 * 3 + 1)]


def _losses(text: str, run_id: str) -> int:
    """How many train losses of a run a document has."""
    families = {family.name: family for family in parse(text)}  # type: ignore[no-untyped-call]
    return sum(
        (sample.labels["run_id"], sample.labels["split"]) == (run_id, "train")
        for sample in families["curvewatch_history_loss"].samples
    )


def test_runs_are_one_document_each_of_them_once(shell: Shell) -> None:
    result = shell("export", "overfit-1", "broken", "overfit", "--openmetrics")
    assert (result.code, result.err) == (0, "")
    assert (_losses(result.out, "overfit-1"), _losses(result.out, "broken-1")) == (LENGTH, 20)
    assert result.out.startswith("# HELP curvewatch_history_info ")
    assert result.out.endswith("\n# EOF\n")
    assert result.out.count("# EOF") == 1


def test_all_runs_and_those_without_an_epoch_are_told(shell: Shell) -> None:
    result = shell("export", "--all", "--openmetrics")
    assert (result.code, result.err) == (0, "empty-1 has no epoch yet\n")
    assert (_losses(result.out, "overfit-1"), _losses(result.out, "broken-1")) == (LENGTH, 20)


def test_a_file_is_written_and_replaced_only_if_told_so(shell: Shell, tmp_path: Path) -> None:
    file = tmp_path / "history.om"
    assert shell("export", "broken-1", "--openmetrics", "-o", file).out == ""
    written = file.read_text()
    assert _losses(written, "broken-1") == 20
    file.write_text("mine")
    refused = shell("export", "broken-1", "--openmetrics", "-o", file)
    assert refused.code == 2
    assert "--force" in refused.err
    assert file.read_text() == "mine"
    assert shell("export", "broken-1", "--openmetrics", "-o", file, "--force").code == 0
    assert file.read_text() == written
    assert [path.name for path in tmp_path.iterdir() if "history" in path.name] == ["history.om"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["latest"], "--openmetrics"),
        (["--openmetrics"], "--all"),
        (["latest", "--all", "--openmetrics"], "not both"),
        (["latest", "--openmetrics", "-o", "no/such/folder/x.om"], "does not exist"),
        (["latest", "--openmetrics", "-o", "."], "is a folder"),
        (["nobody", "--openmetrics"], "no run is called 'nobody'"),
    ],
)
def test_what_cannot_be_exported_is_told(shell: Shell, arguments: list[str], says: str) -> None:
    result = shell("export", *arguments)
    assert (result.code, result.out) == (2, "")
    assert says in " ".join(result.err.replace("│", " ").split())
    assert "Traceback" not in result.err


def test_nothing_is_left_of_an_export_that_fails(shell: Shell, tmp_path: Path) -> None:
    with serve_api(tmp_path / "service") as damaged:
        write_profile(Profile(server=damaged.url, token=damaged.token))
        store = damaged.services.store
        for run_id in ("digits-1", "digits-2"):
            new_run(store, run_id)
            store.ingest(run_id, [epoch_message(1, run_id=run_id)])
        with store.write() as session:
            session.execute(update(EpochRow).where(EpochRow.run_id == "digits-2").values(record="{broken"))
        for target in ([], ["-o", str(tmp_path / "history.om")]):
            result = shell("export", "digits-1", "digits-2", "--openmetrics", *target)
            assert (result.code, result.out) == (2, "")
            assert "the service failed to answer this request" in result.err
    assert not list(tmp_path.glob("history*"))


def test_an_answer_that_is_not_whole_is_told(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Client.history

    @contextmanager
    def cut(client: Client, run_id: str) -> Iterator[tuple[int, Iterator[bytes]]]:
        with whole(client, run_id) as (samples, lines):
            yield samples, islice(lines, 10)

    monkeypatch.setattr(Client, "history", cut)
    result = shell("export", "broken-1", "--openmetrics")
    assert (result.code, result.out) == (2, "")
    assert "of broken-1 is cut off or of another version (it ends in the middle)" in result.err


def test_a_file_that_cannot_be_written_is_told(shell: Shell, tmp_path: Path) -> None:
    file = tmp_path / ("x" * 250)
    result = shell("export", "broken-1", "--openmetrics", "-o", file)
    assert (result.code, result.out) == (2, "")
    assert "cannot be written (File name too long)" in result.err


def test_only_a_file_is_replaced_and_a_link_goes_on_to_lead_to_it(shell: Shell, tmp_path: Path) -> None:
    pipe, file, link = tmp_path / "pipe", tmp_path / "history.om", tmp_path / "link.om"
    os.mkfifo(pipe)
    refused = shell("export", "broken-1", "--openmetrics", "-o", pipe, "--force")
    assert refused.code == 2
    assert "is no file" in " ".join(refused.err.replace("│", " ").split())
    assert pipe.is_fifo()
    file.write_text("old")
    link.symlink_to(file)
    assert shell("export", "broken-1", "--openmetrics", "-o", link, "--force").code == 0
    assert link.is_symlink()
    assert _losses(file.read_text(), "broken-1") == 20


@pytest.mark.parametrize(
    ("to", "says"), [("> /dev/full", "(No space left on device)"), (">&-", "(it is closed)")]
)
def test_an_output_that_takes_nothing_is_told(to: str, says: str, api: ServedApi) -> None:
    program = [sys.executable, "-c", "from curvewatch_service.cli.app import main; main()"]
    arguments = ["export", "broken-1", "--openmetrics", "--server", api.url, "--token", api.token]
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {to}', "sh", *program, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert f"Error: the history cannot be written to standard output {says}" in done.stderr
    assert "Traceback" not in done.stderr
