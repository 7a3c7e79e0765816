"""What a user is told when the job's own code is at fault, on a real Ray cluster."""

from __future__ import annotations

import json

import pytest

from curvewatch_service.schemas import RunView
from ray_support import ServiceProcess

GOOD_PARTS = """
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset
from curvewatch_workers.task import TrainingTask

def make(train):
    model = nn.Linear(2, 2)
    return TrainingTask(
        model=model, train=train, validation=TensorDataset(torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64)),
        loss=nn.CrossEntropyLoss(), optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
    )
"""
JOBS = {
    # With more params than one environment variable can hold: the job must reach its workers another way.
    "raises": """
def build(words):
    settings = {}
    return make(settings[f"{len(words)} words have arrived"])
""",
    "breaks_later": """
class Broken(Dataset):
    def __len__(self):
        return 8
    def __getitem__(self, index):
        raise OSError(f"sample {index} cannot be read")

def build():
    return make(Broken())
""",
}
PARAMS: dict[str, dict[str, list[str]]] = {"raises": {"words": ["x" * 100] * 3000}}


@pytest.fixture(scope="module")
def failed(service: ServiceProcess, tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunView]:
    """Runs of jobs that cannot work, by name, all in the cluster at once."""
    run_ids = {}
    for name, code in JOBS.items():
        folder = tmp_path_factory.mktemp(name)
        (folder / "job_code.py").write_text(GOOD_PARTS + code)
        (folder / "job.yaml").write_text(
            f"name: {name}\ncode: {{task: 'job_code:build'}}\ntraining: {{epochs: 2, global_batch_size: 8}}\n"
            f"params: {json.dumps(PARAMS.get(name, {}))}\n"
        )
        run_ids[name] = service.submit(folder)
    return {name: service.wait_for_end(run_id) for name, run_id in run_ids.items()}


def test_a_callable_that_raises_shows_the_users_traceback_and_has_got_params_of_any_size(
    failed: dict[str, RunView],
) -> None:
    run = failed["raises"]

    assert run.state == "FAILED"
    assert run.reason == "job_code:build() raised KeyError: '3000 words have arrived'"
    assert run.traceback is not None
    assert "return make(settings[" in run.traceback
    assert "curvewatch_workers" not in run.traceback
    # It failed while the task was built: trying again would be the same.
    assert run.attempt <= 1


def test_what_breaks_twice_at_one_step_ends_the_run(failed: dict[str, RunView]) -> None:
    run = failed["breaks_later"]

    assert run.state == "FAILED"
    assert "failed twice at epoch 1, train step 1: OSError: sample" in run.reason
    assert run.traceback is not None
    assert "job_code.py" in run.traceback
    assert run.attempt == 2


def test_logs_of_a_failed_run_can_be_read(failed: dict[str, RunView], service: ServiceProcess) -> None:
    with service.client() as client:
        assert "3000 words have arrived" in client.logs(failed["raises"].run_id)
