from __future__ import annotations

from pathlib import Path

import pytest

from curvewatch_service.job_folder import read_job_folder
from curvewatch_workers.contract import SpecError

JOB = """\
name: digits
code: {{working_dir: {working_dir}, task: "{task}"}}
training: {{epochs: 3, global_batch_size: 8}}
"""


def write(folder: Path, *, working_dir: str = ".", task: str = "digits:build", **files: str) -> Path:
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path = path.with_name(path.name + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    job = folder / "job.yaml"
    job.write_text(JOB.format(working_dir=working_dir, task=task))
    return job


def problem_of(path: Path) -> str:
    with pytest.raises(SpecError) as caught:
        read_job_folder(path)
    (problem,) = caught.value.problems
    return str(problem)


def test_a_job_is_read_from_its_file_or_its_folder(tmp_path: Path) -> None:
    job = write(tmp_path, digits="def build(): ...")
    read = read_job_folder(tmp_path)
    assert read == read_job_folder(job)
    assert (read.path, read.code, read.text) == (job, tmp_path, job.read_text())
    assert read.spec.name == "digits"


def test_the_code_folder_is_relative_to_the_job_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "code", digits="def build(): ...")
    write(tmp_path, working_dir="code")
    monkeypatch.chdir("/")
    assert read_job_folder(tmp_path).code == tmp_path / "code"


@pytest.mark.parametrize(
    "source",
    [
        "def build(): ...",
        "async def build(): ...",
        "class build: ...",
        "build = make()",
        "build: Task = make()",
        "first, build = make()",
        "from models import build",
        "from models import other as build",
        "from models import *",
        "def __getattr__(name): ...",
        "try:\n    from fast import build\nexcept ImportError:\n    def build(): ...",
        "if FAST:\n    pass\nelse:\n    def build(): ...",
        "with setup():\n    build = 1",
    ],
)
def test_each_way_to_bind_a_name_is_seen(tmp_path: Path, source: str) -> None:
    write(tmp_path, digits=source)
    assert read_job_folder(tmp_path).spec.code.task == "digits:build"


def test_modules_of_packages_are_found_with_and_without_init(tmp_path: Path) -> None:
    write(tmp_path, task="jobs.vision.digits:build", jobs__vision__digits="def build(): ...")
    assert read_job_folder(tmp_path)
    write(tmp_path, task="package:build")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("def build(): ...")
    assert read_job_folder(tmp_path)


def test_the_code_is_not_run(tmp_path: Path) -> None:
    write(tmp_path, digits="import nowhere_to_be_found\nraise SystemExit\ndef build(): ...")
    assert read_job_folder(tmp_path)


def test_a_folder_that_is_not_there_is_told_with_where_it_was_looked_for(tmp_path: Path) -> None:
    job = write(tmp_path, working_dir="src")
    told = problem_of(job)
    assert told.startswith("code.working_dir: 'src' does not exist; name a folder, relative to the job file")
    assert str(tmp_path / "src") in told


def test_a_file_in_place_of_the_folder_is_told(tmp_path: Path) -> None:
    assert "'job.yaml' is a file; name a folder" in problem_of(write(tmp_path, working_dir="job.yaml"))


def test_a_misspelt_module_gets_a_suggestion(tmp_path: Path) -> None:
    told = problem_of(write(tmp_path, task="digit:build", digits="def build(): ...", other=""))
    assert told.startswith("code.task: there is no digit.py")
    assert told.endswith(f"did you mean 'digits'? (in {tmp_path})")


def test_an_unlike_module_gets_what_there_is(tmp_path: Path) -> None:
    told = problem_of(write(tmp_path, task="zzz:build", first="", second=""))
    assert f"found there: first, second (in {tmp_path})" in told


def test_an_empty_folder_is_told(tmp_path: Path) -> None:
    assert "it holds no Python file at all" in problem_of(write(tmp_path))


def test_a_module_of_an_installed_package_is_taken(tmp_path: Path) -> None:
    assert read_job_folder(write(tmp_path, task="curvewatch_service.anything:build")).code == tmp_path


def test_a_misspelt_callable_gets_a_suggestion(tmp_path: Path) -> None:
    told = problem_of(write(tmp_path, task="digits:biuld", digits="def build(): ...\ndef helper(): ..."))
    assert told == "code.task: digits.py has no 'biuld'; did you mean 'build'?"


def test_a_module_without_functions_is_told(tmp_path: Path) -> None:
    assert problem_of(write(tmp_path, digits="x = 1")).endswith("has no 'build'; it defines no function")


def test_a_module_that_is_not_python_is_told_with_its_line(tmp_path: Path) -> None:
    told = problem_of(write(tmp_path, digits="x = 1\ndef build(:\n"))
    assert "module 'digits' is not valid Python" in told
    assert "digits.py, line 2" in told


def test_a_job_file_with_several_mistakes_tells_all_of_them(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("name: digits\ntrainig: {}\ncode: {task: nonsense}\n")
    with pytest.raises(SpecError) as caught:
        read_job_folder(tmp_path)
    assert {problem.path for problem in caught.value.problems} == {"trainig", "training", "code.task"}


def test_a_folder_without_a_job_file_is_told(tmp_path: Path) -> None:
    assert "there is no such file; name a job.yaml or its folder" in problem_of(tmp_path)


def test_the_hint_names_modules_that_would_travel_only(tmp_path: Path) -> None:
    left_out = {".venv__lib__site_packages__digit": "", "__pycache__" + "/digitz": ""}
    write(tmp_path, task="digts:build", model="", **left_out)
    assert problem_of(tmp_path).startswith(
        "code.task: there is no digts.py or digts/__init__.py in the code folder; found there: model (in "
    )


def test_a_link_that_cannot_travel_is_told_before_anything_is_sent(tmp_path: Path) -> None:
    write(tmp_path, digits="def build(): ...")
    (tmp_path / "data").symlink_to(tmp_path.parent)
    assert "code.working_dir: " in problem_of(tmp_path)
    assert "is a link to a folder" in problem_of(tmp_path)
