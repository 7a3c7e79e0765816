"""The loss that is summed, over any split into batches, is the mean that torch gives of the whole data at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from curvewatch_workers.errors import TaskError
from curvewatch_workers.losses import BatchLoss, Loss
from curvewatch_workers.meter import EpochMeter
from curvewatch_workers.testing import train_alone
from engine_support import datasets, make_spec, make_task

WEIGHTS = torch.tensor([0.1, 3.0, 1.0, 0.5, 2.0])


def data(shape: tuple[int, ...] = (37,)) -> tuple[Tensor, Tensor]:
    """Logits of 5 classes and classes, in float64."""
    generator = torch.Generator().manual_seed(4)
    outputs = torch.randn(shape[0], 5, *shape[1:], generator=generator, dtype=torch.float64)
    targets = torch.randint(0, 5, shape, generator=generator)
    return outputs, targets


def mean(loss: Loss, outputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> tuple[float, bool]:
    """Return sum over sum of weights over uneven batches, and whether the data was needed for the weights."""
    total, weight, weighted = 0.0, 0.0, False
    for rows in torch.split(torch.arange(len(targets)), 8):
        made = loss(outputs[rows], targets[rows], None if weights is None else weights[rows])
        total += float(made.sums.sum())
        weighted = made.weights is not None
        weight += float(made.weights.sum()) if made.weights is not None else len(rows)
    return total / weight, weighted


@pytest.mark.parametrize("shape", [(37,), (37, 6)])
@pytest.mark.parametrize(
    ("module", "weighted"),
    [
        (nn.CrossEntropyLoss(), False),
        (nn.CrossEntropyLoss(label_smoothing=0.1), False),
        (nn.CrossEntropyLoss(weight=WEIGHTS.double()), True),
        (nn.CrossEntropyLoss(weight=WEIGHTS.double(), label_smoothing=0.1), True),
        (nn.CrossEntropyLoss(ignore_index=2), True),
        (nn.CrossEntropyLoss(ignore_index=2, weight=WEIGHTS.double()), True),
    ],
)
def test_classes_weigh_as_in_torch(
    module: nn.CrossEntropyLoss, weighted: bool, shape: tuple[int, ...]
) -> None:
    outputs, targets = data(shape)

    found, by_data = mean(Loss(module), outputs, targets)

    assert found == pytest.approx(float(module(outputs, targets)), rel=1e-12)
    # Of targets of several classes a sample, any may be padding.
    assert by_data is (weighted or len(shape) > 1)
    assert module.reduction == "mean"  # the user's own object is left alone


def test_padding_of_tokens_weighs_nothing() -> None:
    outputs, targets = data((37, 6))
    targets[:, 3:] = torch.where(torch.rand(37, 3) < 0.7, -100, targets[:, 3:])
    targets[5] = -100  # a sample of padding alone

    found, _ = mean(Loss(nn.CrossEntropyLoss()), outputs, targets)

    assert found == pytest.approx(float(nn.CrossEntropyLoss()(outputs, targets)), rel=1e-12)


def test_an_all_ignored_share_is_a_zero_with_a_zero_gradient() -> None:
    outputs = torch.randn(3, 5, requires_grad=True)

    made = Loss(nn.CrossEntropyLoss(ignore_index=1))(outputs, torch.ones(3, dtype=torch.int64))
    torch.autograd.backward(made.sums.sum())

    assert made.weights is not None
    assert made.sums.tolist() == made.weights.tolist() == [0.0, 0.0, 0.0]
    assert outputs.grad is not None
    assert not outputs.grad.any()


@pytest.mark.parametrize(
    ("module", "outputs", "targets"),
    [
        (nn.MSELoss(), torch.randn(37, 3), torch.randn(37, 3)),
        (nn.L1Loss(), torch.randn(37), torch.randn(37)),
        (nn.HuberLoss(), torch.randn(37, 2, 2), torch.randn(37, 2, 2)),
        (nn.BCEWithLogitsLoss(), torch.randn(37, 1), torch.rand(37, 1)),
        (
            nn.BCEWithLogitsLoss(pos_weight=torch.tensor([3.0, 0.5])),
            torch.randn(37, 2),
            torch.rand(37, 2).round(),
        ),
        (nn.MultiMarginLoss(weight=WEIGHTS), torch.randn(37, 5), torch.randint(0, 5, (37,))),
        (nn.CrossEntropyLoss(), torch.randn(37, 5), torch.rand(37, 5).softmax(1)),
        (nn.CrossEntropyLoss(weight=WEIGHTS), torch.randn(37, 5), torch.rand(37, 5).softmax(1)),
        (
            nn.KLDivLoss(reduction="batchmean"),
            torch.randn(37, 5).log_softmax(1),
            torch.rand(37, 5).softmax(1),
        ),
    ],
    ids=lambda one: type(one).__name__ if isinstance(one, nn.Module) else "",
)
def test_losses_over_samples_are_torchs_mean_and_need_no_look_at_the_data(
    module: nn.Module, outputs: Tensor, targets: Tensor
) -> None:
    outputs = outputs.double()
    if targets.is_floating_point():
        targets = targets.double()
    module = module.double()

    found, by_data = mean(Loss(module), outputs, targets)

    assert found == pytest.approx(float(module(outputs, targets)), rel=1e-12)
    assert not by_data


def test_a_sum_is_divided_by_the_samples() -> None:
    outputs, targets = torch.randn(37, 3).double(), torch.randn(37, 3).double()

    found, _ = mean(Loss(nn.MSELoss(reduction="sum")), outputs, targets)

    assert found == pytest.approx(float(nn.MSELoss(reduction="sum")(outputs, targets)) / 37, rel=1e-12)


def test_none_is_the_mean_over_all_values() -> None:
    outputs, targets = torch.randn(37, 3).double(), torch.randn(37, 3).double()

    found, _ = mean(Loss(nn.MSELoss(reduction="none")), outputs, targets)

    assert found == pytest.approx(float(functional.mse_loss(outputs, targets)), rel=1e-12)


def test_samples_have_weights_of_their_own() -> None:
    outputs, targets = data()
    weights = torch.rand(37, dtype=torch.float64)
    each = functional.cross_entropy(outputs, targets, reduction="none")
    by_class = functional.cross_entropy(outputs, targets, weight=WEIGHTS.double(), reduction="none")

    plain, by_data = mean(Loss(nn.CrossEntropyLoss()), outputs, targets, weights)
    both, _ = mean(Loss(nn.CrossEntropyLoss(weight=WEIGHTS.double())), outputs, targets, weights)

    assert by_data
    assert plain == pytest.approx(float((each * weights).sum() / weights.sum()), rel=1e-12)
    truth = (by_class * weights).sum() / (WEIGHTS.double()[targets] * weights).sum()
    assert both == pytest.approx(float(truth), rel=1e-12)


def token_mean(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    return functional.cross_entropy(outputs, targets, reduction="sum"), torch.tensor(float(targets.numel()))


def token_rows(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    return functional.cross_entropy(outputs, targets, reduction="none"), torch.ones(targets.shape)


@pytest.mark.parametrize("function", [token_mean, token_rows])
def test_a_users_loss_may_give_sum_and_weight(function: Callable[..., tuple[Tensor, Tensor]]) -> None:
    outputs, targets = data((37, 6))

    found, by_data = mean(Loss(function), outputs, targets)

    assert by_data
    assert found == pytest.approx(float(functional.cross_entropy(outputs, targets)), rel=1e-12)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda o, _t: (o.sum(), 3.0), "must return .sum, weight."),
        (lambda o, _t: (o.sum(),), "must return .sum, weight."),
        (lambda o, _t: (o[:4].sum(1), o[:4].sum(1)), "for a batch of 8"),
        (lambda o, _t: o.mean(), "one value for each sample"),
        (lambda o, t: o - t.unsqueeze(0), "stretched"),
        (lambda o, t: (o - t, torch.ones_like(o - t)), "stretched"),
        (nn.MSELoss(), "would stretch"),
        (lambda _o, _t: None, "must give a tensor, .*got NoneType"),
        (lambda o, _t: o.mean().item(), "must give a tensor, .*got float"),
        (lambda o, _t: {"loss": o}, "must give a tensor, .*got dict"),
    ],
)
def test_what_no_loss_may_give_is_refused(loss: object, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        Loss(loss)(torch.zeros(8, 1), torch.zeros(8))


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("mse", "must be callable, got str"),
        (nn.CTCLoss(), "needs lengths"),
        (type("Odd", (), {"reduction": "median", "__call__": None})(), "reduction='median'"),
    ],
)
def test_losses_that_cannot_be_taken_apart_are_refused(loss: object, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        Loss(loss)


def test_weights_of_the_wrong_shape_are_refused() -> None:
    outputs, targets = data()

    with pytest.raises(TaskError, match=r"shape \(37,\).*got \(37, 2\)"):
        Loss(nn.CrossEntropyLoss())(outputs, targets, torch.ones(37, 2))


def test_targets_that_are_ignored_unannounced_are_counted() -> None:
    _, targets = data()
    targets[3] = targets[7] = -100

    overlooked = Loss(nn.CrossEntropyLoss()).overlooked(targets)

    assert overlooked is not None
    assert int(overlooked) == 2
    assert Loss(nn.CrossEntropyLoss(), ignores_targets=True).overlooked(targets) is None
    assert Loss(nn.CrossEntropyLoss(ignore_index=7)).overlooked(targets) is None
    assert Loss(nn.MSELoss()).overlooked(targets) is None


def test_a_users_loss_may_take_a_structure_of_outputs() -> None:
    def likelihood(outputs: dict[str, Tensor], targets: Tensor) -> Tensor:
        return functional.gaussian_nll_loss(outputs["mean"], targets, outputs["variance"], reduction="none")

    loss = Loss(likelihood)
    outputs: Any = {"mean": torch.zeros(4), "variance": torch.ones(4)}

    assert loss(outputs, torch.ones(4)).sums.tolist() == [0.5] * 4
    stretched: Any = {"mean": torch.zeros(4, 1)}
    with pytest.raises(TaskError, match=r"gave 16 values for outputs of shape \(4, 1\) and targets"):
        Loss(lambda outputs, targets: outputs["mean"] - targets)(stretched, torch.ones(4))


@pytest.mark.parametrize("loss", [nn.MSELoss(), nn.CrossEntropyLoss(), nn.NLLLoss()])
def test_a_loss_of_torch_does_not_take_a_structure_of_outputs(loss: nn.Module) -> None:
    outputs: Any = (torch.zeros(4, 2), torch.zeros(4))

    with pytest.raises(
        TaskError, match=r"Loss takes one tensor of outputs, .* a tuple; .* \(outputs, targets\)"
    ):
        Loss(loss)(outputs, torch.zeros(4, dtype=torch.int64))


class Squeezing(nn.MSELoss):
    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return super().forward(outputs.squeeze(1), targets)


class OfFirst(nn.CrossEntropyLoss):
    def forward(self, outputs: Any, targets: Tensor) -> Tensor:
        return super().forward(outputs[0], targets)


def test_a_loss_that_extends_one_of_torch_takes_the_outputs_it_likes() -> None:
    assert Loss(Squeezing())(torch.ones(4, 1), torch.zeros(4)).sums.tolist() == [1.0] * 4
    pair: Any = (torch.zeros(4, 2), torch.zeros(4))
    assert Loss(OfFirst())(pair, torch.zeros(4, dtype=torch.int64)).sums.shape == (4,)
    with pytest.warns(UserWarning, match="target size"), pytest.raises(TaskError, match="stretched"):
        Loss(type("Own", (nn.MSELoss,), {})())(torch.ones(4, 1), torch.zeros(4))


def test_half_precision_outputs_are_widened_and_double_ones_kept() -> None:
    loss = Loss(lambda outputs, _targets: outputs)

    assert loss(torch.zeros(2, dtype=torch.bfloat16), torch.zeros(2)).sums.dtype is torch.float32
    assert loss(torch.zeros(2, dtype=torch.float64), torch.zeros(2)).sums.dtype is torch.float64


def test_no_loss_reads_a_value() -> None:
    """On the meta device there are no values: anything that reads one raises."""
    outputs, targets = (one.to("meta") for one in data((8, 4)))
    for module in (nn.CrossEntropyLoss(), nn.CrossEntropyLoss(weight=WEIGHTS.double())):
        loss = Loss(module)
        loss.to(torch.device("meta"))
        made: BatchLoss = loss(outputs, targets, torch.ones(8, device="meta"))
        assert made.sums.shape == (8,)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_class_weights_are_looked_up_by_labels_of_small_types_too(dtype: torch.dtype) -> None:
    outputs, targets = data()
    module = nn.CrossEntropyLoss(weight=WEIGHTS.double())

    found, _ = mean(Loss(module), outputs, targets.to(dtype))

    assert found == pytest.approx(float(module(outputs, targets)), rel=1e-12)


def test_a_small_unsigned_label_is_not_taken_for_the_ignored_one() -> None:
    """156 is what -100 becomes in uint8."""
    overlooked = Loss(nn.CrossEntropyLoss()).overlooked(torch.arange(200, dtype=torch.uint8))

    assert overlooked is not None
    assert not overlooked


@pytest.mark.parametrize("weights", [-torch.ones(50), torch.ones(50).index_fill(0, torch.tensor([7]), -0.5)])
def test_negative_sample_weights_end_the_run_with_a_sentence(weights: Tensor) -> None:
    task = make_task()
    inputs, targets = datasets(task)[0].tensors
    weighted = make_task(train=TensorDataset(inputs, targets, weights))

    with pytest.raises(TaskError, match=r"weights of the train split.*negative.*0 or more"):
        train_alone(make_spec(), weighted)


@pytest.mark.parametrize(
    "pair",
    [
        lambda losses: (losses.sum(), torch.tensor(-3)),
        lambda losses: (losses, torch.tensor([5.0, -1.0, 5.0])),
    ],
)
def test_negative_weights_of_a_meter_are_told(pair: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
    meter = EpochMeter(train_samples=3, validation_samples=3)
    meter.update("train", torch.tensor(1.0), torch.zeros(3), torch.zeros(3))
    meter.update("validation", pair(torch.ones(3)), torch.zeros(3), torch.zeros(3))

    with pytest.raises(TaskError, match=r"weights of the validation split.*negative"):
        meter.end_epoch(learning_rate=0.1)


def test_whole_weights_stay_whole() -> None:
    weight = torch.tensor(2**24 + 1)

    made = Loss(lambda outputs, _targets: (outputs.sum(), weight))(torch.ones(3), torch.ones(3))

    assert made.weights is not None
    assert int(made.weights) == 2**24 + 1


def test_negative_class_weights_are_refused_at_the_start() -> None:
    with pytest.raises(TaskError, match=r"class weights of CrossEntropyLoss.*negative"):
        Loss(nn.CrossEntropyLoss(weight=torch.tensor([1.0, -1.0])))


def test_an_empty_share_may_have_a_sum_and_a_weight() -> None:
    made = Loss(token_mean)(torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64))

    assert made.weights is not None
    assert float(made.sums) == float(made.weights) == 0.0
