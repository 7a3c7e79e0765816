"""Curves in what Weights & Biases, MLflow and TensorBoard leave behind, made by their own libraries."""

from __future__ import annotations

import csv
import gzip
import json
import math
import shutil
import sqlite3
import struct
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from curve_generator import make_curve
from curvewatch_service.cli import main
from curvewatch_service.curve_files import Columns, NamedCurve, read_curves
from curvewatch_service.errors import CurveFileError
from curvewatch_workers.diagnosis import Curve, Verdict, diagnose
from tracker_support import OTHERS_WARNINGS, plain_environment

pytestmark = OTHERS_WARNINGS

EPOCHS = 30
OVERFIT = make_curve(Verdict.OVERFITTING, epochs=EPOCHS, noise=0.0, seed=1)
GOOD = make_curve(Verdict.GOOD_FIT, epochs=EPOCHS, noise=0.0, seed=1)
START = 1_700_000_000.0
SECONDS = 40.0


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No tracker is configured, and none tells its makers of its use."""
    for name, value in plain_environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WANDB_MODE", "offline")
    # MLflow's newer versions refuse to write a folder, which older ones wrote by default.
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")


def read(path: Path, *told: str, **columns: str) -> list[NamedCurve]:
    heard: list[str] = []
    curves = read_curves(path, Columns(**columns), tell=heard.append)
    assert len(heard) == len(told)
    assert all(part in sentence for part, sentence in zip(told, heard, strict=True))
    return curves


def require_same(one: NamedCurve, curve: Curve, verdict: Verdict | None = None) -> None:
    assert list(one.curve.train) == pytest.approx(list(curve.train), rel=1e-6)
    assert list(one.curve.validation) == pytest.approx(list(curve.validation), rel=1e-6)
    assert one.left_out == 0
    if verdict is not None:
        assert diagnose(one.curve).verdict == verdict


def pairs(curve: Curve) -> Iterator[tuple[int, float, float]]:
    yield from zip(range(len(curve)), curve.train, curve.validation, strict=True)


# Weights & Biases


def wandb_run(folder: Path, rows: Sequence[dict[str, Any]], name: str | None = None) -> Path:
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    run = wandb.init(
        project="p",
        name=name,
        dir=folder,
        mode="offline",
        reinit="create_new",
        settings=wandb.Settings(silent=True, console="off", x_disable_stats=True, disable_git=True),
    )
    for row in rows:
        run.log(row)
    place = Path(run.dir).parent
    run.finish()
    wandb.teardown()
    return place


def interleaved(curve: Curve) -> list[dict[str, Any]]:
    """Return a loop of one's own: some train losses an epoch, and the validation loss at a step of its own."""
    rows: list[dict[str, Any]] = []
    for epoch, train, validation in pairs(curve):
        rows += [{"train/loss": train + shift, "lr": 0.1} for shift in (-0.01, 0.01)]
        rows.append({"epoch": epoch, "val": {"loss": validation}, "note": "text"})
    return rows


def test_an_offline_run_is_read_from_its_file_or_a_folder_above(tmp_path: Path) -> None:
    folder = wandb_run(tmp_path, interleaved(OVERFIT), name="brisk-sea-1")
    (file,) = folder.glob("*.wandb")

    for path in (file, folder, tmp_path / "wandb", tmp_path / "wandb" / "latest-run"):
        (one,) = read(path)
        require_same(one, OVERFIT, Verdict.OVERFITTING)
        assert one.name == f"{path}, brisk-sea-1"
        assert len(one.seconds) == EPOCHS
        assert one.curve.learning_rates == (0.1,) * EPOCHS


def test_a_long_offline_run_spans_blocks_of_its_file_and_one_that_died_is_read_so_far(tmp_path: Path) -> None:
    folder = wandb_run(tmp_path, [{"loss": t, "val_loss": v, "pad": "x" * 4000} for _, t, v in pairs(GOOD)])
    (file,) = folder.glob("*.wandb")
    require_same(read(file)[0], GOOD)

    assert file.stat().st_size > 3 * 32768
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    (one,) = read(file)
    assert 5 < len(one.curve) < EPOCHS
    assert one.curve.train == pytest.approx(GOOD.train[: len(one.curve)])


def test_a_block_with_no_room_for_another_head_ends_in_zeros(tmp_path: Path) -> None:
    folder = wandb_run(tmp_path, [{"loss": t, "val_loss": v} for _, t, v in pairs(GOOD)])
    (file,) = folder.glob("*.wandb")
    data = file.read_bytes()
    assert len(data) < 32768
    # A record in front, of a field that nobody knows, ends 3 bytes before the end of its block.
    length = 32768 - 3 - 7 - 7
    field = b"\xa2\x06" + bytes([(length - 5) & 127 | 128, (length - 5) >> 7 & 127 | 128, (length - 5) >> 14])
    record = field + bytes(length - 5)
    head = struct.pack("<IHB", 0, length, 1)
    file.write_bytes(data[:7] + head + record + bytes(3) + data[7:])

    require_same(read(file)[0], GOOD)


def test_runs_of_one_name_in_one_folder_are_told_apart(tmp_path: Path, database: Path) -> None:
    wandb_run(tmp_path, interleaved(OVERFIT), name="same")
    wandb_run(tmp_path, interleaved(OVERFIT), name="same")
    log_run(mlflow_client(f"sqlite:///{database}"), GOOD, "same")

    curves = read(tmp_path)

    names = [one.name.removeprefix(f"{tmp_path}, ") for one in curves]
    assert (names[0], names[2]) == ("same", "same (MLflow)")
    assert names[1].startswith("same (offline-run-")
    require_same(curves[2], GOOD)


def test_each_offline_run_is_a_curve_and_one_without_is_told(tmp_path: Path) -> None:
    wandb_run(tmp_path, interleaved(OVERFIT), name="one")
    wandb_run(tmp_path, interleaved(GOOD), name="two")
    wandb_run(tmp_path, [{"train/loss": 0.5}], name="three")

    curves = read(tmp_path, "left out: ")

    by_name = {one.name.rpartition(", ")[2]: one for one in curves}
    assert set(by_name) == {"one", "two"}
    require_same(by_name["one"], OVERFIT)
    require_same(by_name["two"], GOOD)


def test_the_summary_of_a_run_is_told_from_its_curve(tmp_path: Path) -> None:
    folder = wandb_run(tmp_path, interleaved(GOOD))
    summary = folder / "files" / "wandb-summary.json"
    if not summary.exists():  # Some versions write it online only.
        summary.write_text('{"train/loss": 0.1, "val/loss": 0.2, "_step": 30, "_wandb": {"runtime": 12}}')

    with pytest.raises(CurveFileError, match=r"holds one value each of .*, as a summary does"):
        read_curves(summary, Columns())


def test_a_damaged_file_of_wandb_is_told(tmp_path: Path) -> None:
    path = tmp_path / "run-a.wandb"
    path.write_bytes(b":W&B\xe1\xbe\0" + b"\0\0\0\0\x04\0\x01\xff\xff\xff\xff")

    with pytest.raises(CurveFileError, match="is a damaged file of Weights & Biases"):
        read_curves(path, Columns())


def chart_csv(path: Path, runs: dict[str, Curve]) -> Path:
    """Write what "Export CSV" of a chart gives: quoted, with the extremes of each bin, empty where nothing is."""
    header = ["Step"]
    for run in runs:
        for metric in ("train/loss", "val/loss"):
            header += [f"{run} - {metric}{end}" for end in ("", "__MIN", "__MAX")]
    with path.open("w", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerow(header)
        for epoch in range(EPOCHS):
            for split in range(2):
                cells: list[Any] = [3 * epoch + split]
                for curve in runs.values():
                    for i, losses in enumerate((curve.train, curve.validation)):
                        known = losses[epoch]
                        cells += [known, known - 1, known + 1] if i == split else ["", "", ""]
                writer.writerow(cells)
    return path


def test_a_charts_csv_has_a_curve_for_each_run(tmp_path: Path) -> None:
    path = chart_csv(tmp_path / "chart.csv", {"brisk - sea-1": OVERFIT, "calm-sea-2": GOOD})

    one, two = read(path)

    require_same(one, OVERFIT, Verdict.OVERFITTING)
    require_same(two, GOOD, Verdict.GOOD_FIT)
    assert [one.name, two.name] == [f"{path}, brisk - sea-1", f"{path}, calm-sea-2"]
    named = read(path, train="calm-sea-2 - val/loss", validation="Val/Loss")
    assert named[1].curve.train == pytest.approx(GOOD.validation)
    with pytest.raises(CurveFileError, match="no column 'nope'; it has step, train_loss, val_loss; "):
        read_curves(path, Columns(train="nope"))


def history(curve: Curve) -> list[dict[str, Any]]:
    """Return what `run.scan_history()` gives: each key in each row, None where it was not logged."""
    rows = []
    for step, row in enumerate(interleaved(curve)):
        flat = {"val/loss": row.pop("val")["loss"]} if "val" in row else {}
        empty = dict.fromkeys(("train/loss", "val/loss", "epoch", "lr", "note"))
        own = {"_step": step, "_runtime": SECONDS / 3 * step, "_timestamp": START + SECONDS / 3 * step}
        rows.append({**own, **empty, **row, **flat})
    return rows


def history_jsonl(folder: Path) -> Path:
    path = folder / "history.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in history(OVERFIT)))
    return path


def history_csv(folder: Path) -> Path:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    pandas.DataFrame(history(OVERFIT)).to_csv(folder / "history.csv")
    return folder / "history.csv"


def history_json(folder: Path) -> Path:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    pandas.DataFrame(history(OVERFIT)).to_json(folder / "history.json")
    return folder / "history.json"


def history_records(folder: Path) -> Path:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    pandas.DataFrame(history(OVERFIT)).to_json(folder / "records.json", orient="records")
    return folder / "records.json"


def history_named_as_curves_are(folder: Path) -> Path:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = pandas.DataFrame(history(OVERFIT))
    frame.columns = [name.replace("/", "_") for name in frame.columns]
    frame.to_json(folder / "underscores.json")
    return folder / "underscores.json"


@pytest.mark.parametrize(
    "write",
    [history_jsonl, history_csv, history_json, history_records, history_named_as_curves_are],
)
def test_a_history_is_read_with_its_time(write: Any, tmp_path: Path) -> None:
    (one,) = read(write(tmp_path))

    require_same(one, OVERFIT, Verdict.OVERFITTING)
    assert one.seconds[1:] == pytest.approx([SECONDS] * (EPOCHS - 1))


def test_what_is_not_finite_in_a_history_stays_so(tmp_path: Path) -> None:
    rows = history(GOOD)
    rows[-1]["val/loss"] = "NaN"  # as the service answers
    path = tmp_path / "h.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    (one,) = read(path)
    assert math.isnan(one.curve.validation[-1])
    assert diagnose(one.curve).verdict == Verdict.NOT_FINITE


# MLflow


def mlflow_client(uri: str) -> Any:
    tracking = pytest.importorskip("mlflow.tracking", reason="mlflow is not installed")
    return tracking.MlflowClient(tracking_uri=uri)


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a database with MLflow's schema, which takes long to make."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    mlflow_client(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def database(tmp_path: Path, empty_database: Path) -> Path:
    return Path(shutil.copy(empty_database, tmp_path / "mlflow.db"))


@pytest.fixture(params=["folder", "database"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Any]:
    """Return where MLflow writes, and a client of it."""
    if request.param == "folder":
        return tmp_path / "mlruns", mlflow_client((tmp_path / "mlruns").as_uri())
    path = request.getfixturevalue("database")
    return path, mlflow_client(f"sqlite:///{path}")


def log_run(
    client: Any,
    curve: Curve,
    name: str,
    *,
    names: tuple[str, str] = ("train/loss", "val/loss"),
    step: str = "epoch",
) -> str:
    """Log a run; steps by epoch, by batch with ten an epoch, each split by its own, or none."""
    from mlflow.entities import Metric

    entries = []
    for epoch, train, validation in pairs(curve):
        now = round(1000 * (START + SECONDS * epoch))
        if step == "epoch":
            entries += [(names[0], train, now, epoch), (names[1], validation, now + 5, epoch)]
        elif step == "none":
            entries += [(names[0], train, now, 0), (names[1], validation, now + 5, 0)]
        else:
            for batch in range(10):
                shift = 0.01 if batch % 2 else -0.01
                entries.append((names[0], train + shift, now + batch, 10 * epoch + batch))
            at = 10 * epoch + 9 if step == "batch" else epoch
            entries.append((names[1], validation, now + 50, at))
    experiment = client.get_experiment_by_name("x")
    run = client.create_run(
        experiment.experiment_id if experiment else client.create_experiment("x"), run_name=name
    )
    for start in range(0, len(entries), 1000):
        client.log_batch(run.info.run_id, metrics=[Metric(*entry) for entry in entries[start : start + 1000]])
    client.set_terminated(run.info.run_id)
    return str(run.info.run_id)


@pytest.mark.parametrize("step", ["epoch", "batch", "own", "none"])
def test_a_run_of_mlflow_is_read_however_its_steps_count(
    store: tuple[Path, Any], step: str, tmp_path: Path
) -> None:
    path, client = store
    log_run(client, OVERFIT, "calm-bee-7", step=step)

    for where in (path, tmp_path):
        (one,) = read(where)
        require_same(one, OVERFIT, Verdict.OVERFITTING)
        assert one.name == f"{where}, calm-bee-7"
    assert one.seconds[1:] == pytest.approx([SECONDS] * (EPOCHS - 1))


def test_a_folder_of_mlflow_is_read_at_each_level(tmp_path: Path) -> None:
    client = mlflow_client((tmp_path / "mlruns").as_uri())
    run_id = log_run(client, OVERFIT, "one")
    (run,) = (tmp_path / "mlruns").glob(f"*/{run_id}")

    for path in (tmp_path / "mlruns", run.parent, run, run / "metrics"):
        (one,) = read(path)
        require_same(one, OVERFIT, Verdict.OVERFITTING)
        assert one.name == f"{path}, one"


def test_each_run_of_mlflow_is_a_curve_but_deleted_ones(store: tuple[Path, Any]) -> None:
    path, client = store
    same = [log_run(client, OVERFIT, "same"), log_run(client, GOOD, "same")]
    log_run(client, GOOD, "other names", names=("fit", "held out"))
    client.delete_run(log_run(client, GOOD, "gone"))

    curves = read(path, "other names has no column with a known name of a train loss")

    by_name = {one.name: one for one in curves}
    assert set(by_name) == {f"{path}, same ({run_id})" for run_id in same}
    require_same(by_name[f"{path}, same ({same[0]})"], OVERFIT)
    require_same(by_name[f"{path}, same ({same[1]})"], GOOD)
    (one,) = read(path, "no column 'fit'", "no column 'fit'", train="fit", validation="held out")
    require_same(one, GOOD, Verdict.GOOD_FIT)
    with pytest.raises(
        CurveFileError, match=r"no column 'nope'; it has .*loss.*; nor has any of its other 2 runs"
    ):
        read_curves(path, Columns(train="nope"))


def test_losses_logged_without_steps_are_paired_in_their_order(database: Path) -> None:
    """Here each epoch's train loss is logged after its validation loss."""
    swapped = Curve(train=OVERFIT.validation, validation=OVERFIT.train)
    client = mlflow_client(f"sqlite:///{database}")
    log_run(client, swapped, "one", names=("val_loss", "train_loss"), step="none")

    require_same(read(database)[0], OVERFIT, Verdict.OVERFITTING)


def test_hugging_faces_one_train_loss_of_the_whole_run_is_not_its_curve(database: Path) -> None:
    from mlflow.entities import Metric

    client = mlflow_client(f"sqlite:///{database}")
    run_id = log_run(client, OVERFIT, "bert", names=("loss", "eval_loss"), step="batch")
    client.log_batch(run_id, metrics=[Metric("train_loss", 9.0, round(1000 * START) + 10**9, 299)])

    require_same(read(database)[0], OVERFIT, Verdict.OVERFITTING)


def test_what_is_not_finite_in_mlflow_stays_so(store: tuple[Path, Any]) -> None:
    curve = Curve(train=(1.0, 0.9, 0.8), validation=(1.0, math.inf, math.nan))
    path, client = store
    log_run(client, curve, "a")

    (one,) = read(path)

    assert one.curve.validation[1] == math.inf
    assert math.isnan(one.curve.validation[2])


def histories(client: Any, run_id: str) -> dict[str, list[dict[str, Any]]]:
    return {
        name: [dict(metric) for metric in client.get_metric_history(run_id, name)]
        for name in ("train/loss", "val/loss")
    }


def answer_of_get_history(metrics: list[dict[str, Any]]) -> Any:
    """Return what MLflow's server answers."""
    from mlflow.entities import Metric
    from mlflow.protos.service_pb2 import GetMetricHistory
    from mlflow.utils.proto_json_utils import message_to_json

    answer = GetMetricHistory.Response()
    for one in metrics:
        metric = Metric(one["key"], one["value"], one["timestamp"], one["step"])
        answer.metrics.append(metric.to_proto())
    return json.loads(message_to_json(answer))


def test_answers_of_get_history_in_a_file_each_are_joined(
    database: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = mlflow_client(f"sqlite:///{database}")
    found = histories(client, log_run(client, OVERFIT, "one"))
    paths = [tmp_path / "train.json", tmp_path / "val.json"]
    for path, metrics in zip(paths, found.values(), strict=True):
        path.write_text(json.dumps(answer_of_get_history(metrics)))
    monkeypatch.setattr(sys, "argv", ["curvewatch", "diagnose", *map(str, paths), "--json"])

    with pytest.raises(SystemExit) as ending:
        main()

    assert (ending.value.code or 0) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["verdict"] == "overfitting"
    assert said["best_validation_loss"] == pytest.approx(min(OVERFIT.validation))


@pytest.mark.parametrize("shape", ["by name", "one list", "answers", "lines", "frame"])
def test_metric_histories_are_read_as_json_and_csv(shape: str, tmp_path: Path, database: Path) -> None:
    client = mlflow_client(f"sqlite:///{database}")
    found = histories(client, log_run(client, OVERFIT, "one"))
    both = [*found["train/loss"], *found["val/loss"]]
    path = tmp_path / "history.json"
    if shape == "by name":
        path.write_text(json.dumps(found))
    elif shape == "one list":
        path.write_text(json.dumps(both))
    elif shape == "answers":
        path.write_text(json.dumps({name: answer_of_get_history(found[name]) for name in found}))
    elif shape == "lines":
        path.write_text("".join(json.dumps(one) + "\n" for one in both))
    else:
        pytest.importorskip("pandas", reason="pandas is not installed").DataFrame(both).to_csv(path)

    (one,) = read(path)
    require_same(one, OVERFIT, Verdict.OVERFITTING)
    assert one.seconds[1:] == pytest.approx([SECONDS] * (EPOCHS - 1))


@pytest.mark.parametrize("page", ["chart", "metric"])
def test_the_csvs_of_mlflows_pages_have_a_curve_for_each_run(
    page: str, tmp_path: Path, database: Path
) -> None:
    """Their form is that of CsvUtils.ts and MetricsPlotPanel.tsx: a minus is guarded by an apostrophe."""
    negative = Curve(
        train=tuple(x - 1e4 for x in OVERFIT.train), validation=tuple(x - 1e4 for x in OVERFIT.validation)
    )
    client = mlflow_client(f"sqlite:///{database}")
    runs = {"one": log_run(client, negative, "one"), "two": log_run(client, GOOD, "two")}
    rows = []
    for metric in ("train/loss", "val/loss"):
        for name, run_id in runs.items():
            for found in histories(client, run_id)[metric]:
                value = str(found["value"])
                chart = [
                    name,
                    run_id,
                    metric,
                    found["step"],
                    found["timestamp"],
                    f"'{value}" if value < "0" else value,
                ]
                plain = [run_id, metric, value, found["step"], found["timestamp"]]
                rows.append(chart if page == "chart" else plain)
    header = ["Run", "Run ID", "metric", "step", "timestamp", "value"]
    path = tmp_path / "chart.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL if page == "chart" else csv.QUOTE_MINIMAL)
        writer.writerow(header if page == "chart" else ["run_id", "key", "value", "step", "timestamp"])
        writer.writerows(rows)

    one, two = read(path)

    require_same(one, negative, Verdict.OVERFITTING)
    require_same(two, GOOD, Verdict.GOOD_FIT)
    assert one.name == f"{path}, {'one' if page == 'chart' else runs['one']}"


def test_another_database_and_a_damaged_one_are_told(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE a (b)")
    with pytest.raises(CurveFileError, match="is no database of MLflow that can be read: no such table"):
        read_curves(path, Columns())
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CurveFileError, match="is no database of MLflow that can be read"):
        read_curves(path, Columns())


def test_rows_of_a_damaged_database_that_hold_no_number_are_passed_by(database: Path) -> None:
    log_run(mlflow_client(f"sqlite:///{database}"), GOOD, "one")
    with closing(sqlite3.connect(database)) as damaged:
        damaged.executescript(
            """
            CREATE TABLE kept AS SELECT * FROM metrics;
            DROP TABLE metrics;
            ALTER TABLE kept RENAME TO metrics;
            INSERT INTO metrics SELECT 'val/loss', NULL, NULL, run_uuid, NULL, 0 FROM runs;
            INSERT INTO metrics (key, value, step, run_uuid) SELECT NULL, 'x', 'y', run_uuid FROM runs;
            """
        )

    require_same(read(database)[0], GOOD)


def test_a_folder_of_mlflow_without_metrics_or_with_damaged_ones_is_told(tmp_path: Path) -> None:
    client = mlflow_client((tmp_path / "mlruns").as_uri())
    run_id = log_run(client, GOOD, "one")
    (run,) = (tmp_path / "mlruns").glob(f"*/{run_id}")
    file = run / "metrics" / "val" / "loss"
    file.write_text("17 nonsense 1\n")
    with pytest.raises(CurveFileError, match="val/loss, line 1 is no metric of MLflow"):
        read_curves(run, Columns())
    shutil.rmtree(run / "metrics")
    with pytest.raises(CurveFileError, match="is a folder without event files of TensorBoard or runs of"):
        read_curves(run, Columns())


# TensorBoard


def write_events(folder: Path, tags: dict[str, Sequence[float]], *, stride: int = 1) -> None:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    writer = EventFileWriter(str(folder))
    for tag, values in tags.items():
        for step, value in enumerate(values):
            summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
            writer.add_event(Event(step=stride * step, wall_time=START + SECONDS * step, summary=summary))
    writer.close()


def test_each_folder_of_events_is_a_run_with_the_splits_below_it(tmp_path: Path) -> None:
    write_events(tmp_path / "a" / "train", {"epoch_loss": OVERFIT.train})
    write_events(tmp_path / "a" / "validation", {"epoch_loss": OVERFIT.validation})
    write_events(tmp_path / "b", {"Loss/train": GOOD.train, "Loss/val": GOOD.validation})
    write_events(tmp_path / "c" / "Loss_train", {"Loss": GOOD.train})
    write_events(tmp_path / "c" / "Loss_val", {"Loss": GOOD.validation})
    write_events(tmp_path / "b" / "1700000000.5", {"hparam/score": [0.5]})

    a, b, c = read(tmp_path, "b/1700000000.5 has no column with a known name of a train loss")

    assert [one.name.removeprefix(f"{tmp_path}, ") for one in (a, b, c)] == ["a", "b", "c"]
    require_same(a, OVERFIT, Verdict.OVERFITTING)
    require_same(b, GOOD, Verdict.GOOD_FIT)
    require_same(c, GOOD, Verdict.GOOD_FIT)
    assert all(one.seconds[1:] == pytest.approx([SECONDS] * (EPOCHS - 1)) for one in (a, b, c))


def test_events_whose_train_steps_are_batches_and_validation_steps_epochs(tmp_path: Path) -> None:
    write_events(tmp_path, {"train/loss": OVERFIT.train}, stride=100)
    write_events(tmp_path, {"val/loss": OVERFIT.validation})

    require_same(read(tmp_path)[0], OVERFIT, Verdict.OVERFITTING)


def test_a_file_of_events_that_holds_none_is_told(tmp_path: Path) -> None:
    path = tmp_path / "events.out.tfevents.1"
    path.write_bytes(b"\x00\xff nonsense" * 100)

    with pytest.raises(CurveFileError):
        read_curves(path, Columns())


# Charts with one loss each


def one_loss_charts(folder: Path, page: str, runs: dict[str, Curve]) -> tuple[Path, Path]:
    """Write what two charts export: train losses by batch, validation losses by epoch, at the steps of their own."""
    paths = (folder / "train.csv", folder / "val.csv")
    for path, metric in zip(paths, ("train/loss", "val/loss"), strict=True):
        table: list[list[Any]] = []
        for name, curve in runs.items():
            losses = curve.train if metric == "train/loss" else curve.validation
            for epoch, loss in enumerate(losses):
                steps = range(10 * epoch, 10 * epoch + 10, 5) if metric == "train/loss" else [10 * epoch + 9]
                table += [[name, metric, step, loss] for step in steps]
        with path.open("w", newline="") as file:
            writer = csv.writer(file, quoting=csv.QUOTE_ALL)
            if page == "mlflow":
                writer.writerow(["Run", "Run ID", "metric", "step", "timestamp", "value"])
                for name, key, step, loss in table:
                    writer.writerow([name, f"id-{name}", key, step, 1000 * round(START + step), loss])
            else:
                writer.writerow(["Step", *(f"{name} - {metric}" for name in runs)])
                for name, _, step, loss in table:
                    writer.writerow([step, *(loss if name == other else "" for other in runs)])
    return paths


@pytest.mark.parametrize("page", ["wandb", "mlflow"])
def test_charts_with_one_loss_each_are_joined_by_run(
    page: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train, validation = one_loss_charts(tmp_path, page, {"one": OVERFIT, "two": GOOD})
    monkeypatch.setattr(
        sys, "argv", ["curvewatch", "diagnose", str(validation), str(train), "--json", "--online"]
    )

    with pytest.raises(SystemExit) as ending:
        main()

    assert (ending.value.code or 0) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(one["id"].rpartition(", ")[2], one["verdict"]) for one in answers] == [
        ("one", "overfitting"),
        ("two", "good_fit"),
    ]
    assert answers[0]["best_epoch"] == OVERFIT.validation.index(min(OVERFIT.validation)) + 1


@pytest.mark.parametrize("page", ["wandb", "mlflow"])
def test_a_chart_with_one_loss_alone_is_told(
    page: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train, _ = one_loss_charts(tmp_path, page, {"one": OVERFIT})
    monkeypatch.setattr(sys, "argv", ["curvewatch", "diagnose", str(train)])

    with pytest.raises(SystemExit) as ending:
        main()

    assert ending.value.code == 2
    error = capsys.readouterr().err
    assert "train_loss; where another file has the other loss, name it as well" in error


@pytest.mark.filterwarnings("ignore")  # Lightning's own.
def test_lightnings_loggers_agree(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning", reason="lightning is not installed")
    from lightning.pytorch import loggers

    class Line(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(4, 1)

        def training_step(self, batch: Any, _: int) -> Any:
            loss = self.layer(batch).square().mean()
            self.log("train/loss", loss)
            return loss

        def validation_step(self, batch: Any, _: int) -> None:
            self.log("val/loss", self.layer(batch).square().mean())

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    samples: Any = torch.randn(60, 4)
    data: Any = torch.utils.data.DataLoader(samples, batch_size=10)
    lightning.Trainer(
        max_epochs=8,
        accelerator="cpu",
        log_every_n_steps=2,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        logger=[
            loggers.CSVLogger(tmp_path / "csv"),
            loggers.TensorBoardLogger(tmp_path / "tb"),
            loggers.MLFlowLogger(tracking_uri=(tmp_path / "mlruns").as_uri()),
            loggers.WandbLogger(save_dir=tmp_path / "wb"),
        ],
    ).fit(Line(), data, data)
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    wandb.finish()
    # Its own process writes the file, and has done so for certain only when it is gone.
    wandb.teardown()
    (file,) = (tmp_path / "csv").rglob("metrics.csv")

    (expected,) = read(file)

    assert len(expected.curve) == 8
    assert expected.left_out == 0
    for folder in ("tb", "mlruns", "wb"):
        require_same(read(tmp_path / folder)[0], expected.curve)


# The command


def test_runs_left_out_are_told_beside_the_answers(
    tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    client = mlflow_client(f"sqlite:///{database}")
    log_run(client, OVERFIT, "one")
    log_run(client, GOOD, "other", names=("fit", "held out"))
    packed = tmp_path / "copy.json.gz"
    packed.write_bytes(
        gzip.compress(
            json.dumps([{"epoch": e, "loss": t, "val_loss": v} for e, t, v in pairs(GOOD)]).encode()
        )
    )
    monkeypatch.setattr(sys, "argv", ["curvewatch", "diagnose", str(database), str(packed), "--json"])

    with pytest.raises(SystemExit) as ending:
        main()

    captured = capsys.readouterr()
    assert (ending.value.code or 0) == 0
    assert "left out: " in captured.err
    answers = [json.loads(line) for line in captured.out.splitlines()]
    assert [answer["verdict"] for answer in answers] == ["overfitting", "good_fit"]
