from __future__ import annotations

import math
import sys

import pytest

from curvewatch_workers.contract import BestSpec
from curvewatch_workers.errors import TaskError
from curvewatch_workers.keeping import Progress, mark, name_of, newest_first, score_in, surplus
from curvewatch_workers.ranking import Best, Mode, badness, best_of, is_worst, ranked, require_ranking
from record_support import make_record


def test_the_best_is_of_any_number_in_either_direction_and_the_earliest_of_equals() -> None:
    rows = [(0.5, 0.1), (0.2, 0.3), (0.2, 0.9), (0.4, 0.9)]
    records = [make_record(epoch=i, validation_loss=loss, accuracy=a) for i, (loss, a) in enumerate(rows, 1)]

    assert best_of(records, BestSpec()) == Best(0.2, 2)
    assert best_of(records, BestSpec(metric="accuracy", mode="max")) == Best(0.9, 3)
    assert best_of(records, BestSpec(metric="accuracy", mode="min")) == Best(0.1, 1)
    assert best_of([], BestSpec()) is None


def test_a_number_that_the_task_does_not_measure_is_refused() -> None:
    with pytest.raises(TaskError, match=r"checkpoints.best.metric is 'acuracy'.*: loss, accuracy"):
        require_ranking(BestSpec(metric="acuracy"), ("accuracy",))


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_worst_in_either_mode(mode: Mode, value: float) -> None:
    assert all(badness(value, mode) > badness(finite, mode) for finite in (-1e300, 0.0, 1e300))
    assert math.isfinite(ranked(value, mode))
    assert is_worst(ranked(value, mode))
    assert not is_worst(ranked(1e300, mode))
    assert type(ranked(value, mode)) is float
    assert abs(ranked(value, mode)) == sys.float_info.max


def test_the_best_and_the_latest_stay() -> None:
    scores = {"epoch-000001": 0.5, "epoch-000002": 0.2, "epoch-000003": math.nan, "epoch-000004": 0.9}

    assert surplus(scores, latest=Progress(4), keep=1, mode="min") == ["epoch-000001", "epoch-000003"]
    assert surplus(scores, latest=Progress(4), keep=2, mode="max") == ["epoch-000002", "epoch-000003"]
    assert surplus(scores, latest=Progress(4), keep=9, mode="max") == []


def test_of_equals_the_later_one_stays() -> None:
    scores = {"epoch-000001": 0.5, "epoch-000002": 0.5, "epoch-000003": 0.6}

    assert surplus(scores, latest=Progress(3), keep=1, mode="min") == ["epoch-000001"]


def test_checkpoints_of_a_future_that_could_not_be_read_go() -> None:
    scores = {"epoch-000001": 0.5, "epoch-000002": 0.4, "epoch-000007": 0.1}

    assert surplus(scores, latest=Progress(2), keep=3, mode="min") == ["epoch-000007"]


def test_names_sort_by_epoch_and_others_are_none() -> None:
    names = ["epoch-000009", "epoch-1000000", "epoch-999999", "epoch-x", ".draft-epoch-000003-ab", "spool"]

    assert newest_first(names) == ("epoch-1000000", "epoch-999999", "epoch-000009")


def test_a_checkpoint_within_an_epoch_is_later_than_the_one_before_it_and_kept_only_while_it_is_the_latest() -> (
    None
):
    within = name_of(Progress(2, 40))

    assert newest_first(["epoch-000003", within, "epoch-000002"]) == ("epoch-000003", within, "epoch-000002")
    scores = {"epoch-000001": 0.5, "epoch-000002": 0.4, within: math.nan}
    assert surplus(scores, latest=Progress(2, 40), keep=5, mode="min") == []
    assert surplus({**scores, "epoch-000003": 0.6}, latest=Progress(3), keep=5, mode="min") == [within]
    assert surplus(scores, latest=Progress(2, 10), keep=5, mode="min") == [within]


def test_a_marker_keeps_the_score() -> None:
    assert score_in(mark(Progress(3), 0.25)) == 0.25
    for text in (mark(Progress(3), math.nan), "", "[]", "{}", '{"score": "x"}'):
        assert math.isnan(score_in(text))
