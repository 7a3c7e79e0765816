"""The command line against the real API; only the cluster is a stand-in."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from api_support import ServedApi, serve_api
from cli_support import Result, Shell
from curvewatch_service.profile import write_profile
from curvewatch_service.runs import RunState
from curvewatch_workers.contract import Profile
from ray_support import free_port
from store_support import attempt_message, epoch_message

JOB = """\
name: digits
code: {task: "digits:build"}
training: {epochs: 10, global_batch_size: 32}
"""
HELP_SECONDS = 0.7
"""Processor time that `--help` may take; what else the machine does is not counted."""


@pytest.fixture(autouse=True)
def own_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CURVEWATCH_PROFILE", str(tmp_path / "profile.json"))
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    return Shell(capsys, monkeypatch)


@pytest.fixture
def api(tmp_path: Path) -> Iterator[ServedApi]:
    with serve_api(tmp_path / "service") as served:
        write_profile(Profile(server=served.url, token=served.token))
        yield served


@pytest.fixture
def job(tmp_path: Path) -> Path:
    folder = tmp_path / "job"
    folder.mkdir()
    (folder / "digits.py").write_text("def build(): ...\n")
    (folder / "job.yaml").write_text(JOB)
    return folder


def train(api: ServedApi, run_id: str, epochs: int, *, end: RunState | None = None, reason: str = "") -> None:
    """Let a run train so many epochs, and end if told so."""
    store = api.services.store
    if store.run(run_id).state is RunState.QUEUED:
        store.begin_submission(run_id)
    store.ingest(
        run_id, [attempt_message(1), *(epoch_message(epoch, run_id=run_id) for epoch in range(1, epochs + 1))]
    )
    if end is not None:
        assert store.transition(run_id, end, expected=[RunState.RUNNING], reason=reason, message=reason)


def test_help_answers_at_once_and_loads_nothing_heavy() -> None:
    def help_seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "curvewatch_service.cli", "--help"]
        subprocess.run(command, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(help_seconds() for _ in range(3)) < HELP_SECONDS
    heavy = ("ray", "sqlalchemy", "plotly", "plotext", "fastapi", "httpx", "pydantic", "torch")
    source = (
        f"import sys, curvewatch_service.cli; sys.exit(', '.join(set(sys.modules) & set({heavy!r})) or 0)"
    )
    subprocess.run([sys.executable, "-c", source], check=True)


def test_a_job_is_submitted_from_its_folder(shell: Shell, api: ServedApi, job: Path) -> None:
    result = shell("submit", job)
    (run,) = api.services.store.runs()
    assert result.code == 0
    assert f"Submitted {run.run_id}" in result.out
    assert f"{api.url}/runs/{run.run_id}" in result.out
    assert (run.name, run.owner, run.state) == ("digits", "ada", RunState.QUEUED)


def test_a_submitted_job_is_json_when_asked(shell: Shell, api: ServedApi, job: Path) -> None:
    result = shell("submit", job / "job.yaml", "--json")
    assert json.loads(result.out)["run_id"] == api.services.store.runs()[0].run_id


def test_a_dry_run_shows_the_plan_and_needs_no_service(shell: Shell, job: Path) -> None:
    result = shell("submit", job, "--dry-run")
    assert result.code == 0
    assert "nothing was submitted" in result.out
    assert "digits: 10 epochs, global batches of 32, on 1 worker with 1 CPU" in result.out
    plan = json.loads(shell("submit", job, "--dry-run", "--json").out)
    assert plan["entrypoint"].endswith("-m curvewatch_workers.entrypoint")
    assert plan["worker_job"]["spec"]["name"] == "digits"


def test_lists_and_details_of_runs(shell: Shell, api: ServedApi, job: Path) -> None:
    assert "Submit one: curvewatch submit job.yaml" in shell("runs").out
    shell("submit", job)
    (run,) = api.services.store.runs()
    train(api, run.run_id, 10, end=RunState.SUCCEEDED, reason="all 10 epochs are done")
    assert shell("runs").out.splitlines()[1].split()[:4] == [run.run_id, "SUCCEEDED", "10/10", "0.1010"]
    assert json.loads(shell("runs", "--json").out)["total"] == 1
    assert "No runs in this state" in shell("runs", "--state", "failed").out
    shown = shell("show", "latest").out
    for part in ("loss by epoch", "Verdict: ", "RECEIPT", "Events", "state_succeeded"):
        assert part in shown
    assert "\x1b" not in shown
    document = json.loads(shell("show", run.run_id[:8], "--json").out)
    assert len(document["epochs"]) == document["run"]["epoch"] == 10
    assert document["events"][0]["reason"] == "state_queued"


def test_logs_pass_without_control_codes(shell: Shell, api: ServedApi, job: Path) -> None:
    shell("submit", job)
    run_id = api.services.store.runs()[0].run_id
    assert "has written nothing yet" in shell("logs", "latest").err
    train(api, run_id, 1)
    api.cluster.texts[f"{run_id}-1"] = "\x1b[31mred\x1b[0m [bold]as it is[/]\x1b[2J\nsecond line\n"
    assert shell("logs", "latest").out == "red [bold]as it is[/]\nsecond line\n"


def test_there_is_nothing_to_stop_in_a_run_that_has_ended(shell: Shell, api: ServedApi, job: Path) -> None:
    shell("submit", job)
    run_id = api.services.store.runs()[0].run_id
    train(api, run_id, 1, end=RunState.FAILED, reason="its code raised")
    refused = shell("stop", "latest")
    assert refused.code == 2
    assert f"{run_id} has ended already, FAILED: its code raised; there is nothing to stop" in refused.err


def test_stop_ends_a_queued_run_and_says_so(shell: Shell, api: ServedApi, job: Path) -> None:
    shell("submit", job)
    result = shell("stop", "latest")
    assert result.code == 0
    assert "is STOPPED: ada asked it to stop" in result.out
    assert api.services.store.runs()[0].state is RunState.STOPPED
    # Watching a run that was stopped on purpose is no failure.
    assert shell("watch", "latest").code == 0


@pytest.mark.parametrize(
    ("end", "code"),
    [(RunState.SUCCEEDED, 0), (RunState.STOPPED, 0), (RunState.FAILED, 1), (RunState.LOST, 1)],
)
def test_watch_ends_as_the_run_ends(
    shell: Shell, api: ServedApi, job: Path, end: RunState, code: int
) -> None:
    shell("submit", job)
    run_id = api.services.store.runs()[0].run_id

    def story() -> None:
        for epochs in (1, 2, 10):
            train(api, run_id, epochs)
        train(api, run_id, 10, end=end, reason="this is how it ended")

    thread = threading.Thread(target=story)
    thread.start()
    result = shell("watch", run_id)
    thread.join()
    assert result.code == code
    lines = result.out.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("epoch ")] == [
        f"{n}/10" for n in range(1, 11)
    ]
    assert f"{run_id} {end.label}: this is how it ended" in lines
    assert "loss by epoch" in result.out
    assert "Verdict: " in result.out
    assert "\x1b" not in result.out


def test_watch_as_json_lines_is_all_json(shell: Shell, api: ServedApi, job: Path) -> None:
    shell("submit", job)
    train(api, api.services.store.runs()[0].run_id, 3, end=RunState.SUCCEEDED)
    kinds = [json.loads(line)["kind"] for line in shell("watch", "latest", "--json").out.splitlines()]
    assert kinds == ["epoch"] * 3 + ["state", "end"]


def spawn(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "curvewatch_service.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_an_interrupt_ends_the_watching_and_not_the_run(shell: Shell, api: ServedApi, job: Path) -> None:
    shell("submit", job)
    run_id = api.services.store.runs()[0].run_id
    train(api, run_id, 2)
    with spawn("watch", run_id) as watching:
        assert watching.stdout is not None
        # The second epoch's line shows that it watches.
        assert any(line.startswith("epoch 2/10") for line in iter(watching.stdout.readline, ""))
        watching.send_signal(signal.SIGINT)
        _, err = watching.communicate(timeout=20)
    assert watching.returncode == 130
    assert f"No longer watching; {run_id} goes on." in err
    assert "Traceback" not in err
    assert api.services.store.run(run_id).state is RunState.RUNNING


def test_a_reader_that_has_seen_enough_is_no_error(shell: Shell, api: ServedApi, job: Path) -> None:
    shell("submit", job)
    train(api, api.services.store.runs()[0].run_id, 10, end=RunState.SUCCEEDED)
    with spawn("show", "latest", "--json") as shown:
        assert shown.stdout is not None
        assert shown.stderr is not None
        shown.stdout.close()
        assert shown.stderr.read() == ""
        shown.wait(timeout=20)


def told(result: Result, *words: str) -> bool:
    """Tell whether a mistake was told as one: exit code 2, these words, and no stack trace."""
    assert result.code == 2
    assert "Traceback" not in result.err
    assert result.out == ""
    assert all(word in result.err for word in words), result.err
    return True


def test_a_wrong_job_file_tells_every_mistake_at_once(shell: Shell, job: Path) -> None:
    (job / "job.yaml").write_text('name: "a\\u0007b"\ncode: {task: digits}\ntraining: {epoch: 3}\n')
    result = shell("submit", job)
    assert told(result, "5 problems", "training.epoch: unknown field; did you mean `epochs`?")
    assert told(result, "training.global_batch_size: is required", "code.task: ", "name: ")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("? [a, b]\n: 1", "a key must be plain text"),
        ("name: !!bool foo", "`foo` is no bool"),
        ("epochs: 0x" + "f" * 6000, "epochs: a whole number may have 1000 bits"),
        ('{"name": "\\ud83d"}', "name: holds half of a character"),
        ('{"\\ud83d": 1}', "\\ud83d: holds half of a character"),
    ],
)
def test_a_job_file_that_cannot_be_read_is_told(shell: Shell, job: Path, text: str, words: str) -> None:
    (job / "job.yaml").write_text(text)
    assert told(shell("submit", job), "job.yaml: 1 problem", words)


@pytest.mark.usefixtures("api")
@pytest.mark.parametrize(
    "arguments", [["watch", "nobody"], ["show", "nobody"], ["stop", "nobody"], ["logs", "no"]]
)
def test_an_unknown_run_is_told(shell: Shell, arguments: Sequence[str]) -> None:
    assert told(shell(*arguments), "no run is called", "`curvewatch runs` lists them")


def test_a_wrong_token_is_told(shell: Shell, api: ServedApi, job: Path) -> None:
    assert told(
        shell("submit", job, "--server", api.url, "--token", "cw_wrong"), "token is not one of this service's"
    )


@pytest.mark.usefixtures("api")
def test_the_profile_s_token_is_not_sent_to_another_service(shell: Shell) -> None:
    assert told(shell("runs", "--server", "http://127.0.0.1:9"), "the profile's token is for", "--token")


def test_a_service_that_is_away_is_told(shell: Shell) -> None:
    write_profile(Profile(server="http://127.0.0.1:9", token="cw_any"))
    assert told(shell("runs"), "no Curvewatch service answers at http://127.0.0.1:9", "curvewatch serve")


def test_no_profile_is_told(shell: Shell) -> None:
    assert told(shell("runs"), "there is no profile at", "curvewatch serve")


@pytest.mark.parametrize("server", ["localhost:8420", "ftp://x", "http://[broken"])
def test_an_address_that_is_none_is_told(shell: Shell, server: str) -> None:
    assert told(shell("runs", "--server", server, "--token", "cw_any"), server)


@pytest.mark.usefixtures("api")
def test_a_job_too_large_for_the_cluster_is_told_with_both_numbers(shell: Shell, job: Path) -> None:
    (job / "job.yaml").write_text(JOB + "scaling: {workers: 99}\n")
    assert told(shell("submit", job), "99 workers", "the cluster has 4", "lower scaling.workers")


def test_code_that_is_too_large_is_told(shell: Shell, tmp_path: Path, job: Path) -> None:
    (job / "weights.bin").write_bytes(os.urandom(300_000))
    with serve_api(tmp_path / "small", max_code_bytes=100_000) as small:
        assert told(shell("submit", job, "--server", small.url, "--token", small.token), "limit is 100000")


@pytest.mark.usefixtures("api")
def test_a_state_that_is_none_is_told_with_those_that_are(shell: Shell) -> None:
    assert told(shell("runs", "--state", "dancing"), "there is no state 'dancing'", "QUEUED")


def test_the_schema_describes_every_field(shell: Shell) -> None:
    schema = json.loads(shell("schema").out)
    assert set(schema["required"]) == {"name", "code", "training"}
    parts = [schema, *schema["$defs"].values()]
    fields = [(name, field) for part in parts for name, field in part.get("properties", {}).items()]
    assert len(fields) > 20
    assert [name for name, field in fields if not field.get("description")] == []


def test_the_version_is_that_of_the_package(shell: Shell) -> None:
    assert shell("version").out == shell("--version").out
    assert shell("version").out.startswith("curvewatch 0.")


@pytest.mark.parametrize("data_dir", ["/proc/curvewatch", "/etc/passwd"])
def test_a_data_folder_that_cannot_be_is_refused_in_a_sentence(shell: Shell, data_dir: str) -> None:
    refused = shell("serve", "--data-dir", data_dir)
    assert refused.code == 2
    assert data_dir in refused.err
    assert "CURVEWATCH_DATA_DIR" in refused.err


@pytest.mark.parametrize(
    "url",
    [
        "s3cret",
        "nosuchkind://ada:s3cret@127.0.0.1/x",
        "postgresql://ada:s3cret@127.0.0.1/x",
        "postgresql://ada:s3cret@127.0.0.1:port/x",
        "sqlite:////proc/s3cret/y.db",
    ],
)
def test_a_database_that_cannot_be_opened_is_refused_without_its_password(
    shell: Shell, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CURVEWATCH_DATABASE_URL", url)
    refused = shell("serve", "--data-dir", tmp_path / "data", "--port", str(free_port()))
    assert refused.code == 2
    assert "CURVEWATCH_DATABASE_URL" in refused.err
    assert "s3cret@" not in refused.err


def test_an_address_that_is_none_is_refused_in_a_sentence(shell: Shell) -> None:
    refused = shell("runs", "--server", "http://[::1", "--token", "cw_a")
    assert refused.code == 2
    assert "http://[::1" in refused.err
    assert "http://127.0.0.1:8420" in refused.err


def test_a_file_that_cannot_travel_is_named(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(JOB)
    (tmp_path / "digits.py").write_text("def build(): ...\n")
    stray = tmp_path / os.fsdecode(b"\xff.txt")
    stray.write_text("x")
    refused = shell("submit", tmp_path, "--dry-run")
    assert refused.code == 2
    assert "\\xff.txt" in refused.err
    stray.unlink()
    # Even root cannot read this one from its beginning.
    (tmp_path / "memory.bin").symlink_to("/proc/self/mem")
    refused = shell("submit", tmp_path, "--dry-run")
    assert refused.code == 2
    assert "memory.bin cannot be read" in refused.err
