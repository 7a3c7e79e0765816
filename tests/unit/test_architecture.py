"""The direction of imports, seen from a fresh interpreter."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["contract", "series", "diagnosis"])
def test_what_the_service_shares_loads_neither_torch_nor_ray(module: str) -> None:
    program = (
        f"import sys, curvewatch_workers.{module}; "
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'torch', 'ray', 'numpy', 'curvewatch_service'}))"
    )

    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout

    assert loaded.strip() == "[]"


def test_the_loop_runs_without_ray() -> None:
    program = "import sys, curvewatch_workers.torchrun; print('ray' in sys.modules)"

    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout

    assert loaded.strip() == "False"


def test_what_the_hooks_share_needs_no_framework() -> None:
    program = (
        "import sys, curvewatch_workers.hooks.curve_feed as shared; shared.CurveFeed('keras', None).begin(0); "
        "print(sorted({name.split('.')[0] for name in sys.modules} - {'curvewatch_workers'} - sys.stdlib_module_names))"
    )

    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout

    assert not set(ast.literal_eval(loaded)) & {
        "torch",
        "ray",
        "numpy",
        "pydantic",
        "requests",
        "lightning",
        "keras",
    }
