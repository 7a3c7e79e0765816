"""Options and fixtures of the whole suite."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device", choices=("cpu", "cuda"), default="cpu", help="where the engine's tests train"
    )


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    name = request.config.getoption("--device")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("--device cuda: this machine has no CUDA GPU")
    return torch.device(name)


@pytest.fixture(scope="session")
def project_root() -> Path:
    return Path(__file__).parent.parent
