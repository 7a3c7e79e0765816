"""A defect that is planted in a rule of the diagnosis is found by the tests of the rules."""

from __future__ import annotations

import importlib
import inspect
import itertools
import sys
from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType
from typing import Any

import pytest

from curvewatch_workers.diagnosis import reading, resting, rising, stopping, trend
from curvewatch_workers.diagnosis.diagnose import RULES, Rule

DIAGNOSE = sys.modules["curvewatch_workers.diagnosis.diagnose"]
"""The package has a function of this name."""
MODULES = [module for name, module in sys.modules.items() if name.startswith("curvewatch_workers.diagnosis")]
# Beside this file, where pytest finds them and mypy does not.
TESTS = tuple(importlib.import_module(f"test_diagnosis_{name}") for name in ("borders", "stopping", "rules"))


def calls(module: ModuleType) -> Iterator[tuple[str, Callable[[], None]]]:
    """Return each test of a module with each of its parameters, ready to be called."""
    for name, test in inspect.getmembers(module, inspect.isfunction):
        if not name.startswith("test_"):
            continue
        marks = [mark for mark in getattr(test, "pytestmark", []) if mark.name == "parametrize"]
        for values in itertools.product(*(mark.args[1] for mark in marks)):
            given: dict[str, Any] = {}
            for mark, value in zip(marks, values, strict=True):
                names = (
                    [one.strip() for one in mark.args[0].split(",")]
                    if isinstance(mark.args[0], str)
                    else mark.args[0]
                )
                given |= zip(names, value if len(names) > 1 else (value,), strict=True)
            yield f"{name}{given}", partial(test, **given)


def first_failure() -> str | None:
    """Return the first test that fails, None when all pass."""
    for module in TESTS:
        for name, call in calls(module):
            try:
                call()
            except Exception:  # noqa: BLE001 - a rule that falls over is found too
                return name
    return None


def test_without_a_defect_all_pass() -> None:
    assert first_failure() is None
    assert sum(1 for module in TESTS for _ in calls(module)) > 60


@pytest.mark.parametrize("rule", RULES[:-1], ids=lambda rule: rule.__name__)
def test_a_rule_that_finds_nothing_is_found(rule: Rule, monkeypatch: pytest.MonkeyPatch) -> None:
    # The last one, the good fit, is what is left: without it there is no answer at all.
    blind = tuple(one for one in RULES if one is not rule)
    monkeypatch.setattr(DIAGNOSE, "RULES", blind)

    assert first_failure() is not None


SETTINGS = [
    *((rising, name) for name in ("RISE", "CLEAR_RISE", "FALL", "BY_HEART", "BLOW_UP", "EARLY_BLOW_UP")),
    *((rising, name) for name in ("EXPLODED", "LEFT_BEHIND", "ACCURACY_LOSS", "JUMP", "JUMPY")),
    *(
        (resting, name)
        for name in ("HIGH", "MIDDLE", "SLOWING", "ACCURATE", "INACCURATE", "LEAST_HALT", "AHEAD")
    ),
    *((trend, name) for name in ("HEIGHT_PER_LOOK", "LINE_PER_LOOK")),
    *((stopping, name) for name in ("WORSE_AGE", "LEAST_WAIT", "HOPE")),
]


@pytest.mark.parametrize("factor", [0.5, 2.0])
@pytest.mark.parametrize(("module", "name"), SETTINGS, ids=lambda one: one if isinstance(one, str) else "")
def test_a_wrong_setting_is_found(
    module: ModuleType, name: str, factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = getattr(module, name)
    for holder in MODULES:
        if name in vars(holder):
            monkeypatch.setattr(holder, name, type(right)(right * factor))

    assert first_failure() is not None


DEFECTS: list[tuple[Any, str, Any]] = [
    (rising, "_went_on_learning", lambda *_: True),
    (rising, "_went_on_learning", lambda *_: False),
    (rising, "_accuracy_kept", lambda *_: None),
    (rising, "_rises_clearly", lambda *_: False),
    (rising, "_is_better_calibrated", lambda *_: False),
    (rising, "_is_better_calibrated", lambda *_: True),
    (resting, "_is_accurate", lambda *_: False),
    (resting, "_may_come_down", lambda *_: False),
    (resting, "_may_come_down", lambda *_: True),
    (resting, "_may_fall", lambda *_: False),
    (resting, "_falls_through_noise", lambda *_: False),
    (trend.Trend, "is_recovering", lambda *_: False),
    (trend.Trend, "rise_beats_noise", True),
    (trend.Trend, "held_rise", property(lambda self: self.level - self.low)),
    (trend.Trend, "noise", 0.0),
    (trend.Trend, "possible_fall", lambda *_: 0.0),
    (trend, "window_for", lambda _epochs: 1),
    (reading.Reading, "error_of_best", 0.0),
    (reading.Reading, "has_zero", True),
    (reading.Reading, "remaining", property(lambda self: self.train.level / self.train.start)),
]


@pytest.mark.parametrize(("holder", "name", "defect"), DEFECTS, ids=[name for _, name, _ in DEFECTS])
def test_a_defect_of_what_rules_share_is_found(
    holder: Any, name: str, defect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holder, name, defect)

    assert first_failure() is not None
