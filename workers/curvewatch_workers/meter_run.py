"""The run that this process trains for a job whose loop is the user's; asking for it loads neither torch nor Ray."""

from __future__ import annotations

import contextvars
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from curvewatch_workers.meter import MeterRun

RUN: contextvars.ContextVar[MeterRun | None] = contextvars.ContextVar("curvewatch_meter_run", default=None)
"""None outside of a job."""
