"""From rows, or from single points, to a curve: which columns are losses, and what belongs to one epoch."""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Final, NamedTuple

from curvewatch_service.errors import CurveFileError
from curvewatch_workers.diagnosis import ACCURACIES_OF_TOOLS, VALIDATION_SPLITS, Curve

_TRAIN: Final = (
    "train_loss_epoch",
    "train_loss",
    "training_loss",
    "loss_train",
    "loss_epoch",
    "loss",
)
_VALIDATION: Final = (
    "val_loss_epoch",
    "val_loss",
    "valid_loss",
    "validation_loss",
    "eval_loss",
    "loss_val",
    "loss_validation",
    "test_loss",
)
_EPOCH: Final = ("epoch", "epochs", "train_epoch")
_RATE: Final = ("learning_rate", "lr", "train_learning_rate")
_RATE_OF: Final = "lr_"
"""Before the name of an optimizer (Lightning) or of a group of parameters (Ultralytics)."""
CLOCK: Final = "_clock"
"""Entry of a row with its time in seconds; no column has this name."""
_CLOCKS: Final = (CLOCK, "runtime", "time", "timestamp", "wall_time")
_MILLISECONDS_FROM: Final = 1e11
"""Times from here on are milliseconds since 1970: as seconds they lie in the year 5138."""


@dataclass(frozen=True, kw_only=True)
class NamedCurve:
    """A curve of a file."""

    name: str
    curve: Curve
    left_out: int = 0
    """Epochs that lack one of both losses: epochs are counted without them."""
    seconds: tuple[float, ...] = ()
    """Seconds from each epoch's predecessor to its end, NaN for the first; empty where the file does not tell."""
    given_id: Any = None
    """What a line gives as `id`, of any type of JSON; None where nothing is given."""

    @property
    def key(self) -> Any:
        """What an answer names the curve by: what was given, as it was given, else its name."""
        return self.name if self.given_id is None else self.given_id


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Names of the columns with both losses; None looks for those that tools write."""

    train: str | None = None
    validation: str | None = None


Row = Mapping[str, float]
"""What one row has, by normalised column: numbers alone, NaN and infinities included."""


class Point(NamedTuple):
    """One number that was logged."""

    key: str
    step: float
    clock: float
    """When, in seconds; NaN where that is not known."""
    value: float


@lru_cache(maxsize=4096)
def normal(name: str) -> str:
    """Return a column's name in one spelling: `Train/Box Loss` is train_box_loss."""
    # Weights & Biases puts the run's name before the metric's.
    name = name.rsplit(" - ", 1)[-1]
    return re.sub(r"[^0-9a-z]+", "_", name.lower()).strip("_").removeprefix("epoch_")


def number(value: object) -> float | None:
    """Return a cell's number, None where it holds none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except ValueError:
        return None
    except OverflowError:
        return math.inf


def row_of(cells: Mapping[str, object]) -> Row:
    """Return the cells that are numbers."""
    return {normal(name): known for name, value in cells.items() if (known := number(value)) is not None}


def make_curve(
    train: tuple[float, ...],
    validation: tuple[float, ...],
    metrics: dict[str, tuple[float, ...]],
    rates: tuple[float, ...],
    place: str,
) -> Curve:
    """Make a curve.

    Raises:
        CurveFileError: The series differ in length.
    """
    try:
        return Curve(train=train, validation=validation, metrics=metrics, learning_rates=rates)
    except ValueError as error:
        raise CurveFileError(f"{place}: {error}") from error


def curve_of_points(place: str, points: Iterable[Point], columns: Columns) -> NamedCurve:
    """Make a curve of single points: those of one step are one row.

    Raises:
        CurveFileError: There is no epoch with both losses.
    """
    ordered = sorted(points, key=lambda point: (point.step, _or_zero(point.clock)))
    series: dict[str, list[Point]] = {}
    for point in ordered:
        series.setdefault(normal(point.key), []).append(point)
    counts = Counter({name: len(found) for name, found in series.items()})
    losses = [*_train(counts, columns, place), *_validation(counts, columns, place)]
    if _share_steps([series[name] for name in losses]):
        rows: dict[float, dict[str, float]] = {}
        for name, found in series.items():
            for point in found:
                row = rows.setdefault(point.step, {})
                row[name] = point.value
                if math.isfinite(point.clock):
                    row[CLOCK] = max(row.get(CLOCK, -math.inf), point.clock)
        return curve_of_rows(place, [rows[step] for step in sorted(rows)], columns)
    return curve_of_rows(place, _rows_by_time(series, losses), columns)


def _or_zero(clock: float) -> float:
    return clock if math.isfinite(clock) else 0.0


def _share_steps(series: Sequence[Sequence[Point]]) -> bool:
    """Tell whether the steps of several series count the same.

    They do not where a series was logged without steps, which MLflow takes for step 0, or one by batch and another by
    epoch: the last steps are then far apart, although each was logged to the end.
    """
    if any(len(one) > 1 and one[0].step == one[-1].step for one in series):
        return False
    last = [one[-1].step for one in series]
    by_epoch = min(series, key=lambda one: one[-1].step)
    counted = by_epoch[-1].step - by_epoch[0].step == len(by_epoch) - 1 and len(by_epoch) > 2
    return not (counted and max(last) >= 2 * (min(last) + 1) and math.isfinite(by_epoch[-1].clock))


def _rows_by_time(series: Mapping[str, Sequence[Point]], losses: Sequence[str]) -> list[Row]:
    """Return rows in the order in which they were logged: side by side if all losses are there equally often."""
    by_time = {name: sorted(found, key=lambda point: _or_zero(point.clock)) for name, found in series.items()}
    count = len(by_time[losses[0]])
    if all(len(by_time[name]) == count for name in losses):
        sides = {name: found for name, found in by_time.items() if len(found) == count}
        return [
            {name: found[i].value for name, found in sides.items()}
            | {CLOCK: max(_or_zero(found[i].clock) for found in sides.values())}
            for i in range(count)
        ]
    points = sorted(
        ((_or_zero(point.clock), name, point.value) for name, found in by_time.items() for point in found),
        key=lambda entry: entry[0],
    )
    return [{name: value, CLOCK: clock} for clock, name, value in points]


def curve_of_rows(place: str, rows: Sequence[Row], columns: Columns) -> NamedCurve:
    """Make a curve of rows: those of one epoch are one, the mean of its train losses and its last validation loss.

    Raises:
        CurveFileError: There is no epoch with both losses.
    """
    counts = Counter(name for row in rows for name in row if name != CLOCK)
    train, validation = _train(counts, columns, place), _validation(counts, columns, place)
    accuracy = next(
        (
            f"{split}_{name}"
            for name in ACCURACIES_OF_TOOLS
            for split in VALIDATION_SPLITS
            if f"{split}_{name}" in counts
        ),
        None,
    )
    rate = next((name for name in counts if name in _RATE or name.startswith(_RATE_OF)), None)
    clock = next((name for name in _CLOCKS if any(name in row for row in rows)), None)
    points = [
        (
            _merged(group, train, statistics.fmean),
            _merged(group, validation, _last),
            _merged(group, [accuracy or ""], _last),
            _merged(group, [rate or ""], _last),
            _merged(group, [clock or ""], max),
        )
        for group in _epochs(rows, train, validation)
    ]
    whole = [(t, v, a, r, c) for t, v, a, r, c in points if t is not None and v is not None]
    if not whole:
        raise CurveFileError(
            f"{place} has no epoch with both losses ({' + '.join(train)} and {' + '.join(validation)})"
        )
    trains, validations, accuracies, rates, clocks = zip(*whole, strict=True)
    metrics = {"accuracy": _known(accuracies)} if accuracy else {}
    return NamedCurve(
        name=place,
        curve=make_curve(trains, validations, metrics, _known(rates) if rate else (), place),
        left_out=len(points) - len(whole),
        seconds=_seconds(_known(clocks)),
    )


def _known(values: Iterable[float | None]) -> tuple[float, ...]:
    return tuple(math.nan if value is None else value for value in values)


def _epochs(rows: Sequence[Row], train: Sequence[str], validation: Sequence[str]) -> list[list[Row]]:
    """Part the rows by epoch, in order; where epochs do not tell them apart, one ends with each validation loss."""
    losses = {*train, *validation}
    with_losses = [row for row in rows if not losses.isdisjoint(row)]
    column = next((name for name in _EPOCH if all(name in row for row in with_losses)), None)
    epochs = [] if column is None else _by_epoch(rows, column)
    # Within an epoch, Hugging Face counts fractions: as many of them, as often it was validated.
    validated = {row.get(column or "") for row in with_losses if not row.keys().isdisjoint(validation)}
    if column is None or len(validated) > len(epochs):
        epochs = [[]]
        for row in rows:
            epochs[-1].append(row)
            if not row.keys().isdisjoint(validation):
                epochs.append([])
    return [epoch for epoch in epochs if any(not losses.isdisjoint(row) for row in epoch)]


def _by_epoch(rows: Sequence[Row], column: str) -> list[list[Row]]:
    groups: dict[int, list[Row]] = {}
    for row in rows:
        if math.isfinite(row.get(column, math.nan)):
            groups.setdefault(math.ceil(row[column]), []).append(row)
    return [groups[epoch] for epoch in sorted(groups)]


def _merged(
    rows: Sequence[Row], columns: Sequence[str], merge: Callable[[list[float]], float]
) -> float | None:
    """Return the sum of the columns, each merged over the rows that have it; None when one is in no row."""
    merged = []
    for column in columns:
        values = [row[column] for row in rows if column in row]
        if not values:
            return None
        merged.append(merge(values))
    return sum(merged)


def _last(values: list[float]) -> float:
    return values[-1]


def _seconds(clocks: Sequence[float]) -> tuple[float, ...]:
    """Return the time between epochs; empty where the clock does not run on, as after a restart."""
    unit = 1000 if clocks[0] >= _MILLISECONDS_FROM else 1
    took = [(after - before) / unit for before, after in pairwise(clocks)]
    return (math.nan, *took) if took and all(0 < seconds < math.inf for seconds in took) else ()


def _train(counts: Mapping[str, int], columns: Columns, place: str) -> list[str]:
    return _losses(counts, columns.train, _TRAIN, ("train",), "--train", place)


def _validation(counts: Mapping[str, int], columns: Columns, place: str) -> list[str]:
    return _losses(counts, columns.validation, _VALIDATION, VALIDATION_SPLITS, "--validation", place)


def _losses(
    counts: Mapping[str, int],
    asked: str | None,
    names: Sequence[str],
    splits: Sequence[str],
    option: str,
    place: str,
) -> list[str]:
    """Return the column of a loss, or the columns that add up to it, as Ultralytics writes them."""
    if asked is not None:
        if normal(asked) not in counts:
            raise CurveFileError(f"{place} has no column {asked!r}; it has {_listed(counts)}")
        return [normal(asked)]
    found = [name for name in names if name in counts]
    if found:
        # Hugging Face's `train_loss`, beside `loss`, is one number for the whole run.
        return [next((name for name in found if counts[name] > 1), found[0])]
    parts = [
        name
        for name in counts
        if name.endswith("_loss") and name.startswith(tuple(f"{split}_" for split in splits))
    ]
    if not parts:
        raise CurveFileError(
            f"{place} has no column with a known name of a {splits[0]} loss, such as {names[0]}; name it with "
            f"{option}; there are {_listed(counts)}"
        )
    return parts


def _listed(counts: Mapping[str, int]) -> str:
    names = list(counts)
    more = f" and {len(names) - 30} more" if len(names) > 30 else ""
    return ", ".join(names[:30]) + more if names else "none with numbers"
