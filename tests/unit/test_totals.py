"""Sums of a pass: the same whether batches are summed one by one or many at a time."""

from __future__ import annotations

import math
import weakref
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from curvewatch_workers.errors import TaskError
from curvewatch_workers.losses import BatchLoss, Loss
from curvewatch_workers.metrics import F1, Accuracy, MeanSquaredError, SumMetric, TopKAccuracy, as_sum_metric
from curvewatch_workers.totals import Totals

METRICS: tuple[SumMetric, ...] = (as_sum_metric(Accuracy()), F1(5))


def new(loss: Loss, metrics: tuple[SumMetric, ...] = METRICS, device: str = "cpu") -> tuple[Totals, Tensor]:
    sums = torch.zeros(Totals.slots(metrics), dtype=torch.float64, device=device)
    return Totals(loss, metrics, sums), sums


@pytest.mark.parametrize("batch_size", [1, 7, 64, 5000])
@pytest.mark.parametrize("weight", [None, torch.tensor([1.0, 0.0, 2.0, 0.5, 3.0])])
def test_sums_are_those_of_all_samples(batch_size: int, weight: Tensor | None) -> None:
    generator = torch.Generator().manual_seed(5)
    outputs, targets = (
        torch.randn(5000, 5, generator=generator),
        torch.randint(0, 5, (5000,), generator=generator),
    )
    loss = Loss(nn.CrossEntropyLoss(weight=weight))
    totals, sums = new(loss)

    for rows in torch.split(torch.arange(5000), batch_size):
        totals.add(loss(outputs[rows], targets[rows]), outputs[rows], targets[rows])
    totals.flush()

    each = nn.CrossEntropyLoss(weight=weight, reduction="none")(outputs, targets).double()
    weights = torch.ones(5000).double() if weight is None else weight[targets].double()
    truth = [
        each.sum(),
        (each.square() / weights).nan_to_num().sum(),
        weights.sum(),
        weights.square().sum(),
        0,
        0,
    ]
    assert sums[: Totals.FIXED].tolist() == pytest.approx([float(one) for one in truth], rel=1e-12)
    right = (outputs.argmax(1) == targets).sum()
    assert sums[Totals.FIXED : Totals.FIXED + 2].tolist() == [int(right), 5000]
    assert sums[Totals.FIXED + 2 :].sum() == right + 2 * 5000


def measured(loss: Loss, batches: list[tuple[Tensor, Tensor]]) -> tuple[list[float], list[float]]:
    """Return the sums where each batch comes with its loss, and where the loss is left to the totals."""
    given, given_sums = new(loss, ())
    left, left_sums = new(loss, ())
    for outputs, targets in batches:
        given.add(loss(outputs, targets), outputs, targets)
        left.measure(outputs, targets)
    given.flush()
    left.flush()
    return given_sums.tolist(), left_sums.tolist()


CLASSES = torch.tensor([1.0, 0.0, 2.0, 0.5, 3.0])


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(),
        nn.CrossEntropyLoss(weight=CLASSES, ignore_index=2),
        nn.CrossEntropyLoss(label_smoothing=0.1),
        nn.NLLLoss(weight=CLASSES),
    ],
    ids=str,
)
@pytest.mark.parametrize("length", [(), (3,)])
def test_a_loss_that_is_left_to_the_totals_is_the_same(loss: nn.Module, length: tuple[int, ...]) -> None:
    made = Loss(loss)
    shapes = [(8, *length)] * 30 + [(5, *length)]
    given, left = measured(made, [(torch.randn(n, 5, *m), torch.randint(0, 5, (n, *m))) for n, *m in shapes])

    assert made.by_sample
    assert left == pytest.approx(given, rel=1e-12)


@pytest.mark.parametrize(
    "loss", [nn.MSELoss(), nn.HuberLoss(reduction="sum"), nn.BCEWithLogitsLoss()], ids=str
)
def test_an_elementwise_loss_that_is_left_to_the_totals_is_the_same(loss: nn.Module) -> None:
    made = Loss(loss)
    given, left = measured(made, [(torch.randn(n, 2), torch.rand(n, 2)) for n in [8] * 30 + [5]])

    assert made.by_sample
    assert left == pytest.approx(given, rel=1e-12)


class Centred(nn.CrossEntropyLoss):
    """Looks at all samples of a batch at once."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:  # noqa: A002 - torch's name
        return super().forward(input - input.mean(dim=0), target)


def hooked() -> nn.Module:
    loss = nn.MSELoss()
    loss.register_forward_hook(lambda _, __, output: output * len(output))
    return loss


def replaced() -> nn.Module:
    loss = nn.MSELoss()
    vars(loss)["forward"] = lambda outputs, _: outputs * len(outputs)
    return loss


@pytest.mark.parametrize(
    "loss",
    [
        Centred(),
        hooked(),
        replaced(),
        nn.BCEWithLogitsLoss(weight=torch.arange(8.0)),
        lambda outputs, _: outputs * len(outputs),
    ],
    ids=["subclass", "hook", "forward of its own", "weight by place", "function"],
)
def test_a_loss_that_may_look_at_the_whole_batch_gets_one_at_a_time(loss: object) -> None:
    made = Loss(loss)
    classes = isinstance(loss, Centred)
    shape = (8, 3) if classes else (8,)
    targets = torch.randint(0, 3, (8,)) if classes else torch.rand(8)
    given, left = measured(made, [(torch.randn(shape), targets) for _ in range(20)])

    assert not made.by_sample
    assert left == given


def test_a_loss_that_cannot_take_a_batch_says_so_when_it_comes() -> None:
    totals, _ = new(Loss(nn.MSELoss()), ())
    for _ in range(3):
        totals.measure(torch.zeros(4, 1), torch.zeros(4, 1))

    with pytest.raises(TaskError, match="would stretch"):
        totals.measure(torch.zeros(4, 1), torch.zeros(4))


def test_a_value_that_the_loss_cannot_take_is_told_with_how_far_back_it_may_be() -> None:
    totals, _ = new(Loss(nn.CrossEntropyLoss()), ())
    for label in (0, 0, 3, 0, 0):
        totals.measure(torch.zeros(4, 3), torch.full((4,), label))

    with pytest.raises(IndexError) as raised:
        totals.flush()

    assert raised.value.__notes__[0].startswith("The loss of 5 batches was computed at once")


def test_batches_of_other_shapes_are_not_mixed_up() -> None:
    loss = Loss(nn.CrossEntropyLoss())
    totals, sums = new(loss, ())
    truth = 0.0
    for length in (3, 3, 5, 2, 5):
        outputs, targets = torch.randn(4, 6, length), torch.randint(0, 6, (4, length))
        totals.add(loss(outputs, targets), outputs, targets)
        truth += float(nn.CrossEntropyLoss(reduction="sum")(outputs.double(), targets))
    totals.flush()

    assert sums[Totals.LOSS_SUM] == pytest.approx(truth, rel=1e-6)
    assert sums[Totals.WEIGHT_SUM] == 4 * (3 + 3 + 5 + 2 + 5)


def test_what_is_not_finite_is_counted_apart() -> None:
    totals, sums = new(Loss(nn.MSELoss()), ())
    losses = torch.tensor([1.0, math.nan, -1e146, math.inf, 2.0], dtype=torch.float64)
    totals.add(BatchLoss(losses, None), torch.zeros(5), torch.zeros(5))
    totals.flush()

    assert sums.tolist() == [3.0, 5.0, 2.0, 2.0, 3.0, 0.0]


def test_of_a_loss_for_the_whole_batch_all_samples_share_the_fate() -> None:
    totals, sums = new(Loss(nn.MSELoss()), ())
    for value in (6.0, math.nan):
        totals.add(BatchLoss(torch.tensor(value), torch.tensor(3.0)), torch.zeros(5), torch.zeros(5))
    totals.flush()

    assert sums.tolist() == [6.0, 12.0, 3.0, 9.0, 5.0, 0.0]


def test_sums_do_not_stall_where_half_precision_would() -> None:
    totals, sums = new(Loss(nn.MSELoss()), ())
    for _ in range(1000):
        totals.add(BatchLoss(torch.ones(1, dtype=torch.bfloat16), None), torch.zeros(1), torch.zeros(1))
    totals.flush()

    assert sums[Totals.LOSS_SUM] == 1000


def test_outputs_of_any_structure_are_given_to_the_metrics() -> None:
    class Second:
        def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return outputs[1] + targets

    metrics = (as_sum_metric(Second()),)
    totals, sums = new(Loss(nn.MSELoss()), metrics)
    totals.add(BatchLoss(torch.zeros(3), None), (torch.zeros(3), torch.ones(3)), torch.ones(3))
    totals.flush()

    assert sums[Totals.FIXED :].tolist() == [6.0, 3.0]


def test_adding_and_flushing_read_no_value() -> None:
    """On the meta device there are no values: anything that reads one raises."""

    class Rows:
        seen: ClassVar[list[int]] = []

        def __call__(self, outputs: Tensor, _targets: Tensor) -> Tensor:
            self.seen.append(len(outputs))
            return outputs[:, 0]

    loss, rows = Loss(nn.CrossEntropyLoss()), Rows()
    totals, sums = new(loss, (*METRICS, as_sum_metric(rows)), device="meta")
    outputs, targets = torch.empty(8, 5, device="meta"), torch.empty(8, dtype=torch.int64, device="meta")
    for _ in range(4):
        totals.add(loss(outputs, targets), outputs, targets)
    for _ in range(3):
        totals.measure(outputs, targets)
    totals.flush()

    assert sums.is_meta
    # Of each kind one is tried, and all are joined.
    assert rows.seen == [8, 32, 8, 24]


def test_sums_of_large_losses_stay_finite() -> None:
    """What a diverging run in float64 passes through: each square is finite, their sum would not be."""
    totals, sums = new(Loss(nn.MSELoss()), (as_sum_metric(MeanSquaredError()),))
    losses = torch.logspace(100, 300, 2001, dtype=torch.float64)
    totals.add(BatchLoss(losses, None), losses, torch.zeros(2001, dtype=torch.float64))
    totals.flush()

    assert sums.isfinite().all()
    assert sums[Totals.NONFINITE] + sums[Totals.WEIGHT_SUM] == 2001
    assert sums[Totals.NONFINITE] > 0


def test_the_same_batches_give_the_same_bits_in_every_pass() -> None:
    # An epoch that is trained again is compared with the first time.
    loss = Loss(nn.CrossEntropyLoss())
    totals, sums = new(loss, (as_sum_metric(Accuracy()),))
    batches = [(torch.randn(size, 4), torch.randint(0, 4, (size,))) for size in [8] * 100 + [3]]
    passes = []
    for _ in range(2):
        sums.zero_()
        for outputs, targets in batches:
            totals.add(loss(outputs, targets), outputs, targets)
        totals.flush()
        passes.append(sums.clone())

    assert torch.equal(*passes)


def test_a_metric_that_cannot_take_a_shape_says_so_in_that_call() -> None:
    loss = Loss(nn.CrossEntropyLoss())
    totals, _ = new(loss, (as_sum_metric(TopKAccuracy(3)),))
    outputs, targets = torch.randn(8, 4), torch.randint(0, 4, (8,))
    totals.add(loss(outputs, targets), outputs, targets)

    with pytest.raises(TaskError, match="at least 3 logits"):
        totals.add(loss(outputs[:, :2], targets.clamp(max=1)), outputs[:, :2], targets)


@pytest.mark.parametrize(("width", "alive"), [(8, True), (1 << 17, False)])
def test_outputs_that_are_part_of_something_large_do_not_keep_it_in_memory(width: int, alive: bool) -> None:
    totals, _ = new(Loss(nn.CrossEntropyLoss()), ())
    hidden = np.ones((4, width), dtype=np.float32)
    memory = weakref.ref(hidden)
    outputs, targets = torch.from_numpy(hidden)[:, :3], torch.zeros(4, dtype=torch.long)
    totals.add(BatchLoss(torch.ones(4), None), outputs, targets)
    del hidden, outputs

    assert (memory() is not None) is alive


@pytest.mark.parametrize(("width", "alive"), [(8, True), (1 << 17, False)])
def test_targets_that_are_part_of_something_large_do_not_keep_it_in_memory(width: int, alive: bool) -> None:
    # A collate function may cut a batch of rows into inputs and targets.
    totals, _ = new(Loss(nn.MSELoss()), ())
    rows = np.ones((4, width), dtype=np.float32)
    memory = weakref.ref(rows)
    totals.measure(torch.zeros(4), torch.from_numpy(rows)[:, 0])
    del rows

    assert (memory() is not None) is alive


@pytest.mark.parametrize("buffers", [1, 2, 3])
def test_outputs_whose_memory_is_used_again_are_summed_before_it_is(buffers: int) -> None:
    # A view of a parameter, which the optimizer changes, or tensors of the model's own that calls fill in turn.
    loss, metrics = Loss(nn.CrossEntropyLoss()), (as_sum_metric(Accuracy()),)
    (totals, sums), (left, left_sums), (alone, truth) = (new(loss, metrics) for _ in range(3))
    memories = [torch.zeros(3) for _ in range(buffers)]
    for step in range(20):
        targets = torch.tensor([0, 1, 2, 2])
        memory = memories[step % buffers].copy_(torch.rand(3))
        outputs = memory.expand(4, 3)
        alone.add(loss(outputs, targets), outputs, targets)
        alone.flush()
        totals.add(loss(outputs, targets), outputs, targets)
        left.measure(outputs, targets)
    totals.flush()
    left.flush()

    assert sums.tolist() == pytest.approx(truth.tolist(), rel=1e-12)
    assert left_sums.tolist() == pytest.approx(truth.tolist(), rel=1e-12)


@pytest.mark.parametrize("buffers", [1, 2, 3])
def test_targets_whose_memory_is_used_again_are_summed_before_it_is(buffers: int) -> None:
    loss, metrics = Loss(nn.CrossEntropyLoss()), (as_sum_metric(Accuracy()),)
    totals, sums = new(loss, metrics)
    memories = [torch.zeros(4, dtype=torch.long) for _ in range(buffers)]
    for step in range(6):
        targets = memories[step % buffers].fill_(step // buffers % 3)
        outputs = torch.eye(3)[targets]
        totals.add(loss(outputs, targets), outputs, targets)
    totals.flush()

    assert sums[Totals.FIXED :].tolist() == [24.0, 24.0, 0.0]


def test_small_batches_are_summed_many_at_a_time() -> None:
    class Counting:
        calls = 0

        def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
            self.calls += 1
            return outputs - targets

    counting = Counting()
    totals, _ = new(Loss(nn.MSELoss()), (as_sum_metric(counting),))
    for _ in range(100):
        totals.add(BatchLoss(torch.zeros(4), None), torch.zeros(4), torch.zeros(4))
    totals.flush()

    # The shape is tried, and all are one.
    assert counting.calls == 2


def test_a_metric_that_writes_into_the_outputs_is_given_each_once() -> None:
    def hits(outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.sigmoid_().round() == targets

    totals, sums = new(Loss(nn.MSELoss()), (as_sum_metric(hits),))
    for _ in range(10):
        totals.add(
            BatchLoss(torch.zeros(4), None), torch.tensor([-2.0, -1.0, 1.0, 2.0]), torch.tensor([0, 0, 1, 1])
        )
    totals.flush()

    assert sums[Totals.FIXED :].tolist() == [40.0, 40.0]


def test_a_metric_that_writes_into_the_targets_leaves_the_loss_alone() -> None:
    def hits(outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.argmax(dim=1) == targets.masked_fill_(targets == -100, 0)

    loss, metrics = Loss(nn.CrossEntropyLoss(), ignores_targets=True), (as_sum_metric(hits),)
    totals, sums = new(loss, metrics)
    for _ in range(10):
        totals.measure(torch.eye(3), torch.tensor([0, 1, -100]))
    totals.flush()

    assert sums[Totals.WEIGHT_SUM] == 20


def test_a_batch_that_is_summed_at_once_is_not_tried_before() -> None:
    class Counting:
        calls = 0

        def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
            self.calls += 1
            return outputs[:, 0] - targets

    counting = Counting()
    totals, _ = new(Loss(nn.MSELoss()), (as_sum_metric(counting),))
    for width in (1 << 17, 1 << 18):
        totals.add(BatchLoss(torch.zeros(4), None), torch.zeros(4, width), torch.zeros(4))

    assert counting.calls == 2
