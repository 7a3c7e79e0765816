"""What the API works with, put together once at the start."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from curvewatch_service.auth import TokenStore
from curvewatch_service.cluster import Cluster
from curvewatch_service.code import CodeStore
from curvewatch_service.settings import Settings
from curvewatch_service.store import Store


def _nobody_waits() -> None:
    """Do nothing: no reconciler runs in this process."""


@dataclass(frozen=True)
class Services:
    """The parts of the service that requests share."""

    settings: Settings
    store: Store
    code: CodeStore
    tokens: TokenStore
    cluster: Cluster
    alerts_token: str = ""
    """With which Alertmanager tells of alerts; empty takes none."""
    notify: Callable[[], None] = _nobody_waits
    """Wakes the reconciler, so that a new run does not wait for its next look."""
