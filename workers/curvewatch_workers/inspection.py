"""What can be seen of a task's data by reading samples: labels that fit no class, samples in both splits."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from curvewatch_workers.contract import Split
from curvewatch_workers.data import Batch, ShareLoader
from curvewatch_workers.sources import Source
from curvewatch_workers.task import TrainingTask

MOST_SAMPLES = 20_000
"""Of each split; in large data, samples at equal distances."""
_BATCH = 256


def labels_outside(split: Split, source: Source, task: TrainingTask) -> Iterator[str]:
    """Yield what is wrong with the class labels of a split, one sentence at the most.

    The classes are those of the outputs that the model gives for the first sample.
    """
    classes: int | None = None
    ignored: int = getattr(task.loss, "ignore_index", -100)
    wrong: set[int] = set()
    for batch in _batches(source):
        if batch.targets.is_floating_point():
            return
        if classes is None:
            classes = _classes(task, batch)
        targets = batch.targets[batch.targets != ignored]
        wrong |= set(targets[(targets < 0) | (targets >= classes)].tolist())
    if wrong:
        some = ", ".join(str(label) for label in sorted(wrong)[:5])
        yield (
            f"TrainingTask.{split} has labels that are no class of the model ({some}): it gives {classes} logits, so "
            f"labels go from 0 to {(classes or 0) - 1}; count from 0, or give the model more classes"
        )


def shared_samples(train: Source, validation: Source) -> str | None:
    """Return a sentence about inputs that are in both splits, None when none was seen."""
    known = {digest for batch in _batches(train) for digest in _digests(batch)}
    digests = [digest for batch in _batches(validation) for digest in _digests(batch)]
    shared = sum(digest in known for digest in digests)
    if not shared:
        return None
    return (
        f"{shared} of {len(digests)} validation samples that were read are train samples too: the validation loss is "
        "too good; split the data so that no sample is in both"
    )


def _batches(source: Source) -> Iterator[Batch]:
    loader = ShareLoader(_in_this_process(source), torch.device("cpu"))
    step = -(-source.size // MOST_SAMPLES)
    indices = np.arange(0, source.size, step)
    for start in range(0, len(indices), _BATCH):
        yield loader.trial(indices[start : start + _BATCH])


def _in_this_process(source: Source) -> Source:
    return Source(split=source.split, dataset=source.dataset, collate=source.collate)


@torch.inference_mode()
def _classes(task: TrainingTask, batch: Batch) -> int:
    training = task.model.training
    task.model.eval()
    first = pytree.tree_map_only(Tensor, lambda tensor: tensor[:1], batch.inputs)
    outputs = task.model(first)
    task.model.train(training)
    return int(outputs.shape[1])


def _digests(batch: Batch) -> Iterator[bytes]:
    leaves = [leaf for leaf in pytree.tree_leaves(batch.inputs) if isinstance(leaf, Tensor)]
    for row in range(batch.samples):
        digest = hashlib.blake2b(digest_size=16)
        for leaf in leaves:
            digest.update(leaf[row].contiguous().cpu().numpy().tobytes())
        yield digest.digest()
