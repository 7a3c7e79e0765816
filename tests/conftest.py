"""Options and fixtures of the whole suite."""

from __future__ import annotations

import os
from pathlib import Path

# Before torch is loaded, and for every process that a test starts: several of these share few cores, and threads of
# OpenMP wait for one another by spinning.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest
import torch

# How long an example takes says what else the machine does.
hypothesis.settings.register_profile("curvewatch", deadline=None)
hypothesis.settings.load_profile("curvewatch")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device", choices=("cpu", "cuda"), default="cpu", help="where the engine's tests train"
    )
    parser.addoption("--long", action="store_true", help="run the tests marked long too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--long"):
        return
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker(pytest.mark.skip(reason="takes minutes: make test-long runs it"))


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    name = request.config.getoption("--device")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("--device cuda: this machine has no CUDA GPU")
    return torch.device(name)


@pytest.fixture(scope="session")
def project_root() -> Path:
    return Path(__file__).parent.parent
