"""Names under which other tools log what a curve takes."""

from __future__ import annotations

from typing import Final

ACCURACIES_OF_TOOLS: Final = (
    "accuracy",
    "acc",
    "balanced_accuracy",
    "categorical_accuracy",
    "sparse_categorical_accuracy",
)
"""How an accuracy is called, the best known first; after the split, as in `val_accuracy`."""
VALIDATION_SPLITS: Final = ("val", "valid", "validation", "eval")
"""How the validation split is called."""
