"""Random numbers that depend on where in a run they are drawn, and on nothing else."""

from __future__ import annotations

import random

import numpy as np
import torch


def seed_of(*place: int) -> int:
    """Return the seed that follows from whole numbers that name a place in the run."""
    return int(np.random.SeedSequence(place).generate_state(1, np.uint32)[0])


def seed_from(*place: int) -> None:
    """Seed Python, NumPy and torch in this process from whole numbers that name a place in the run."""
    state = seed_of(*place)
    random.seed(state)
    np.random.seed(state)
    torch.manual_seed(state)
