"""Random numbers that depend on where in a run they are drawn, and on nothing else."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

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


@contextlib.contextmanager
def seeded(*place: int) -> Iterator[None]:
    """Seed them inside only; afterwards each generator goes on as if nothing had been drawn."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices):
            seed_from(*place)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
