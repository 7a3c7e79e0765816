"""What an expert would change, for each verdict."""

from __future__ import annotations

from typing import Final

from curvewatch_workers.diagnosis.verdict import Verdict

_BEST: Final = "the best checkpoint that was kept, of epoch {best} or near it"
"""Checkpoints are spaced in time: in short epochs the best one may have none."""

ADVICE: Final[dict[Verdict, str]] = {
    Verdict.GOOD_FIT: (
        f"Nothing needs to change. Use {_BEST}; train longer only if validation loss still falls."
    ),
    Verdict.OVERFITTING: (
        f"Use {_BEST}, and stop there next time (early stopping). To get further: more "
        "or augmented data, stronger weight decay or dropout, or a smaller model; and look for wrong "
        "labels."
    ),
    Verdict.OVERCONFIDENT: (
        "If only the decisions matter, the latest checkpoint is as good as any. If the probabilities matter, "
        f"use {_BEST}, or fit a temperature on the validation set; label "
        "smoothing or more weight decay keep it from happening."
    ),
    Verdict.UNDERFITTING: (
        "Give the model more capacity (width, depth, better features) or less regularisation (weight decay, "
        "dropout, augmentation). First check that it can learn ten samples by heart: if not, inputs, labels "
        "or loss are wrong; and that the learning rate has not gone to 0 too soon."
    ),
    Verdict.PLATEAU: (
        "Look at the learning rate: lower it three to ten times if it was constant, and check the schedule "
        "if it had already gone to 0. If neither helps, this is what this model can do with these data: "
        "stop here, or change the model."
    ),
    Verdict.SLOW_CONVERGENCE: (
        "Raise the learning rate three to ten times (until the loss begins to jump, then take half), check "
        "that inputs are normalised, or use Adam instead of plain SGD; if it already is at its limit, train "
        "longer."
    ),
    Verdict.UNSTABLE: (
        "Lower the learning rate three to ten times, clip the gradient norm at 1, or use larger batches; if "
        "only validation loss jumps, look at the size of the validation set and at the BatchNorm "
        "statistics."
    ),
    Verdict.DIVERGING: (
        f"Stop. Go back to {_BEST}, and lower the learning rate ten times; clip the "
        "gradient norm at 1, and warm the learning rate up over the first epochs."
    ),
    Verdict.NOT_FINITE: (
        "Stop. Go back to a checkpoint from before epoch {bad}, if one was kept; look for a division by 0, the "
        "logarithm "
        "of 0 or an overflow in half precision, and for NaN in the data; lower the learning rate and clip "
        "the gradient norm at 1."
    ),
    Verdict.TOO_EARLY: "Wait for more epochs.",
}
