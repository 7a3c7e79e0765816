"""Number formats, memory formats and pinned memory on a CUDA GPU: what the job asks for is what is done."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from curvewatch_workers.data import Batch, ShareLoader
from curvewatch_workers.group import SoloGroup
from curvewatch_workers.losses import Loss
from curvewatch_workers.metrics import (
    R2,
    MeanAbsoluteError,
    MeanSquaredError,
    Precision,
    Recall,
    RootMeanSquaredError,
    SumMetric,
    as_sum_metric,
)
from curvewatch_workers.sources import source_of_task
from curvewatch_workers.totals import Totals
from engine_support import make_spec, make_task
from ranks_support import train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA GPU")

DEVICE = torch.device("cuda")


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_the_forward_runs_in_the_jobs_precision_and_the_sums_do_not(
    precision: str, dtype: torch.dtype
) -> None:
    task, seen = make_task(), set()
    first: nn.Module = task.model[0]  # type: ignore[index]
    first.register_forward_hook(lambda _module, _inputs, outputs: seen.add(outputs.dtype))

    records = train(SoloGroup(DEVICE), make_spec(precision=precision), task)

    assert seen == {dtype}
    assert all(parameter.dtype == torch.float32 for parameter in task.model.parameters())
    assert [record.validation.metrics["accuracy"].count for record in records] == [23, 23]
    assert all(record.train.exact and record.validation.exact for record in records)


def steep_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Give gradients that, scaled as at the start, are beyond fp16."""
    return 1000 * nn.functional.cross_entropy(outputs, targets, reduction="none")


def test_a_step_whose_scaled_gradient_overflows_is_left_out_until_the_scale_fits() -> None:
    task = make_task(loss=steep_loss)
    task.optimizer.param_groups[0]["lr"] = 0.5 / 1000

    records = train(SoloGroup(DEVICE), make_spec(epochs=6, precision="fp16"), task)

    # Of four steps an epoch; later the scale may be tried one higher, or a gradient be larger.
    assert records[-1].skipped_steps < records[0].skipped_steps
    assert records[-1].train.nonfinite_samples == 0
    assert records[-1].validation.loss < records[0].validation.loss


@pytest.mark.parametrize("tf32", [True, False])
def test_tf32_is_used_where_it_is_asked_for(tf32: bool) -> None:
    torch.set_float32_matmul_precision("highest")

    train(SoloGroup(DEVICE), make_spec(epochs=1, tf32=tf32), make_task())

    assert torch.get_float32_matmul_precision() == ("high" if tf32 else "highest")


def images(count: int, seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    return TensorDataset(torch.randn(count, 3, 8, 8, generator=generator), torch.arange(count) % 3)


def curve_of_images(*, channels_last: bool) -> tuple[list[float], list[bool]]:
    """Return the validation losses, and of each call whether its images had their channels last."""
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 4, 3, padding=1)
    model = nn.Sequential(convolution, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    last: list[bool] = []

    def look(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        last.append(inputs[0].is_contiguous(memory_format=torch.channels_last))

    convolution.register_forward_pre_hook(look)
    task = make_task(
        model=model,
        train=images(40, 1),
        validation=images(20, 2),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
    )
    records = train(SoloGroup(DEVICE), make_spec(channels_last=channels_last), task)
    assert convolution.weight.is_contiguous(memory_format=torch.channels_last) is channels_last
    return [record.validation.loss for record in records], last


def test_images_and_weights_have_their_channels_last_and_the_curve_stays() -> None:
    plain, never = curve_of_images(channels_last=False)
    laid_out, always = curve_of_images(channels_last=True)

    assert always
    assert all(always)
    assert not any(never)
    # The kernels differ, and by default convolutions are in TF32.
    assert laid_out == pytest.approx(plain, rel=1e-2)


def test_batches_come_from_pinned_memory() -> None:
    source = source_of_task("train", make_task(), make_spec(), 1)
    loader = ShareLoader(source, DEVICE)
    loader._shares.source = lambda: iter([np.arange(4)])
    (loaded,) = loader._loader
    assert isinstance(loaded, Batch)
    assert loaded.inputs.is_pinned()
    assert loaded.targets.is_pinned()

    (moved,) = loader.batches(lambda: iter([np.arange(4)]), seed=(0,))

    assert moved.inputs.device.type == moved.targets.device.type == "cuda"
    assert torch.equal(moved.inputs.cpu(), loaded.inputs)


REGRESSION: tuple[SumMetric, ...] = tuple(
    as_sum_metric(metric)
    for metric in (R2(columns=2), RootMeanSquaredError(), MeanAbsoluteError(), MeanSquaredError())
)
CLASSES: tuple[SumMetric, ...] = (Precision(3), Recall(3, average=None))


@pytest.mark.parametrize(
    ("loss", "metrics", "outputs", "targets", "weight"),
    [
        (nn.MSELoss(), REGRESSION, (63, 2), torch.zeros(63, 2), 63),
        (nn.CrossEntropyLoss(ignore_index=0), CLASSES, (63, 3), torch.arange(63) % 3, 42),
        (nn.CrossEntropyLoss(), CLASSES, (63, 3, 5), torch.arange(315).view(63, 5) % 3, 315),
    ],
)
def test_no_sum_waits_for_the_device(
    loss: nn.Module, metrics: tuple[SumMetric, ...], outputs: tuple[int, ...], targets: Tensor, weight: int
) -> None:
    taken_apart = Loss(loss)
    taken_apart.to(DEVICE)
    sums = torch.zeros(Totals.slots(metrics), dtype=torch.float64, device=DEVICE)
    totals = Totals(taken_apart, metrics, sums)
    given, wanted = torch.randn(outputs, device=DEVICE), targets.to(DEVICE)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            totals.add(taken_apart(given, wanted), given, wanted)
        totals.flush()
    finally:
        torch.cuda.set_sync_debug_mode("default")

    assert totals.sums[Totals.WEIGHT_SUM] == 3 * weight
