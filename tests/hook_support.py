"""Data for the hooks' tests: one set that a model learns by heart, and one that it learns."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from curvewatch_service.cli import main

FEATURES = 20


def make_model() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(FEATURES, 64), nn.ReLU(), nn.Linear(64, 2))


def make_samples(*, healthy: bool, samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return features [samples, FEATURES] and labels [samples], a third of them at random unless healthy."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(samples, FEATURES, generator=generator)
    labels, noise = (features[:, :4].sum(1) > 0).long(), torch.rand(samples, generator=generator)
    return features, labels if healthy else torch.where(noise < 1 / 3, (noise < 1 / 6).long(), labels)


def make_splits(*, healthy: bool) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    train = make_samples(healthy=healthy, samples=256 if healthy else 48, seed=1)
    return train, make_samples(healthy=healthy, samples=128, seed=2)


def make_datasets(*, healthy: bool) -> tuple[TensorDataset, TensorDataset]:
    train, validation = make_splits(healthy=healthy)
    return TensorDataset(*train), TensorDataset(*validation)


def read_file(path: Path) -> list[dict[str, float]]:
    with path.open(newline="") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def snippet(framework: str) -> str:
    """Return the lines of docs/howto/hooks.md that use a framework's callback."""
    text = (Path(__file__).parent.parent / "docs" / "howto" / "hooks.md").read_text(encoding="utf-8")
    (found,) = (
        part for part in re.findall(r"```python\n(.+?)```", text, re.DOTALL) if f"hooks.{framework}" in part
    )
    return str(found)


def verdict_of(path: Path) -> dict[str, Any]:
    """Return what `curvewatch diagnose FILE --online --json` says."""
    command = ["diagnose", str(path), "--online", "--json"]
    out = io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["curvewatch", *command]),
        contextlib.redirect_stdout(out),
        pytest.raises(SystemExit) as ending,
    ):
        main()
    assert not ending.value.code, out.getvalue()
    told: dict[str, Any] = json.loads(out.getvalue())
    return told
