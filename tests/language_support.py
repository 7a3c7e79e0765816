"""The example of a language model in a small setting, and its numbers computed another way."""

from __future__ import annotations

import copy
import importlib
import math
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from curvewatch_workers.contract import JobSpec, SplitRecord
from curvewatch_workers.task import TrainingTask
from engine_support import make_spec

EPOCHS, BATCH = 3, 64
SMALL: dict[str, Any] = {
    "width": 16,
    "layers": 1,
    "heads": 2,
    "length": 16,
    "characters": 8000,
    "warmup_steps": 4,
    "epochs": EPOCHS,
    "global_batch_size": BATCH,
}


def small_job() -> JobSpec:
    """Return the example's job for the small setting, with the fields that its `job.yaml` sets."""
    return make_spec(
        epochs=EPOCHS, global_batch_size=BATCH, micro_batches=2, gradient_clip_norm=1.0, params=SMALL
    )


def language_task(project_root: Path, **params: Any) -> TrainingTask:
    """Build the example's task."""
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(project_root / "examples" / "char_lm"))
        task: TrainingTask = importlib.import_module("char_lm").build(**params)
        sys.modules.pop("char_lm")  # else later tests would take it for an installed module
    return task


def require_numbers_of_one_process(record: SplitRecord, model: nn.Module, data: object) -> None:
    """Compare with loss, perplexity and accuracy of all tokens in one batch, in float64."""
    inputs, targets = cast("TensorDataset", data).tensors
    with torch.no_grad():
        logits = copy.deepcopy(model).double().eval()(inputs)
    asked = targets != -100
    losses: Tensor = nn.functional.cross_entropy(logits, targets, reduction="none")
    loss = float(losses.sum()) / int(asked.sum())

    assert record.weight_sum == int(asked.sum()) < targets.numel()
    assert record.samples_seen == len(targets)
    assert record.exact
    assert record.loss == pytest.approx(loss, rel=1e-6)
    assert record.metric_values["perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)
    accuracy = int((logits.argmax(1) == targets).sum()) / int(asked.sum())
    assert record.metric_values["accuracy"] == pytest.approx(accuracy, rel=1e-9)
    # The mean of the texts' means is another number: texts that were filled up would weigh more.
    of_texts = float((losses.sum(1) / asked.sum(1)).mean())
    assert abs(of_texts - loss) > 1e-4 * loss
