"""Each metric, summed over uneven batches and ranks, against scikit-learn on the whole data."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torch import Tensor

from curvewatch_workers.contract import MetricTotals
from curvewatch_workers.errors import TaskError
from curvewatch_workers.metrics import (
    F1,
    R2,
    Accuracy,
    CalibrationError,
    ConfusionMatrix,
    MeanAbsoluteError,
    MeanOfSamples,
    MeanSquaredError,
    Metric,
    Perplexity,
    Precision,
    Recall,
    RootMeanSquaredError,
    SumMetric,
    TopKAccuracy,
    as_sum_metric,
)
from curvewatch_workers.metrics.protocol import MetricReading

CLASSES = 10
SPLITS = [(1, 361), (3, 32), (4, 1), (2, 64)]
"""Ranks and batch size: 361 divides by none of them but 1 and 19."""


def read(metric: Metric, outputs: Tensor, targets: Tensor, ranks: int, batch_size: int) -> MetricReading:
    """Sum over uneven batches of each rank, then over the ranks."""
    sums = as_sum_metric(metric)
    total = torch.zeros(sums.slots, dtype=torch.float64)
    for rank in range(ranks):
        own = torch.zeros(sums.slots, dtype=torch.float64)
        for rows in torch.split(torch.arange(rank, len(targets), ranks), batch_size):
            sums.update(own, outputs[rows], targets[rows])
        total += own
    return sums.read(total.numpy())


def number(reading: MetricReading) -> float:
    (totals,) = reading.values.values()
    return totals.value


@pytest.fixture
def classes() -> tuple[Tensor, Tensor]:
    """Logits that are right now and then, and classes of which one never occurs."""
    generator = torch.Generator().manual_seed(1)
    targets = torch.randint(0, CLASSES - 1, (361,), generator=generator)
    outputs = torch.randn(361, CLASSES, generator=generator)
    outputs[torch.arange(361), targets] += 1.0
    return outputs, targets


def expected_calibration_error(probabilities: np.ndarray[Any, Any], targets: np.ndarray[Any, Any]) -> float:
    confidence, predicted = probabilities.max(axis=1), probabilities.argmax(axis=1)
    error, borders = 0.0, np.linspace(0, 1, 16)
    for low, high in itertools.pairwise(borders):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            gap = (predicted[inside] == targets[inside]).mean() - confidence[inside].mean()
            error += inside.mean() * abs(gap)
    return error


TRUTHS: list[tuple[Metric, Callable[[Any, Any], float]]] = [
    (Accuracy(), lambda t, z: sk.accuracy_score(t, z.argmax(1))),
    (ConfusionMatrix(CLASSES), lambda t, z: sk.accuracy_score(t, z.argmax(1))),
    (TopKAccuracy(3), lambda t, z: sk.top_k_accuracy_score(t, z, k=3, labels=range(CLASSES))),
    *[
        (
            metric(CLASSES, average=average),
            lambda t, z, s=score, a=average: s(t, z.argmax(1), average=a, zero_division=0),
        )
        for metric, score in ((Precision, sk.precision_score), (Recall, sk.recall_score), (F1, sk.f1_score))
        for average in ("macro", "micro", "weighted")
    ],
    (
        Perplexity(),
        lambda t, z: np.exp(sk.log_loss(t, torch.tensor(z).softmax(1).numpy(), labels=range(CLASSES))),
    ),
    (CalibrationError(), lambda t, z: expected_calibration_error(torch.tensor(z).softmax(1).numpy(), t)),
]


@pytest.mark.parametrize(("ranks", "batch_size"), SPLITS)
@pytest.mark.parametrize(("metric", "truth"), TRUTHS, ids=lambda one: type(one).__name__)
def test_classification_is_scikit_learns(
    metric: Metric,
    truth: Callable[[Any, Any], float],
    ranks: int,
    batch_size: int,
    classes: tuple[Tensor, Tensor],
) -> None:
    outputs, targets = classes

    found = number(read(metric, outputs, targets, ranks, batch_size))

    assert found == pytest.approx(truth(targets.numpy(), outputs.double().numpy()), rel=1e-6)


def test_each_class_has_its_own_number(classes: tuple[Tensor, Tensor]) -> None:
    outputs, targets = classes
    predicted = outputs.argmax(1)

    for metric, score in ((Precision, sk.precision_score), (Recall, sk.recall_score), (F1, sk.f1_score)):
        reading = read(metric(CLASSES, average=None), outputs, targets, 3, 32)
        truth = score(targets, predicted, average=None, labels=range(CLASSES), zero_division=np.nan)
        found = [reading.values[str(number)].value for number in range(CLASSES)]
        assert found == pytest.approx(truth.tolist(), rel=1e-12, nan_ok=True)


def test_the_matrix_is_scikit_learns(classes: tuple[Tensor, Tensor]) -> None:
    outputs, targets = classes

    reading = read(ConfusionMatrix(CLASSES), outputs, targets, 3, 32)

    truth = sk.confusion_matrix(targets, outputs.argmax(1), labels=range(CLASSES))
    assert reading.matrix == tuple(map(tuple, truth.tolist()))


def test_a_matrix_of_many_classes_stays_behind() -> None:
    reading = ConfusionMatrix(101).read(np.eye(101).ravel())

    assert reading.matrix is None
    assert reading.values[""].value == 1.0


@pytest.mark.parametrize(("ranks", "batch_size"), SPLITS)
@pytest.mark.parametrize("columns", [1, 3])
@pytest.mark.parametrize(
    ("metric", "truth"),
    [
        (lambda _: MeanAbsoluteError(), sk.mean_absolute_error),
        (lambda _: MeanSquaredError(), sk.mean_squared_error),
        (lambda _: RootMeanSquaredError(), lambda t, o: sk.mean_squared_error(t, o) ** 0.5),
        (R2, sk.r2_score),
    ],
)
def test_regression_is_scikit_learns(
    metric: Callable[[int], Metric], truth: Callable[..., float], columns: int, ranks: int, batch_size: int
) -> None:
    generator = torch.Generator().manual_seed(2)
    targets = torch.randn(361, columns, generator=generator) * 3 + 7
    outputs = targets + torch.randn(361, columns, generator=generator)

    found = number(read(metric(columns), outputs, targets, ranks, batch_size))

    assert found == pytest.approx(truth(targets.double(), outputs.double()), rel=1e-11)


def test_one_column_may_come_without_its_dimension() -> None:
    targets = torch.arange(9.0)
    outputs = targets + torch.tensor([0.0, 1.0, -1.0] * 3)

    assert number(read(R2(), outputs, targets, 2, 2)) == pytest.approx(sk.r2_score(targets, outputs))


def test_a_column_that_varies_by_rounding_alone_has_no_part() -> None:
    """0.1 has no exact square: the sums of a constant column leave a spread that is rounding."""
    generator = torch.Generator().manual_seed(5)
    for constant in (0.1, 1e8 + 0.3, -3.7e-5):
        targets = torch.full((3610, 2), constant, dtype=torch.float64)
        targets[:, 1] = torch.randn(3610, generator=generator, dtype=torch.float64)
        outputs = targets + torch.randn(3610, 2, generator=generator, dtype=torch.float64)
        for batch_size in (1, 7, 3610):
            (totals,) = read(R2(2), outputs, targets, 3, batch_size).values.values()
            assert totals.count == 1
            assert totals.value == pytest.approx(sk.r2_score(targets[:, 1], outputs[:, 1]), rel=1e-11)
            (nothing,) = read(R2(1), outputs[:, 0], targets[:, 0], 3, batch_size).values.values()
            assert nothing == MetricTotals(total=0.0, count=0)


def test_a_spread_far_below_the_mean_counts() -> None:
    """A thousandth of a thousandth of the mean, over as many samples as leave it some digits."""
    generator = torch.Generator().manual_seed(6)
    targets = 1e6 + torch.randn(1000, generator=generator, dtype=torch.float64)
    outputs = targets + 0.5 * torch.randn(1000, generator=generator, dtype=torch.float64)

    assert number(read(R2(), outputs, targets, 3, 32)) == pytest.approx(
        sk.r2_score(targets, outputs), rel=1e-3
    )


@pytest.mark.parametrize(
    "metric",
    [Accuracy(), TopKAccuracy(2), ConfusionMatrix(5), F1(5), Perplexity(), CalibrationError()],
    ids=lambda one: type(one).__name__,
)
def test_ignored_targets_have_no_part(metric: Metric) -> None:
    """Tokens: logits [batch, classes, length], classes [batch, length], some of them padding."""
    generator = torch.Generator().manual_seed(3)
    outputs = torch.randn(12, 5, 7, generator=generator)
    targets = torch.randint(0, 5, (12, 7), generator=generator)
    padding = torch.rand(12, 7, generator=generator) < 0.4
    flat, kept = outputs.movedim(1, 2)[~padding], targets[~padding]

    found = number(read(metric, outputs, torch.where(padding, -100, targets), 3, 2))

    assert found == pytest.approx(number(read(metric, flat, kept, 1, 1000)), rel=1e-6)


def test_values_that_are_not_finite_are_not_counted() -> None:
    outputs = torch.tensor([1.0, float("nan"), 3.0])
    (totals,) = read(MeanAbsoluteError(), outputs, torch.zeros(3), 1, 3).values.values()

    assert totals == MetricTotals(total=4.0, count=2)
    assert (
        number(read(R2(), torch.tensor([1.0, torch.inf, 3.0, 2.0]), torch.tensor([1.0, 0, 3, 2]), 1, 4))
        == 1.0
    )


def test_nothing_counted_is_no_number() -> None:
    for metric in (Accuracy(), F1(3), CalibrationError(), RootMeanSquaredError(), R2(), Perplexity()):
        sums = as_sum_metric(metric)
        assert np.isnan(number(sums.read(np.zeros(sums.slots))))


def test_large_ratios_have_an_infinite_exponential() -> None:
    assert MetricTotals(total=1e6, count=1, form="exponential").value == float("inf")


def batch_mean(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.argmax(1) == targets).float().mean()


def stretched(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).abs()


@pytest.mark.parametrize(
    ("metric", "outputs", "targets", "message"),
    [
        (MeanAbsoluteError(), torch.zeros(5, 1), torch.zeros(5), r"\(5, 1\).*\(5,\)"),
        (R2(), torch.zeros(5, 1), torch.zeros(5), r"\(5, 1\).*\(5,\)"),
        (R2(2), torch.zeros(5, 3), torch.zeros(5, 3), r"R2\(columns=2\) got targets of shape \(5, 3\)"),
        (Accuracy(), torch.zeros(8, 3), torch.zeros(8, 1), r"Accuracy.*\(8, 3\).*\(8, 1\)"),
        (TopKAccuracy(4), torch.zeros(8, 3), torch.zeros(8), "needs at least 4 logits"),
        (F1(4), torch.zeros(8, 3), torch.zeros(8), r"F1\(classes=4\) takes 4 logits"),
        (
            batch_mean,
            torch.zeros(8, 3),
            torch.zeros(8),
            "metric batch_mean must give one value for each sample",
        ),
        (
            stretched,
            torch.zeros(8, 1),
            torch.zeros(8),
            r"metric stretched gave 64 values for outputs of shape \(8, 1\) and targets of shape \(8,\)",
        ),
    ],
)
def test_shapes_that_do_not_fit_are_refused(
    metric: Metric, outputs: Tensor, targets: Tensor, message: str
) -> None:
    with pytest.raises(TaskError, match=message):
        read(metric, outputs, targets, 1, 8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConfusionMatrix(1), "at least 2; got 1"),
        (lambda: F1(3, average="samples"), "got 'samples'"),  # type: ignore[arg-type]
        (lambda: TopKAccuracy(0), "got k=0"),
        (lambda: CalibrationError(0), "at least 1 bin"),
        (lambda: R2(0), "at least 1; got 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        make()


@pytest.mark.parametrize("value", [None, 0.5, [True, False]])
def test_a_metric_that_gives_no_tensor_is_refused(value: object) -> None:
    def given(_outputs: Tensor, _targets: Tensor) -> Any:
        return value

    with pytest.raises(TaskError, match=f"metric given must give a tensor, .* got {type(value).__name__}"):
        read(given, torch.zeros(2, 3), torch.zeros(2), 1, 2)


@pytest.mark.parametrize("metric", [Accuracy(), F1(3), CalibrationError(), MeanAbsoluteError(), R2()])
def test_a_metric_of_one_tensor_does_not_take_a_structure_of_outputs(metric: Metric) -> None:
    outputs: Any = {"logits": torch.zeros(2, 3)}
    sums = as_sum_metric(metric)

    with pytest.raises(TaskError, match=f"{type(metric).__name__} takes one tensor of outputs, .* a dict; "):
        sums.update(torch.zeros(sums.slots, dtype=torch.float64), outputs, torch.zeros(2))


def test_soft_targets_are_refused_with_what_measures_them() -> None:
    with pytest.raises(TaskError, match=r"function of your own, such as .*argmax\(1\)"):
        read(Accuracy(), torch.zeros(5, 3), torch.zeros(5, 3).softmax(1), 1, 5)


def test_a_metric_of_a_structure_of_outputs_may_give_as_many_values_as_there_are() -> None:
    def error(outputs: Any, targets: Tensor) -> Tensor:
        means: Tensor = outputs["mean"]
        return (means - targets).abs()

    metric = MeanOfSamples(error)
    sums = torch.zeros(2, dtype=torch.float64)
    outputs: Any = {"mean": torch.ones(4), "variance": torch.ones(4)}

    metric.update(sums, outputs, torch.zeros(4))

    assert sums.tolist() == [4.0, 4.0]
    with pytest.raises(TaskError, match="metric error gave 16 values"):
        metric.update(sums, {"mean": torch.ones(4, 1), "variance": torch.ones(4, 1)}, torch.zeros(4))  # type: ignore[arg-type]


EVERY: Mapping[str, tuple[Metric, Tensor, Tensor]] = {
    **{
        type(metric).__name__: (metric, torch.empty(8, 10), torch.empty(8, dtype=torch.int64))
        for metric in (
            Accuracy(),
            TopKAccuracy(3),
            ConfusionMatrix(10),
            Precision(10),
            Recall(10),
            F1(10),
            CalibrationError(),
            Perplexity(),
        )
    },
    **{
        type(metric).__name__: (metric, torch.empty(8, 2), torch.empty(8, 2))
        for metric in (MeanAbsoluteError(), MeanSquaredError(), RootMeanSquaredError(), R2(2))
    },
}


@pytest.mark.parametrize("name", EVERY)
def test_no_metric_reads_a_value(name: str) -> None:
    """On the meta device there are no values: anything that reads one raises."""
    metric, outputs, targets = EVERY[name]
    sums = as_sum_metric(metric)
    state = torch.zeros(sums.slots, dtype=torch.float64, device="meta")

    sums.update(state, outputs.to("meta"), targets.to("meta"))

    assert state.shape == (sums.slots,)


@pytest.mark.parametrize("name", EVERY)
def test_every_metric_compiles_as_one_graph(name: str) -> None:
    metric, outputs, targets = EVERY[name]
    sums = as_sum_metric(metric)
    compiled = torch.compile(sums.update, fullgraph=True, backend="eager")
    outputs, targets = torch.rand_like(outputs), torch.ones_like(targets)
    one, other = (torch.zeros(sums.slots, dtype=torch.float64) for _ in range(2))

    compiled(one, outputs, targets)
    sums.update(other, outputs, targets)

    assert torch.equal(one, other)


def test_merging_is_addition_in_any_order(classes: tuple[Tensor, Tensor]) -> None:
    outputs, targets = classes
    metric: SumMetric = F1(CLASSES)
    parts = []
    for rows in torch.split(torch.arange(361), 50):
        part = torch.zeros(metric.slots, dtype=torch.float64)
        metric.update(part, outputs[rows], targets[rows])
        parts.append(part)

    forwards, backwards = sum(parts), sum(reversed(parts))

    assert isinstance(forwards, Tensor)
    assert isinstance(backwards, Tensor)
    assert metric.read(forwards.numpy()) == metric.read(backwards.numpy())
