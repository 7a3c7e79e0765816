"""OpenMetrics text with times: what Prometheus reads of it, and documents that become one."""

from __future__ import annotations

import io
import math
from array import array
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse

from curvewatch_service.openmetrics import Joined, TimeSeries, document, seconds_text
from curvewatch_workers import series
from curvewatch_workers.series import Series

FIRST = 1_767_225_600_000
VALUES = [0.1, 1 / 3, 5e-324, 1.7976931348623157e308, 1e16, 1234567.0, -0.0, math.inf, -math.inf, math.nan]
Found = dict[tuple[str, str, str], list[tuple[int, str]]]


def _loss(run_id: str, split: str, values: Iterable[float]) -> TimeSeries:
    numbers = array("d", values)
    times = array("q", range(FIRST, FIRST + len(numbers)))
    return TimeSeries(
        series.HISTORY_LOSS, {"run_id": run_id, "run": "digits", "split": split}, times, numbers
    )


def _epoch(run_id: str) -> TimeSeries:
    of: Series = series.HISTORY_EPOCH
    return TimeSeries(of, {"run_id": run_id, "run": "digits"}, array("q", [FIRST]), array("d", [1.0]))


def _text(*found: TimeSeries) -> str:
    return b"".join(document(found)).decode()


def _parsed(text: str) -> Found:
    """The samples of a document by name, run and split; the parser refuses one whose names are not together."""
    found: Found = {}
    for family in parse(text):  # type: ignore[no-untyped-call]
        for sample in family.samples:
            key = (sample.name, sample.labels["run_id"], sample.labels.get("split", ""))
            found.setdefault(key, []).append((int(float(sample.timestamp) * 1000), repr(sample.value)))
    return found


def _joined(*texts: bytes) -> str:
    with Joined() as joined:
        for text in texts:
            list(joined.add(text.removesuffix(b"\n").split(b"\n")))
        written = io.BytesIO()
        joined.write(written)
    return written.getvalue().decode()


def test_values_and_times_come_back_as_they_were() -> None:
    found = _parsed(_text(_loss("a", "train", VALUES)))
    assert found == {
        ("curvewatch_history_loss", "a", "train"): [
            (FIRST + number, repr(value)) for number, value in enumerate(VALUES)
        ]
    }


def test_more_samples_than_are_handed_on_at_once_are_all_there() -> None:
    values = [number / 7 for number in range(2501)]
    chunks = list(document([_loss("a", "train", values)]))
    assert len(chunks) == 1 + 3 + 1
    found = _parsed(b"".join(chunks).decode())
    assert [value for _, value in found["curvewatch_history_loss", "a", "train"]] == [*map(repr, values)]


def test_a_name_has_one_head_with_the_help_and_type_of_the_table() -> None:
    text = _text(_loss("a", "train", [1.0]), _loss("a", "validation", [2.0]), _epoch("a"))
    heads = [line for line in text.splitlines() if line.startswith("#")]
    assert heads == [
        f"# HELP curvewatch_history_loss {series.HISTORY_LOSS.help}",
        "# TYPE curvewatch_history_loss gauge",
        f"# HELP curvewatch_history_epoch {series.HISTORY_EPOCH.help}",
        "# TYPE curvewatch_history_epoch gauge",
        "# EOF",
    ]
    assert text.endswith("\n# EOF\n")


@pytest.mark.parametrize("name", ['say "hi"', "back\\slash", "two\nlines", "\u2028\x0b\x85 é", "a}b,c=d"])
def test_any_label_comes_back(name: str) -> None:
    one = TimeSeries(
        series.HISTORY_EPOCH, {"run_id": "a", "run": name}, array("q", [FIRST]), array("d", [1.0])
    )
    for text in (_text(one), _joined(_text(one).encode())):
        (family,) = parse(text)  # type: ignore[no-untyped-call]
        assert family.samples[0].labels["run"] == name


@given(milliseconds=st.integers(0, 2**42))
def test_prometheus_reads_the_millisecond(milliseconds: int) -> None:
    """It multiplies the seconds by 1000 as a float64 and cuts the rest off."""
    text = seconds_text(milliseconds)
    assert int(float(text) * 1000) == milliseconds
    assert abs(float(text) - milliseconds / 1000) < 1e-6


def test_the_nearest_number_of_seconds_would_not_do() -> None:
    """Some milliseconds of 2038 would become the one before, and with it another epoch's."""
    year_2038 = 2**31 * 1000
    hurt = [time for time in range(year_2038, year_2038 + 1000) if int(time / 1000 * 1000) != time]
    assert hurt
    assert all(int(float(seconds_text(time)) * 1000) == time for time in hurt)


def test_documents_become_one_in_which_names_are_together() -> None:
    first, second = (
        _text(_loss(run_id, "train", [1.0, math.nan]), _loss(run_id, "validation", [2.0]), _epoch(run_id))
        for run_id in ("a", "b")
    )
    text = _joined(first.encode(), _text().encode(), second.encode())
    assert text.count("# EOF") == 1
    assert text.count("# TYPE") == 2
    assert _parsed(text) == {**_parsed(first), **_parsed(second)}


def test_what_does_not_fit_into_memory_is_joined_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curvewatch_service.openmetrics._IN_MEMORY", 100)
    texts = [_text(_loss(run_id, "train", range(2000)), _epoch(run_id)) for run_id in ("a", "b")]
    assert _parsed(_joined(*(text.encode() for text in texts))) == {**_parsed(texts[0]), **_parsed(texts[1])}


def test_one_document_stays_as_it_is() -> None:
    text = _text(_loss("a", "train", VALUES), _epoch("a"))
    assert _joined(text.encode()) == text


def test_how_far_it_is_is_told() -> None:
    lines = _text(_loss("a", "train", range(3500))).encode().removesuffix(b"\n").split(b"\n")
    with Joined() as joined:
        assert list(joined.add(lines)) == [1000, 2000, 3000]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"", "ends in the middle"),
        (b"# HELP a b\n# TYPE a gauge\na{} 1 2", "ends in the middle"),
        (b"<html>\n# EOF", "no line of a history"),
        (b"# HELP a b\n# TYPE a gauge\n# UNIT a s\n# EOF", "no line of a history"),
        (b"# HELP a b\na{} 1 2\n# EOF", "no type of"),
        (b"# HELP a b\n# TYPE b gauge\n# EOF", "no type of"),
    ],
)
def test_what_is_no_whole_document_is_refused(text: bytes, why: str) -> None:
    with Joined() as joined, pytest.raises(ValueError, match=why):
        list(joined.add(text.split(b"\n") if text else []))
