"""`curvewatch check` as a person calls it: the job's code runs in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from check_support import write_job


def run_check(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "curvewatch_service.cli", "check", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)


def test_a_good_job_in_json_and_as_text(tmp_path: Path) -> None:
    write_job(
        tmp_path,
        "print('loading'); return task(metrics={'accuracy': Accuracy()})",
        workers="{min: 1, max: 2}",
    )

    data, text = run_check(tmp_path, "--json"), run_check(tmp_path)

    assert (data.returncode, text.returncode) == (0, 0)
    told = json.loads(data.stdout)
    assert [share["workers"] for share in told["shares"]] == [1, 2]
    assert set(told["validation_metrics"]) == {"accuracy"}
    assert text.stdout.startswith("checked on 1 to 2 workers\n")
    assert text.stdout.endswith("nothing would go wrong that this check can see\n")
    assert "loading" in text.stderr


@pytest.mark.parametrize(
    ("body", "place", "words"),
    [
        ("sys.exit(0)", "stdout", "raised SystemExit: 0"),
        ("return task(metrics={'mse': MeanSquaredError()})", "stdout", "metric 'mse' on a train batch"),
        ("import os; os._exit(0)", "stderr", "Error: the job's code ended the check without a word"),
        ("import os; os.kill(os.getpid(), 9)", "stderr", "Error: the job's code ended the check by SIGKILL"),
    ],
)
def test_what_fails_is_told_whatever_the_code_does(tmp_path: Path, body: str, place: str, words: str) -> None:
    write_job(tmp_path, body)

    done = run_check(tmp_path)

    assert done.returncode == 2
    assert words in getattr(done, place)
