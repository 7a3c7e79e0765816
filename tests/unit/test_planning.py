"""From a run to its job: pure, printable, complete."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from curvewatch_service.errors import CannotFitError
from curvewatch_service.planning import JobRequest, Resources, plan, require_fit
from curvewatch_service.settings import Settings
from curvewatch_service.store import Store
from curvewatch_workers.contract import WORKER_JOB_VARIABLE, ScalingSpec, WorkerJob
from store_support import between, database_url, job, new_run


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(database_url(tmp_path))
    yield opened
    opened.close()


def _variables(request: JobRequest) -> dict[str, str]:
    variables = request.runtime_env["env_vars"]
    assert isinstance(variables, dict)
    return {name: str(value) for name, value in variables.items()}


def test_the_plan_says_all_that_the_workers_need(store: Store, tmp_path: Path) -> None:
    settings = Settings(
        data_dir=tmp_path, worker_python="/opt/my python/bin/python", public_url="http://cw:8420"
    )
    run = new_run(store)
    request = plan(run, settings=settings)
    assert request.submission_id == "digits-1-1"
    assert request.entrypoint == "'/opt/my python/bin/python' -m curvewatch_workers.entrypoint"
    assert request.runtime_env["working_dir"] == str(tmp_path / "code" / f"{run.code_hash}.zip")
    assert isinstance(request.runtime_env["py_modules"], list)
    (package,) = request.runtime_env["py_modules"]
    assert (Path(str(package)) / "contract" / "__init__.py").is_file()
    assert _variables(request)[WORKER_JOB_VARIABLE] == str(tmp_path / "runs" / "digits-1" / "job-000001.json")
    assert request.worker_job == WorkerJob(
        run_id="digits-1",
        submission=1,
        spec=run.spec,
        storage_path=str(tmp_path / "runs"),
        service_url="http://cw:8420",
    )


def test_the_plan_can_be_printed_and_read_again(store: Store, tmp_path: Path) -> None:
    request = plan(new_run(store), settings=Settings(data_dir=tmp_path))
    printed = request.model_dump_json(indent=2)
    assert json.loads(printed)["submission_id"] == "digits-1-1"
    assert JobRequest.model_validate_json(printed) == request


def test_the_plan_of_a_later_submission_has_a_name_of_its_own(store: Store, tmp_path: Path) -> None:
    new_run(store)
    run = store.begin_submission("digits-1")
    assert run is not None
    settings = Settings(data_dir=tmp_path)
    assert plan(run, settings=settings).submission_id == run.submission_id == "digits-1-1"


def test_no_secret_is_planned(store: Store, tmp_path: Path) -> None:
    """Ray's dashboard shows all of it in clear."""
    settings = Settings(data_dir=tmp_path, database_url="postgresql://u:hunter2@db/cw")
    printed = plan(new_run(store), settings=settings).model_dump_json()
    assert "hunter2" not in printed
    assert "t" * 64 not in printed


def test_what_ray_is_told_does_not_grow_with_the_params(store: Store, tmp_path: Path) -> None:
    """Linux takes at most 128 KiB in one variable, and the job file may have a million bytes."""
    settings = Settings(data_dir=tmp_path)
    request = plan(new_run(store, params={"layers": ["x" * 100] * 5000}), settings=settings)
    assert request.worker_job is not None
    assert len(request.worker_job.model_dump_json()) > 500_000
    assert len(request.model_dump_json(exclude={"worker_job"})) < 2000


@pytest.mark.parametrize(
    ("scaling", "resources", "words"),
    [
        (ScalingSpec(workers=5), Resources(cpus=4), ["5 workers", "5 CPUs", "has 4", "scaling.workers"]),
        (
            ScalingSpec(workers=2, gpus_per_worker=1),
            Resources(cpus=16, gpus=1),
            ["2 workers", "2 GPUs", "has 1", "scaling.gpus_per_worker"],
        ),
        (
            ScalingSpec(workers=1, cpus_per_worker=6),
            Resources(cpus=8, largest_node_cpus=4),
            ["6 CPUs on one node", "has 4", "scaling.cpus_per_worker"],
        ),
        (
            between(5, 8),
            Resources(cpus=4),
            ["5 workers", "5 CPUs", "has 4", "lower scaling.workers.min"],
        ),
        (
            between(1, 8, gpus_per_worker=1),
            Resources(cpus=4),
            ["1 worker with 1 GPU", "has 0", "lower scaling.workers.min"],
        ),
    ],
)
def test_what_can_never_fit_is_refused_with_the_numbers(
    scaling: ScalingSpec, resources: Resources, words: list[str]
) -> None:
    with pytest.raises(CannotFitError) as refused:
        require_fit(job(scaling=scaling), resources)
    for word in [*words, "digits"]:
        assert word in str(refused.value)


def test_a_range_of_workers_fits_where_the_fewest_do(store: Store, tmp_path: Path) -> None:
    scaling = between(2, 64)

    require_fit(job(scaling=scaling), Resources(cpus=2))
    assert Resources(cpus=2).holds(job(scaling=scaling))
    assert not Resources(cpus=1.5).holds(job(scaling=scaling))
    # The workers are told the range, not a number.
    request = plan(new_run(store, scaling=scaling), settings=Settings(data_dir=tmp_path))
    again = JobRequest.model_validate_json(request.model_dump_json()).worker_job
    assert again is not None
    assert again.spec.scaling == scaling


def test_what_fits_exactly_is_taken() -> None:
    require_fit(job(scaling=ScalingSpec(workers=4)), Resources(cpus=4, largest_node_cpus=1))
