"""The promise, on a real Ray cluster through the HTTP API: one curve, whatever the number of workers."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

from curvewatch_service.schemas import EpochView, RunView, SplitView
from curvewatch_workers.task import TrainingTask
from ray_support import ServiceProcess

Curve = tuple[RunView, list[EpochView]]


@pytest.fixture(scope="module")
def curves(service: ServiceProcess, project_root: Path) -> dict[int, Curve]:
    """Runs of the digits by number of workers; the queue lets in what fits."""
    digits = project_root / "examples" / "digits"
    run_ids = {workers: service.submit(digits, scaling={"workers": workers}) for workers in (1, 3)}
    runs = {workers: service.wait_for_end(run_id) for workers, run_id in run_ids.items()}
    with service.client() as client:
        return {workers: (run, client.epochs(run.run_id)) for workers, run in runs.items()}


def test_every_loss_agrees_and_every_count_is_equal(curves: dict[int, Curve]) -> None:
    _, alone = curves[1]
    run, together = curves[3]

    assert run.state == "SUCCEEDED"
    assert run.world_size == 3
    assert [epoch.epoch for epoch in alone] == list(range(1, 16))
    assert [epoch.epoch for epoch in together] == list(range(1, 16))
    for one, other in zip(alone, together, strict=True):
        require_same(one.train, other.train)
        require_same(one.validation, other.validation)


def require_same(one: SplitView, other: SplitView) -> None:
    assert other.loss == pytest.approx(one.loss, rel=1e-5)
    # Right answers over samples: equal ratios of equal counts are equal whole numbers.
    assert other.metrics == one.metrics
    assert other.receipt.samples_seen == one.receipt.samples_seen == one.receipt.samples_expected
    assert other.receipt.nonfinite_samples == one.receipt.nonfinite_samples == 0
    assert other.receipt.ranks == 3
    assert one.receipt.exact
    assert other.receipt.exact


@pytest.mark.parametrize("workers", [1, 3])
def test_the_last_epoch_is_what_one_process_computes_from_the_checkpoint(
    curves: dict[int, Curve], project_root: Path, workers: int
) -> None:
    run, epochs = curves[workers]
    task = build_digits(project_root)
    assert run.checkpoint is not None
    task.model.load_state_dict(torch.load(Path(run.checkpoint) / "model.pt", weights_only=True))
    task.model.double().eval()
    images, labels = task.validation.tensors  # type: ignore[union-attr]

    with torch.no_grad():
        outputs = task.model(images.double())
    truth = float(nn.functional.cross_entropy(outputs, labels))
    right = int((outputs.argmax(dim=1) == labels).sum())

    reported = epochs[-1].validation
    assert reported.loss == pytest.approx(truth, rel=1e-6)
    assert reported.metrics["accuracy"] == right / 361
    assert reported.receipt.samples_seen == len(labels) == 361


def build_digits(project_root: Path) -> TrainingTask:
    spec = importlib.util.spec_from_file_location(
        "digits", project_root / "examples" / "digits" / "digits.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    task = module.build()
    assert isinstance(task, TrainingTask)
    return task


def test_the_digits_are_a_good_fit(curves: dict[int, Curve]) -> None:
    run, _ = curves[3]

    assert run.diagnosis is not None
    assert run.diagnosis.verdict == "good_fit"
