"""A job is tried before it is submitted: what it is, and what would go wrong."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from check_support import report_of
from curvewatch_workers.check import main
from curvewatch_workers.check_report import lines


def test_the_facts_of_a_good_job(tmp_path: Path) -> None:
    report = report_of(tmp_path, "return task()")

    assert report.good
    assert report.findings == ()
    assert (report.train_samples, report.validation_samples, report.steps_per_epoch) == (50, 23, 4)
    (share,) = report.shares
    # 16 over 3 workers, and 2 over 3 at the end
    assert (share.workers, share.train_samples, share.validation_samples) == (3, (0, 6), (7, 8))
    assert (report.parameters, report.trainable_parameters, report.model_bytes) == (15, 15, 60)
    # Adam keeps two numbers for each parameter, and a count for each tensor.
    assert (report.gradient_bytes, report.optimizer_bytes) == (60, 2 * 60 + 2 * 4)
    assert report.train_loss is not None
    assert math.isfinite(report.train_loss)
    assert report.validation_loss is not None


@pytest.mark.parametrize(
    ("body", "training", "severity", "message"),
    [
        ("raise OSError('no disk')", "", "error", r"build\(\) raised OSError: no disk"),
        (
            "return task(train=data(50, 1, classes=5))",
            "",
            "error",
            r"labels that are no class .*\(3, 4\): it gives 3",
        ),
        (
            "return task(validation=data(23, 2, classes=4))",
            "",
            "error",
            r"TrainingTask.validation has labels",
        ),
        (
            "whole = data(50, 1); return task(train=whole, validation=TensorDataset(*whole[:20]))",
            "",
            "warning",
            "20 of 20 validation samples that were read are train samples too",
        ),
        (
            "return task(loss=lambda outputs, targets: (outputs.detach() - targets.unsqueeze(1)).square())",
            "",
            "error",
            "the loss has no gradient",
        ),
        (
            "return task(loss=lambda outputs, targets: 0 * outputs.sum(1))",
            "",
            "error",
            "no parameter has a gradient other than 0",
        ),
        (
            "return task(loss=lambda outputs, targets: outputs.sum(1) / 0)",
            "",
            "error",
            "of 6 train samples is NaN or infinite at the start",
        ),
        (
            "sampler = DistributedSampler(data(50, 1), num_replicas=3, rank=0)\n"
            "    return task(train=DataLoader(data(50, 1), 16, sampler=sampler))",
            "",
            "error",
            "DistributedSampler, which pads",
        ),
        (
            "return task(train=type('Endless', (IterableDataset,), {'__iter__': iter, '__len__': lambda self: 9})())",
            "",
            "error",
            "each worker would read whole",
        ),
        (
            "model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))\n"
            "    return task(model=model, train=data(48, 1))",
            ", micro_batches: 1",
            "warning",
            "1 BatchNorm layers",
        ),
        (
            "model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))\n    return task(model=model)",
            "",
            "error",
            "cannot be trained on 1 sample",
        ),
        (
            "model = nn.Linear(4, 3); model.extra = nn.Linear(2, 2); return task(model=model)",
            "",
            "error",
            r"does not depend on 2 parameters \(extra.weight, ...\)",
        ),
        ("return task(model=nn.Linear(5, 3))", "", "error", "raised RuntimeError: mat1 and mat2"),
        ("return task(validation=data(2, 2))", "", "warning", "2 validation samples leave some of 3 workers"),
        (
            "return task(train=TensorDataset(*data(50, 1).tensors, -torch.ones(50)))",
            "",
            "error",
            "weights of the train split are negative",
        ),
        ("return task()", ", sync_batchnorm: true", "error", "it needs GPUs"),
    ],
)
def test_what_would_go_wrong_is_told(
    tmp_path: Path, body: str, training: str, severity: str, message: str
) -> None:
    report = report_of(tmp_path, body, training)

    matching = [one.message for one in report.findings if one.severity == severity]
    assert len(matching) == 1, report.findings
    assert re.search(message, matching[0]), matching[0]
    assert report.good is (severity == "warning")


def test_an_unused_parameter_is_fine_where_it_is_allowed_or_alone(tmp_path: Path) -> None:
    body = "model = nn.Linear(4, 3); model.extra = nn.Linear(2, 2); return task(model=model)"

    assert report_of(tmp_path, body, ", find_unused_parameters: true").good
    assert report_of(tmp_path, body, workers=1).good


def test_what_the_users_code_raises_keeps_its_traceback_without_our_frames(tmp_path: Path) -> None:
    (finding,) = report_of(tmp_path, "raise OSError('no disk')").findings

    assert finding.traceback is not None
    assert "raise OSError('no disk')" in finding.traceback
    assert "curvewatch_workers" not in finding.traceback


def test_the_text_says_all_and_the_exit_code_what_becomes_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = (
        report_of(tmp_path, "return task()"),
        report_of(tmp_path, "return task(model=nn.Linear(5, 3))"),
    )

    text = "\n".join(lines(good))
    assert "train        50 samples an epoch in 4 steps on every worker; 8 steps in 2 epochs" in text
    assert "3 workers    on each 0 to 6 train samples at a time, 7 to 8 validation samples an epoch" in text
    assert "memory       248 bytes on each worker" in text
    assert text.endswith("nothing would go wrong that this check can see")
    assert "this job would fail" in "\n".join(lines(bad))

    assert main([str(tmp_path / "absent")]) == 2
    assert "absent" in capsys.readouterr().err


@pytest.mark.parametrize("example", ["digits", "digits_overfit", "diabetes", "char_lm"])
def test_the_examples_would_not_fail(
    example: str, project_root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(project_root / "examples" / example))
    state = torch.get_rng_state()

    try:
        assert main([str(project_root / "examples" / example), "--json"]) == 0
    finally:
        torch.set_rng_state(state)
        sys.modules.pop(example, None)  # else later tests would take it for an installed module
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert told["findings"] == []
    assert told["train_loss"] > 0


def test_a_loop_of_ones_own_is_not_tried(project_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(project_root / "examples" / "own_loop")]) == 2
    assert "under torchrun" in capsys.readouterr().err
