from __future__ import annotations

import pytest
import torch
from sklearn.metrics import accuracy_score, mean_absolute_error, mean_squared_error
from torch import Tensor, nn

from curvewatch_workers.errors import TaskError
from curvewatch_workers.metrics import (
    Accuracy,
    MeanAbsoluteError,
    MeanSquaredError,
    Metric,
    SampleLoss,
    Totals,
)

CPU = torch.device("cpu")


def mean_of(metric: Metric, outputs: Tensor, targets: Tensor, batch_size: int) -> float:
    totals = Totals((metric,), CPU)
    for start in range(0, len(targets), batch_size):
        rows = slice(start, start + batch_size)
        totals.update(torch.zeros(len(targets[rows])), torch.zeros(()), outputs[rows], targets[rows])
    total, count = totals.values[Totals.FIXED :].tolist()
    return float(total / count)


@pytest.mark.parametrize("batch_size", [1, 64, 361])
def test_accuracy_is_scikit_learns_on_the_whole_data(batch_size: int) -> None:
    outputs, targets = torch.randn(361, 10), torch.randint(0, 10, (361,))

    assert mean_of(Accuracy(), outputs, targets, batch_size) == accuracy_score(targets, outputs.argmax(1))


@pytest.mark.parametrize(
    ("metric", "truth"),
    [(MeanAbsoluteError(), mean_absolute_error), (MeanSquaredError(), mean_squared_error)],
)
@pytest.mark.parametrize("columns", [1, 3])
def test_regression_metrics_are_scikit_learns(metric: Metric, truth: object, columns: int) -> None:
    outputs, targets = torch.randn(111, columns), torch.randn(111, columns)

    assert callable(truth)
    assert mean_of(metric, outputs, targets, 32) == pytest.approx(
        truth(targets.double(), outputs.double()), rel=1e-12
    )


def test_regression_metric_refuses_shapes_that_torch_would_stretch() -> None:
    with pytest.raises(TaskError, match=r"\(5, 1\).*\(5,\)"):
        MeanAbsoluteError()(torch.zeros(5, 1), torch.zeros(5))


@pytest.mark.parametrize(
    ("loss", "outputs", "targets"),
    [
        (nn.CrossEntropyLoss(), torch.randn(37, 10), torch.randint(0, 10, (37,))),
        (nn.CrossEntropyLoss(label_smoothing=0.1), torch.randn(37, 10), torch.randint(0, 10, (37,))),
        (nn.CrossEntropyLoss(), torch.randn(37, 10, 4), torch.randint(0, 10, (37, 4))),
        (nn.MSELoss(), torch.randn(37, 3), torch.randn(37, 3)),
        (nn.L1Loss(), torch.randn(37), torch.randn(37)),
        (nn.BCEWithLogitsLoss(), torch.randn(37, 1), torch.rand(37, 1)),
        (nn.functional.smooth_l1_loss, torch.randn(1, 1), torch.randn(1, 1)),
    ],
)
def test_sample_losses_average_to_the_users_loss(loss: nn.Module, outputs: Tensor, targets: Tensor) -> None:
    if not isinstance(loss, nn.Module):
        with pytest.raises(TaskError, match="one value for each sample"):
            SampleLoss(loss)(outputs, targets)
        return
    truth = loss(outputs.double(), targets.double() if targets.is_floating_point() else targets)

    losses = SampleLoss(loss)(outputs, targets)

    assert losses.shape == (37,)
    assert float(losses.double().mean()) == pytest.approx(float(truth), rel=1e-6)
    assert loss.reduction == "mean"  # the user's own object is left alone


def test_half_precision_outputs_are_widened_and_double_ones_kept() -> None:
    def identity(outputs: Tensor, _targets: Tensor) -> Tensor:
        return outputs

    assert SampleLoss(identity)(torch.zeros(2, dtype=torch.bfloat16), torch.zeros(2)).dtype is torch.float32
    assert SampleLoss(identity)(torch.zeros(2, dtype=torch.float64), torch.zeros(2)).dtype is torch.float64


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (nn.CrossEntropyLoss(weight=torch.ones(10)), "class weights"),
        (nn.BCEWithLogitsLoss(pos_weight=torch.ones(1)), "class weights"),
        (nn.MSELoss(reduction="sum"), "reduction='sum'"),
        ("mse", "must be callable, got str"),
    ],
)
def test_losses_that_are_no_mean_over_samples_are_refused(loss: object, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        SampleLoss(loss)


def test_stretched_shapes_are_refused() -> None:
    with pytest.raises(TaskError, match="stretch"):
        SampleLoss(nn.MSELoss())(torch.zeros(5, 1), torch.zeros(5))


def test_update_reads_no_value() -> None:
    """On the meta device there are no values: anything that reads one raises."""
    meta = torch.device("meta")
    totals = Totals((Accuracy(), MeanAbsoluteError()), meta)
    outputs = torch.empty(8, 10, device=meta)
    loss = SampleLoss(nn.CrossEntropyLoss())
    targets = torch.empty(8, dtype=torch.int64, device=meta)

    totals = Totals((Accuracy(),), meta)
    totals.update(loss(outputs, targets), loss.ignored(targets), outputs, targets)

    assert totals.values.shape == (Totals.width(1),)


def test_sums_do_not_stall_where_half_precision_would() -> None:
    totals = Totals((), CPU)
    for _ in range(1000):
        totals.update(torch.ones(1, dtype=torch.bfloat16), torch.zeros(()), torch.zeros(1), torch.zeros(1))

    assert totals.values[Totals.LOSS_SUM] == 1000


def test_a_metric_that_is_a_mean_already_is_refused() -> None:
    def batch_mean(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.argmax(1) == targets).float().mean()

    with pytest.raises(TaskError, match="one value for each sample"):
        mean_of(batch_mean, torch.randn(8, 3), torch.randint(0, 3, (8,)), 4)


def test_a_metric_may_give_a_row_for_each_sample() -> None:
    outputs, targets = torch.randn(37, 3, 5), torch.randint(0, 3, (37, 5))

    right = float((outputs.argmax(1) == targets).double().mean())
    assert mean_of(Accuracy(), outputs, targets, 16) == pytest.approx(right, rel=1e-12)


def test_accuracy_refuses_binary_targets_that_torch_would_stretch() -> None:
    with pytest.raises(TaskError, match=r"Accuracy.*\(8,\).*\(8, 1\)"):
        Accuracy()(torch.zeros(8, 1), torch.zeros(8, 1))


@pytest.mark.parametrize(
    "loss",
    [nn.PoissonNLLLoss(), lambda outputs, targets: (outputs - targets).square()],
    ids=["module", "function"],
)
def test_any_loss_over_stretched_shapes_is_refused(loss: object) -> None:
    with pytest.raises(TaskError, match="stretched"):
        SampleLoss(loss)(torch.zeros(8, 1), torch.zeros(8))


def test_a_loss_whose_square_overflows_is_not_finite() -> None:
    totals = Totals((), CPU)
    totals.update(
        torch.tensor([1.0, 1e200], dtype=torch.float64), torch.zeros(()), torch.zeros(2), torch.zeros(2)
    )

    assert totals.values[: Totals.FIXED].tolist() == [1.0, 1.0, 1.0, 1.0, 0.0]
