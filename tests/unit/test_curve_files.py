"""Learning curves in the files that other tools write, and the command that reads them."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from curve_generator import make_curve, prefix
from curvewatch_service.cli import main
from curvewatch_service.curve_files import Columns, NamedCurve, read_curves
from curvewatch_service.errors import CurveFileError
from curvewatch_workers.diagnosis import Curve, Verdict, diagnose, diagnoses

TRAIN, VALIDATION, ACCURACY = [0.9, 0.6, 0.4, 0.3], [0.95, 0.7, 0.65, 0.8], [0.6, 0.7, 0.75, 0.74]


def read_one(path: Path, **columns: str) -> NamedCurve:
    (one,) = read_curves(path, Columns(**columns))
    return one


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)
    return path


def require_curve(one: NamedCurve, *, accuracy: bool = True) -> None:
    assert list(one.curve.train) == pytest.approx(TRAIN)
    assert list(one.curve.validation) == pytest.approx(VALIDATION)
    if accuracy:
        assert list(one.curve.metrics["accuracy"]) == pytest.approx(ACCURACY)


def keras_csv(folder: Path) -> Path:
    """CSVLogger: a row an epoch, from 0."""
    rows = [
        {
            "epoch": i,
            "accuracy": 0.9,
            "loss": TRAIN[i],
            "val_accuracy": ACCURACY[i],
            "val_loss": VALIDATION[i],
        }
        for i in range(4)
    ]
    return write_csv(folder / "log.csv", rows)


def lightning_csv(folder: Path) -> Path:
    """CSVLogger: the splits in rows of their own, with empty cells, and a train loss every few steps."""
    rows: list[dict[str, Any]] = []
    for i in range(4):
        rows += [
            {"epoch": i, "step": 10 * i + 5, "train_loss_step": 7.0},
            {"epoch": i, "step": 10 * i + 9, "val_loss": VALIDATION[i], "val_acc": ACCURACY[i]},
            {"epoch": i, "step": 10 * i + 9, "train_loss_epoch": TRAIN[i]},
        ]
    return write_csv(folder / "metrics.csv", rows)


def ultralytics_csv(folder: Path) -> Path:
    """results.csv: padded names, and a loss in parts."""
    rows = [
        {
            "                  epoch": i + 1,
            "         train/box_loss": TRAIN[i] / 4,
            "         train/cls_loss": TRAIN[i] / 2,
            "         train/dfl_loss": TRAIN[i] / 4,
            "       metrics/mAP50(B)": 0.5,
            "           val/box_loss": VALIDATION[i] / 2,
            "           val/cls_loss": VALIDATION[i] / 4,
            "           val/dfl_loss": VALIDATION[i] / 4,
        }
        for i in range(4)
    ]
    return write_csv(folder / "results.csv", rows)


def wandb_csv(folder: Path) -> Path:
    """A chart's export: the run's name before the metric's, quotes, and an empty cell where nothing was logged."""
    rows: list[dict[str, Any]] = []
    for i in range(4):
        rows += [
            {"Step": 2 * i, "epoch": i, "brisk-sea-1 - train/loss": TRAIN[i]},
            {"Step": 2 * i + 1, "epoch": i, "brisk-sea-1 - val/loss": VALIDATION[i]},
        ]
    return write_csv(folder / "wandb.csv", rows)


def keras_json(folder: Path) -> Path:
    path = folder / "history.json"
    history = {"loss": TRAIN, "val_loss": VALIDATION, "val_accuracy": ACCURACY, "accuracy": [0.9] * 4}
    path.write_text(json.dumps({"history": history}))
    return path


def pandas_json(folder: Path) -> Path:
    """DataFrame(history).to_json(): a column is an object with a key for each row."""
    path = folder / "frame.json"
    columns = {"loss": TRAIN, "val_loss": VALIDATION, "val_accuracy": ACCURACY}
    path.write_text(
        json.dumps({k: {str(i): v for i, v in enumerate(values)} for k, values in columns.items()})
    )
    return path


def hugging_face_json(folder: Path) -> Path:
    """trainer_state.json: several train losses in an epoch, counted in fractions."""
    history: list[dict[str, float]] = []
    for i in range(4):
        history += [
            {"epoch": i + 0.5, "loss": TRAIN[i] + 0.05, "learning_rate": 1e-4},
            {"epoch": i + 1.0, "loss": TRAIN[i] - 0.05, "learning_rate": 1e-4},
            {"epoch": i + 1.0, "eval_loss": VALIDATION[i], "eval_accuracy": ACCURACY[i]},
        ]
    history.append({"epoch": 4.0, "train_runtime": 12.0, "train_loss": 0.55})
    path = folder / "trainer_state.json"
    path.write_text(json.dumps({"best_metric": 0.65, "log_history": history}))
    return path


def write_events(folder: Path, tags: dict[str, list[float]]) -> None:
    writer = EventFileWriter(str(folder))
    for tag, values in tags.items():
        for step, value in enumerate(values):
            writer.add_event(
                Event(step=step, summary=Summary(value=[Summary.Value(tag=tag, simple_value=value)]))
            )
    writer.close()


def tensorboard_folder(folder: Path) -> Path:
    write_events(
        folder / "run",
        {"Loss/train": [8.0] * 4, "train/loss": TRAIN, "val/loss": VALIDATION, "val/accuracy": ACCURACY},
    )
    return folder / "run"


def tensorboard_by_step(folder: Path) -> Path:
    """A loop of one's own: a train loss every step, the validation loss after each 10, and no epochs."""
    writer = EventFileWriter(str(folder / "steps"))

    def add(step: int, tag: str, value: float) -> None:
        writer.add_event(
            Event(step=step, summary=Summary(value=[Summary.Value(tag=tag, simple_value=value)]))
        )

    for i in range(4):
        for step in range(10):
            add(10 * i + step, "Loss/train", TRAIN[i] + (0.01 if step % 2 else -0.01))
        add(10 * i + 9, "Loss/val", VALIDATION[i])
        add(10 * i + 9, "val/acc", ACCURACY[i])
    writer.close()
    return folder / "steps"


def keras_tensorboard(folder: Path) -> Path:
    """The splits in folders of their own, under the same tags."""
    write_events(folder / "logs" / "train", {"epoch_loss": TRAIN, "epoch_accuracy": [0.9] * 4})
    write_events(folder / "logs" / "validation", {"epoch_loss": VALIDATION, "epoch_accuracy": ACCURACY})
    return folder / "logs"


def test_pandas_may_name_the_columns_as_json_lines_do(tmp_path: Path) -> None:
    columns = {"train_loss": TRAIN, "val_loss": VALIDATION}
    path = tmp_path / "frame.json"
    path.write_text(
        json.dumps({k: {str(i): v for i, v in enumerate(values)} for k, values in columns.items()})
    )

    require_curve(read_one(path), accuracy=False)


@pytest.mark.parametrize(
    "write",
    [
        keras_csv,
        lightning_csv,
        ultralytics_csv,
        wandb_csv,
        keras_json,
        pandas_json,
        hugging_face_json,
        tensorboard_folder,
        tensorboard_by_step,
        keras_tensorboard,
    ],
)
def test_what_other_tools_write_is_read(write: Callable[[Path], Path], tmp_path: Path) -> None:
    require_curve(read_one(write(tmp_path)), accuracy=write not in (ultralytics_csv, wandb_csv))


@pytest.mark.parametrize("column", ["lr", "learning_rate", "lr-AdamW", "lr/pg0"])
def test_learning_rates_are_read_where_there_are_any(column: str, tmp_path: Path) -> None:
    rates = (0.1, "", 0.01, 0.001)
    rows = [{"epoch": i, "loss": TRAIN[i], "val_loss": VALIDATION[i], column: rates[i]} for i in range(4)]
    one = read_one(write_csv(tmp_path / "log.csv", rows))

    require_curve(one, accuracy=False)
    assert [str(rate) for rate in one.curve.learning_rates] == ["0.1", "nan", "0.01", "0.001"]


def test_a_line_may_have_learning_rates(tmp_path: Path) -> None:
    path = tmp_path / "curves.jsonl"
    with_rates = {"id": "a", "train_loss": TRAIN, "val_loss": VALIDATION, "lr": [0.1, None, 0.01, 0.001]}
    path.write_text("\n".join(json.dumps(line) for line in (with_rates, {**with_rates, "lr": None})))
    known, unknown = read_curves(path, Columns())

    assert [str(rate) for rate in known.curve.learning_rates] == ["0.1", "nan", "0.01", "0.001"]
    assert unknown.curve.learning_rates == ()
    path.write_text(json.dumps({**with_rates, "lr": [0.1]}))
    (short,) = read_curves(path, Columns())
    assert [str(rate) for rate in short.curve.learning_rates] == ["0.1", "nan", "nan", "nan"]


def test_of_lists_that_differ_in_length_the_epochs_of_both_losses_are_read(tmp_path: Path) -> None:
    path = tmp_path / "curves.jsonl"
    line = {
        "id": "a",
        "train_loss": [*TRAIN, 0.1],
        "val_loss": VALIDATION,
        "val_acc": [0.5] * 9,
        "lr": [1] * 7,
    }
    path.write_text(json.dumps(line))
    (one,) = read_curves(path, Columns())

    assert one.curve == Curve(
        train=tuple(TRAIN),
        validation=tuple(VALIDATION),
        metrics={"accuracy": (0.5,) * 4},
        learning_rates=(1.0,) * 4,
    )
    assert one.left_out == 1


BAD_LINES = {
    "train_loss must be a list": '{"id": "b", "train_loss": null, "val_loss": [1]}',
    "val_loss must be a list": '{"id": "b", "train_loss": [1]}',
    "val_loss, epoch 2 is 'x', not a number": '{"id": "b", "train_loss": [1, 1], "val_loss": [1, "x"]}',
    "is no JSON": '{"id": "b", "train_loss": [1, 1], "val_l',
    "is no object": "[1, 2]",
    "is no JSON:": "These are my runs.",
}


@pytest.mark.parametrize("told", BAD_LINES)
@pytest.mark.parametrize("place", [1, 2])
@pytest.mark.parametrize("piped", [False, True])
def test_a_line_without_a_curve_costs_the_others_nothing(
    told: str,
    place: int,
    piped: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    good = '{{"id": "{}", "train_loss": [1, 0.5], "val_loss": [1, 0.6]}}'
    path = tmp_path / "curves.jsonl"
    lines = [good.format("a"), good.format("c"), ""]
    lines.insert(place - 1, BAD_LINES[told])
    path.write_text("\n".join(lines))
    monkeypatch.setattr(sys, "stdin", io.StringIO(path.read_text()))

    assert run(monkeypatch, "-" if piped else path, "--online", "--json") == 0

    captured = capsys.readouterr()
    assert [json.loads(line)["id"] for line in captured.out.splitlines()] == ["a", "c"]
    assert captured.err.startswith("left out: " + ("line" if piped else f"{path}, line") + f" {place}")
    assert told in captured.err
    assert captured.err.count("\n") == 1


def test_columns_can_be_named_in_any_spelling(tmp_path: Path) -> None:
    rows = [{"Fit loss": t, "held-out": v, "loss": 0.0} for t, v in zip(TRAIN, VALIDATION, strict=True)]
    path = write_csv(tmp_path / "own.csv", rows)

    require_curve(read_one(path, train="fit loss", validation="Held-Out"), accuracy=False)
    with pytest.raises(CurveFileError, match="no column 'nope'; it has fit_loss, held_out, loss"):
        read_one(path, train="nope")


def test_epochs_without_validation_are_left_out_and_counted(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"epoch": i, "loss": 1 / (i + 1)} for i in range(6)]
    for row in rows[1::2]:
        row["val_loss"] = 0.5
    one = read_one(write_csv(tmp_path / "every_other.csv", rows))

    assert one.curve.train == (1 / 2, 1 / 4, 1 / 6)
    assert one.left_out == 3


def test_what_is_not_finite_stays_so(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("epoch;loss;val_loss\n0;0.5;0.6\n1;nan;inf\n")
    one = read_one(path)

    assert math.isnan(one.curve.train[1])
    assert one.curve.validation[1] == math.inf


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.csv", "", "a.csv is empty"),
        ("a.csv", "epoch\n1\n", "no column with a known name of a train loss"),
        (
            "a.csv",
            "epoch,loss\n1,0.5\n",
            "known name of a val loss, such as val_loss_epoch; name it with --validation",
        ),
        ("a.csv", "epoch,loss,val_loss\n1,,0.5\n2,0.5,\n", "no epoch with both losses"),
        ("a.json", "{", "is no JSON"),
        ("a.json", "[1, 2]", "not one of rows"),
        ("a.json", "{}", "there are none with numbers"),
        ("a.json", '{"log_history": [1, 2]}', "not one of rows"),
        (
            "a.jsonl",
            '{"id": 1, "train_loss": [1], "val_loss": 1}\n{"id": 2}',
            "line 1 (id 1): val_loss must be a list",
        ),
        ("a.jsonl", '{"train_loss": [1], "val_loss": [[]]}', "val_loss, epoch 1 is [], not a number"),
        ("a.jsonl", '{"train_loss": ["x"], "val_loss": [1]}', "train_loss, epoch 1 is 'x', not a number"),
    ],
)
def test_what_cannot_be_read_is_told_in_a_sentence(name: str, text: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text)

    with pytest.raises(CurveFileError) as error:
        read_curves(path, Columns())
    assert told in str(error.value)


def test_a_file_that_is_no_text_is_told(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(b"\x80\x02\xff\xfe")

    with pytest.raises(CurveFileError, match="cannot be read as text"):
        read_curves(path, Columns())


def test_a_folder_without_events_is_told(tmp_path: Path) -> None:
    with pytest.raises(CurveFileError, match="is a folder without event files"):
        read_curves(tmp_path, Columns())


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["curvewatch", "diagnose", *map(str, arguments)])
    with pytest.raises(SystemExit) as ending:
        main()
    return int(ending.value.code or 0)


def lines_of_generated(path: Path, count: int) -> list[dict[str, Any]]:
    """Write curves of all verdicts as JSON lines; return what reading each epoch by epoch must give."""
    expected = []
    with path.open("w") as file:
        for number in range(count):
            verdict = list(Verdict)[number % len(Verdict)]
            curve = make_curve(verdict, epochs=30, noise=0.01, seed=number)
            accuracy = curve.metrics.get("accuracy")
            row = {
                "id": f"{verdict}/{number}",
                "train_loss": [x if math.isfinite(x) else None for x in curve.train],
                "val_loss": [x if math.isfinite(x) else None for x in curve.validation],
                "train_acc": None,
                "val_acc": accuracy and list(accuracy),
            }
            file.write(json.dumps(row) + "\n")
            # By the whole of each beginning, which cannot look ahead.
            said = [diagnose(prefix(curve, epochs)) for epochs in range(1, 31)]
            verdicts = [one.verdict for one in said]
            stops = [epoch for epoch, one in enumerate(said, 1) if one.stop]
            expected.append(
                {
                    "id": row["id"],
                    "verdict": verdicts[-1],
                    "stop_epoch": stops[0] if stops else None,
                    "first": {v: verdicts.index(v) + 1 if v in verdicts else None for v in Verdict},
                }
            )
    return expected


@pytest.mark.parametrize("count", [10, 80])
def test_online_answers_are_those_of_each_beginning_in_the_order_of_the_curves(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = lines_of_generated(tmp_path / "curves.jsonl", count)

    assert run(monkeypatch, tmp_path / "curves.jsonl", "--online", "--json") == 0

    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert all(answer.pop("best_epoch") for answer in answers)
    assert answers == expected


@pytest.mark.parametrize("options", [("--online",), ()])
def test_an_id_is_answered_as_it_was_given(
    options: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "curves.jsonl"
    ids: list[Any] = [7, "7", "a", {"run": [1, 2]}, 0, None]
    lines = [json.dumps({"id": one, "train_loss": [1.0, 0.5], "val_loss": [1.0, 0.6]}) for one in ids]
    path.write_text("\n".join(lines))

    assert run(monkeypatch, path, *options, "--json") == 0

    answered = [json.loads(line)["id"] for line in capsys.readouterr().out.splitlines()]
    assert answered == [*ids[:-1], f"{path}, line 6"]


@pytest.mark.parametrize(
    "extra",
    [
        {"lr": 0.1},
        {"lr": "cosine"},
        {"history": {"loss": [9.0]}},
        {"log_history": [1]},
        {"metrics": {"a": 1}},
        {"label": "overfitting", "seed": 3, "note": None},
    ],
)
@pytest.mark.parametrize("lines", [1, 2])
def test_what_else_a_line_holds_is_passed_by(extra: dict[str, Any], lines: int, tmp_path: Path) -> None:
    path = tmp_path / "curves.jsonl"
    path.write_text(
        f"{json.dumps({'id': 'a', 'train_loss': TRAIN, 'val_loss': VALIDATION} | extra)}\n" * lines
    )

    curves = read_curves(path, Columns())

    assert [one.name for one in curves] == ["a"] * lines
    for one in curves:
        require_curve(one, accuracy=False)
        assert one.curve.learning_rates == ()


@pytest.mark.parametrize("options", [("--json",), ("--online", "--json"), ("--online",)])
def test_epochs_that_are_left_out_are_told_beside_every_kind_of_answer(
    options: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "history.json"
    path.write_text(json.dumps({"loss": [1.0, None, 0.5], "val_loss": [1.0, 0.8, 0.6]}))

    assert run(monkeypatch, path, *options) == 0

    streams = capsys.readouterr()
    assert "1 epoch lacks one of both losses" in streams.err
    assert "lack" not in streams.out


def test_a_curve_reads_the_same_epoch_by_epoch_as_at_once() -> None:
    for verdict in Verdict:
        curve = make_curve(verdict, epochs=130, noise=0.03, seed=3)
        for epoch, said in enumerate(diagnoses(curve), start=1):
            if epoch % 13 == 0 or epoch < 12:
                assert said == diagnose(prefix(curve, epoch))


def test_a_person_sees_the_curve_the_verdict_and_the_evidence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    curve = make_curve(Verdict.OVERFITTING, epochs=30, noise=0.0, seed=1)
    rows = [
        {"epoch": i, "loss": t, "val_loss": v}
        for i, (t, v) in enumerate(zip(curve.train, curve.validation, strict=True))
    ]

    assert run(monkeypatch, write_csv(tmp_path / "mine.csv", rows), "--html", tmp_path / "r.html") == 0

    shown = capsys.readouterr().out
    assert "mine.csv" in shown
    assert "Verdict: overfitting, confidence " in shown
    assert "Validation loss was" in shown
    assert "x validation" in shown
    assert "A stop as soon as it was advised, after epoch " in shown
    assert " epochs and cost nothing." in shown
    page = (tmp_path / "r.html").read_text()
    assert "overfitting" in page
    assert "http://" not in page.split("<h1>")[0]
    assert page.count("plotly-graph-div") >= 1


def test_a_mistake_ends_with_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, tmp_path / "nowhere.csv") == 2
    assert capsys.readouterr().err == f"Error: there is no file {tmp_path}/nowhere.csv\n"


def test_a_file_that_cannot_be_read_costs_the_others_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "curves.jsonl"
    path.write_text(json.dumps({"id": "a", "train_loss": TRAIN, "val_loss": VALIDATION}))
    half = tmp_path / "half.csv"
    half.write_text("Step,a - train/loss\n1,0.5\n")

    assert run(monkeypatch, tmp_path / "nowhere.csv", path, half, "--json") == 2

    streams = capsys.readouterr()
    assert json.loads(streams.out)["id"] == "a"
    assert f"Error: there is no file {tmp_path}/nowhere.csv\n" in streams.err
    assert "half.csv" in streams.err


@pytest.mark.parametrize(
    ("text", "code", "told"),
    [
        ("\n", 2, "standard input has no curve"),
        ('{"id": "a", "train_loss": [1, 1]}\n', 2, "line 1 (id 'a'): val_loss must be a list"),
        ('{"id": "a", "train_loss": [1, 1], "val_loss": []}\n', 0, "2 epochs lack one of both losses"),
        ('{"id": "a", "train_loss": [], "val_loss": []}\n', 0, ""),
    ],
)
def test_curves_come_from_standard_input(
    text: str, code: int, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))

    assert run(monkeypatch, "-", "--online", "--json") == code

    captured = capsys.readouterr()
    assert told in captured.err
    if code == 0:
        assert json.loads(captured.out)["best_epoch"] is None
