"""Fixtures that start processes, shared over the whole session because their start costs seconds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ray_support import ServiceProcess
from watched_support import Watched, watched


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """A running service with a Ray of its own; tests leave it running and clean up their runs."""
    started = ServiceProcess(tmp_path_factory.mktemp("service"))
    try:
        started.start_with_ray()
        yield started
    finally:
        started.destroy()


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A Prometheus that has watched runs of every kind."""
    with watched(tmp_path_factory.mktemp("watched")) as found:
        yield found
