"""Curves in text as spreadsheets, archives and accidents leave it: read right, or refused in one sentence."""

from __future__ import annotations

import codecs
import gzip
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from curve_generator import make_curve
from curvewatch_service.cli import main
from curvewatch_service.curve_files import Columns, NamedCurve, read_curves
from curvewatch_service.errors import CurveFileError
from curvewatch_workers.diagnosis import Verdict

TRAIN, VALIDATION = (0.9, 0.625, 0.5, 1e-3), (1.0, 0.75, 0.5, 0.25)
CSV = "epoch,loss,val_loss\n" + "".join(
    f"{i},{t},{v}\n" for i, (t, v) in enumerate(zip(TRAIN, VALIDATION, strict=True))
)
SEMICOLONS = CSV.replace(",", ";")


def read(path: Path) -> NamedCurve:
    (one,) = read_curves(path, Columns())
    return one


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(codecs.BOM_UTF8 + CSV.encode(), id="byte order mark"),
        pytest.param(CSV.replace(",", "\t").encode("utf-16"), id="Excel's Unicode text"),
        pytest.param(
            CSV.replace(",", "\t").encode("utf-16-be").join([codecs.BOM_UTF16_BE, b""]), id="UTF-16BE"
        ),
        pytest.param(CSV.replace("\n", "\r\n").encode(), id="CRLF"),
        pytest.param(CSV.replace("\n", "\r").encode(), id="CR"),
        pytest.param(SEMICOLONS.encode(), id="semicolons"),
        pytest.param(SEMICOLONS.replace(".", ",").encode(), id="decimal commas"),
        pytest.param(CSV.replace(",", "\t").replace(".", ",").encode(), id="decimal commas, tabs"),
        pytest.param(f"sep=;\n{SEMICOLONS}".encode(), id="Excel's separator"),
        pytest.param(gzip.compress(CSV.encode()), id="gzip"),
        pytest.param(("\n\n" + CSV.replace(",", " , ")).encode(), id="blanks"),
        pytest.param(
            "".join(f'"{line}"\n' for line in CSV.replace(",", '","').split()).encode(), id="quotes"
        ),
    ],
)
def test_a_csv_is_read_however_it_was_saved(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes(data)

    one = read(path)

    assert (one.curve.train, one.curve.validation) == (TRAIN, VALIDATION)


def test_ultralytics_time_is_read_from_padded_columns(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    lines = ["      epoch,       time,   train/box_loss,  train/cls_loss,   val/box_loss,   val/cls_loss"]
    lines += [
        f"   {i + 1},  {12.5 * i + 20},  {t / 2},  {t / 2}, {v / 4}, {3 * v / 4}"
        for i, (t, v) in enumerate(zip(TRAIN, VALIDATION, strict=True))
    ]
    path.write_text("\n".join(lines))

    one = read(path)

    assert one.curve.train == pytest.approx(TRAIN)
    assert one.seconds[1:] == (12.5, 12.5, 12.5)


def test_a_time_in_milliseconds_since_1970_is_read_as_such(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    rows = "".join(f"{i},{1_700_000_000_000 + 1500 * i},0.5,0.5\n" for i in range(3))
    path.write_text("epoch,timestamp,loss,val_loss\n" + rows)

    assert read(path).seconds[1:] == (1.5, 1.5)


@pytest.mark.parametrize("times", [(10, 20, 5, 15), (11, 12, 11, 12), (7, 7, 7, 7)])
def test_a_time_that_starts_again_or_is_that_of_each_epoch_is_taken_for_none(
    times: tuple[float, ...], tmp_path: Path
) -> None:
    path = tmp_path / "log.csv"
    path.write_text("epoch,time,loss,val_loss\n" + "".join(f"{i},{t},0.5,0.5\n" for i, t in enumerate(times)))

    assert read(path).seconds == ()


def trainer_state(path: Path, history: list[dict[str, float]]) -> Path:
    path.write_text(json.dumps({"log_history": history}))
    return path


def test_validations_within_an_epoch_are_told_apart(tmp_path: Path) -> None:
    """A fine-tuning of one epoch, validated every quarter of it, with train losses between."""
    history: list[dict[str, float]] = []
    for i, (train, validation) in enumerate(zip(TRAIN, VALIDATION, strict=True)):
        history += [
            {"epoch": i / 4 + 0.1, "loss": train - 1e-4},
            {"epoch": i / 4 + 0.2, "loss": train + 1e-4},
        ]
        history.append({"epoch": i / 4 + 0.25, "eval_loss": validation})

    one = read(trainer_state(tmp_path / "trainer_state.json", history))

    assert one.curve.train == pytest.approx(TRAIN)
    assert one.curve.validation == VALIDATION


def test_validations_a_little_before_the_end_of_an_epoch_belong_to_it(tmp_path: Path) -> None:
    """Gradient accumulation leaves a rest of each epoch."""
    history: list[dict[str, float]] = []
    for i, (train, validation) in enumerate(zip(TRAIN, VALIDATION, strict=True)):
        history += [{"epoch": i + 0.5, "loss": train}, {"epoch": i + 0.9984, "eval_loss": validation}]

    one = read(trainer_state(tmp_path / "trainer_state.json", history))

    assert (one.curve.train, one.curve.validation) == (TRAIN, VALIDATION)


def test_train_losses_without_an_epoch_count_to_the_next_validation(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with path.open("w") as file:
        for i, (train, validation) in enumerate(zip(TRAIN, VALIDATION, strict=True)):
            file.write(json.dumps({"train/loss": train}) + "\n")
            file.write(json.dumps({"epoch": i, "val/loss": validation}) + "\n")

    one = read(path)

    assert (one.curve.train, one.curve.validation) == (TRAIN, VALIDATION)


def write(data: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / "file").write_bytes(data)
        return folder / "file"

    return make


def damaged_store(folder: Path) -> Path:
    (folder / "run" / "metrics").mkdir(parents=True)
    (folder / "run" / "meta.yaml").write_text("{a: [")
    return folder


def metrics_in_no_text(folder: Path) -> Path:
    damaged_store(folder)
    (folder / "run" / "meta.yaml").write_text("run_id: a\n")
    (folder / "run" / "metrics" / "loss").write_bytes(b"\xff")
    return folder


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (write(b""), "is empty"),
        (write(b" \r\n"), "is empty"),
        (write(b"PK\3\4" + bytes(99)), "cannot be read as text: it is a binary file"),
        (write(gzip.compress(CSV.encode())[:-9]), "is a damaged gzip file"),
        (write(b"\x1f\x8bnonsense"), "is a damaged gzip file"),
        (write("lóss,val_loss\n".encode("latin-1")), "cannot be read as text"),
        (write(b"[" * 100_000), "is no JSON that can be read"),
        (write(b'{"loss": [1' + b"0" * 5000 + b"]}"), "is no JSON that can be read"),
        (write(b'{"a": [1}\n{"a"'), "file is no JSON"),
        (write(b"epoch,loss,val_loss\n1," + b"9" * 200_000), "is no CSV"),
        (write(b"epoch,loss,val_loss\n"), "there are none with numbers"),
        (lambda folder: folder / "nowhere.csv", "there is no file"),
        (lambda folder: write(b"")(folder) / "below", "cannot be read: Not a directory"),
        (lambda folder: folder / ("x" * 300), "cannot be read: File name too long"),
        (lambda folder: folder, "is a folder without"),
        (damaged_store, "meta.yaml is no YAML"),
        (metrics_in_no_text, "has a file that is no text"),
    ],
)
def test_what_cannot_be_read_ends_the_command_with_one_sentence(
    make: Callable[[Path], Path],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["curvewatch", "diagnose", str(make(tmp_path))])

    with pytest.raises(SystemExit) as ending:
        main()

    error = capsys.readouterr().err
    assert ending.value.code == 2
    assert told in error
    assert error.count("\n") == 1


def test_a_file_that_may_not_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(self: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    path = write(CSV.encode())(tmp_path)
    # Root, as which tests may run, may read every file.
    monkeypatch.setattr(Path, "open", deny)

    with pytest.raises(CurveFileError, match="cannot be read: Permission denied"):
        read_curves(path, Columns())


def test_a_file_of_a_gibibyte_is_refused_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("curvewatch_service.curve_files.text.LARGEST_FILE", 2**20)
    path = tmp_path / "bomb.csv.gz"
    path.write_bytes(gzip.compress(bytes(2**21)))

    with pytest.raises(CurveFileError, match="has more than 1 MiB"):
        read_curves(path, Columns())


def test_a_name_that_is_no_text_does_not_keep_the_report_from_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": "\\ud800", "train_loss": [1], "val_loss": [1]}\n' * 2)
    page = tmp_path / "page.html"
    monkeypatch.setattr(sys, "argv", ["curvewatch", "diagnose", str(path), "--html", str(page), "--json"])

    with pytest.raises(SystemExit) as ending:
        main()

    assert (ending.value.code or 0) == 0
    assert "<h2>?</h2>" in page.read_text()


def diagnosed(path: Path, *options: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["curvewatch", "diagnose", str(path), *options])
        with pytest.raises(SystemExit) as ending:
            main()
    assert (ending.value.code or 0) == 0


def test_a_file_that_knows_its_time_tells_what_a_stop_would_have_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    curve = make_curve(Verdict.OVERFITTING, epochs=60, noise=0.0, seed=1)
    # An epoch takes as many seconds as its number.
    ends = [epoch * (epoch + 1) / 2 for epoch in range(1, 61)]
    path = tmp_path / "results.csv"
    rows = zip(ends, curve.train, curve.validation, strict=True)
    path.write_text(
        "epoch,time,train/loss,val/loss\n" + "".join(f"{i},{t},{a},{b}\n" for i, (t, a, b) in enumerate(rows))
    )
    best = curve.validation.index(min(curve.validation)) + 1

    diagnosed(path, "--json")
    said = json.loads(capsys.readouterr().out)
    diagnosed(path, "--html", str(tmp_path / "page.html"))
    shown = capsys.readouterr().out

    stop = said["stop_epoch"]
    assert best < stop < 60
    assert said["savings"] == {
        "stop_epoch": best,
        "epochs": 60 - best,
        "seconds": sum(range(best + 1, 61)),
        "gpu_hours": None,
        "loss": 0.0,
    }
    assert said["stop_savings"]["seconds"] == sum(range(stop + 1, 61))
    assert f"Stopping at the best epoch, {best}, would have saved {60 - best} epochs (" in shown
    assert f"after epoch {stop}, would have saved {60 - stop} epochs (" in shown
    assert f"Stopping at the best epoch, {best}, " in (tmp_path / "page.html").read_text()


def test_a_stop_before_any_finite_loss_is_answered_in_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": "a", "train_loss": [null, 1, 1], "val_loss": [null, 1, 2]}\n')

    diagnosed(path, "--json")
    said = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    diagnosed(path)

    assert said["stop_savings"]["loss"] is None
    assert "left no epoch with a finite validation loss" in capsys.readouterr().out
