"""Trainers outside of a cluster that report to a real service: what they tell, what they keep, how they end."""

from __future__ import annotations

import atexit
import json
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("KERAS_BACKEND", "torch")
import httpx
import keras
import lightning.pytorch as pl
from torch.utils.data import DataLoader

from api_support import ServedApi, serve_api
from cli_support import Shell
from curvewatch_service.reconcile import Reconciler
from curvewatch_service.runs import RunState
from curvewatch_service.store import Run
from curvewatch_workers.contract import MOST_EPOCHS, Control, IngestMessage
from curvewatch_workers.errors import HookError
from curvewatch_workers.hooks import keras as keras_hook
from curvewatch_workers.hooks import lightning as lightning_hook
from curvewatch_workers.hooks import reported_run
from curvewatch_workers.hooks import transformers as transformers_hook
from curvewatch_workers.hooks.curve_feed import CurveFeed
from curvewatch_workers.hooks.curve_file import Row
from curvewatch_workers.reporter import HttpPost, Refused, SpoolingReporter
from hook_support import make_datasets
from ray_support import free_port
from unit.test_hook_keras import fit
from unit.test_hook_lightning import Classifier
from unit.test_hook_transformers import make_trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*(bottleneck|isn't supported|TreeSpec|log|is not empty).*"),
]
ROWS = [Row(at=n, train=1 / n, validation=1 / n + 0.1, accuracy=0.5, learning_rate=0.1) for n in range(1, 9)]
SCRIPT = """
import os, signal, sys
from pathlib import Path
from curvewatch_workers.hooks.curve_feed import CurveFeed
from curvewatch_workers.hooks.curve_file import Row

feed = CurveFeed("keras", "curve.csv", run="net")
feed.begin(0, planned=8)
for n in (1, 2, 3):
    feed.add(Row(at=n, train=1 / n, validation=1 / n + 0.1, accuracy=0.5, learning_rate=0.1))
if sys.argv[1] == "raise":
    raise ZeroDivisionError("the data has run out")
if sys.argv[1] == "kill":
    spools = list(Path("curvewatch-runs").glob("*/spool/*.jsonl"))
    while spools[0].read_text().count("\\n") < 4:
        pass
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[1] == "interrupt":
    raise KeyboardInterrupt
"""


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServedApi]:
    with serve_api(tmp_path / "service") as served:
        name_service(monkeypatch, served.url, served.token)
        yield served


def name_service(monkeypatch: pytest.MonkeyPatch, url: str, token: str) -> None:
    monkeypatch.setenv("CURVEWATCH_SERVER", url)
    monkeypatch.setenv("CURVEWATCH_TOKEN", token)


def the_run(api: ServedApi) -> Run:
    """Return the only run, after a look of the reconciler."""
    Reconciler(api.services.store, api.cluster, api.services.settings).step()
    (run,) = api.services.store.runs()
    return run


def losses(api: ServedApi, run: Run) -> list[tuple[float, float]]:
    return [(record.train.loss, record.validation.loss) for record in api.services.store.epochs(run.run_id)]


def test_a_keras_training_is_a_run_with_the_numbers_of_keras(api: ServedApi, tmp_path: Path) -> None:
    callback = keras_hook.CurvewatchCallback(tmp_path / "curve.csv", stop=True, run="net")
    history = fit(callback, epochs=60)
    run = the_run(api)
    assert losses(api, run) == list(zip(history["loss"], history["val_loss"], strict=True))
    told = [record.validation.metric_values["accuracy"] for record in api.services.store.epochs(run.run_id)]
    assert told == history["val_accuracy"]
    assert (run.state, run.spec.training.epochs, run.world_size) == (RunState.SUCCEEDED, 60, 1)
    assert run.diagnosis is not None
    assert run.diagnosis["verdict"] == callback.diagnosis.verdict
    assert (
        run.reason
        == f"stopped by the verdict {callback.diagnosis.verdict} after epoch {len(history['loss'])}"
    )
    events = {event.reason: event.message for event in api.services.store.events(run.run_id)}
    assert "the means that keras reports" in events["means_of_framework"]


def test_a_stop_at_the_service_ends_the_training(api: ServedApi) -> None:
    def stop(epoch: int, logs: object) -> None:  # noqa: ARG001 - Keras names it
        if epoch == 2:
            api.services.store.stop(api.services.store.runs()[0].run_id, actor="ada")

    callback = keras_hook.CurvewatchCallback(run="net")
    stopping = keras.callbacks.LambdaCallback(on_epoch_end=stop)
    history = fit(callback, stopping, epochs=100_000)
    run = the_run(api)
    assert (run.state, run.reason) == (RunState.STOPPED, "stopped on request")
    assert 3 <= len(history["loss"]) == run.epoch < 100_000


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def make_lightning(**options: int) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[lightning_hook.CurvewatchCallback(run="net")],
        **options,
    )


def test_lightning_tells_what_has_ended_it(api: ServedApi) -> None:
    class Failing(Classifier):
        def on_train_epoch_start(self) -> None:
            if self.current_epoch == 3:
                raise ZeroDivisionError("the data has run out")

    train, validation = make_datasets(healthy=True)
    trainer = make_lightning(max_epochs=9)
    with pytest.raises(ZeroDivisionError):
        trainer.fit(Failing(healthy=True), DataLoader(train, 64), DataLoader(validation, 64))
    run = the_run(api)
    assert (run.state, run.epoch, run.spec.training.epochs) == (RunState.FAILED, 3, 9)
    assert run.reason == "ZeroDivisionError: the data has run out"
    assert run.traceback is not None
    assert "on_train_epoch_start" in run.traceback


def test_hugging_face_reports_its_evaluations(api: ServedApi, tmp_path: Path) -> None:
    trainer = make_trainer(transformers_hook.CurvewatchCallback(run="net"), tmp_path, healthy=True, epochs=3)
    trainer.train()
    run = the_run(api)
    assert (run.state, run.epoch, run.spec.training.epochs) == (RunState.SUCCEEDED, 3, 3)
    wanted = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert [validation for _, validation in losses(api, run)] == wanted


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"eval_delay": 3, "save_strategy": "epoch"}, 6),
        (
            {
                "eval_strategy": "steps",
                "eval_steps": 2,
                "logging_strategy": "steps",
                "logging_steps": 1,
                "eval_delay": 5,
                "save_strategy": "steps",
                "save_steps": 12,
            },
            10,
        ),
    ],
    ids=["epochs", "steps"],
)
def test_hugging_face_counts_the_evaluations_that_there_are(
    options: dict[str, Any], count: int, api: ServedApi, tmp_path: Path
) -> None:
    """Three steps an epoch; then the same from a checkpoint, as a new run with the curve so far."""
    callback = transformers_hook.CurvewatchCallback(tmp_path / "curve.csv", run="net")
    make_trainer(callback, tmp_path, epochs=8, **options).train()
    again = transformers_hook.CurvewatchCallback(run="net")
    make_trainer(again, tmp_path, epochs=8, **options).train(
        resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-12")
    )

    Reconciler(api.services.store, api.cluster, api.services.settings).step()
    for run, hook in zip(api.services.store.runs(), (again, callback), strict=True):
        assert (run.epoch, run.spec.training.epochs, len(losses(api, run))) == (count, count, count)
        assert run.diagnosis is not None
        assert run.diagnosis["verdict"] == hook.diagnosis.verdict != "too_early"
    first, second = (
        [loss for pair in losses(api, run) for loss in pair] for run in api.services.store.runs()
    )
    assert first == pytest.approx(second)


def test_a_training_that_goes_on_from_nobody_knows_where_has_its_curve(api: ServedApi) -> None:
    callback = keras_hook.CurvewatchCallback(run="net")
    history = fit(callback, epochs=14, initial_epoch=6)

    run = the_run(api)
    assert (run.epoch, run.spec.training.epochs) == (8, 8)
    assert [validation for _, validation in losses(api, run)] == history["val_loss"]
    assert run.diagnosis is not None
    assert run.diagnosis["verdict"] == callback.diagnosis.verdict != "too_early"


def test_what_was_unknown_once_stays_so_in_a_later_attempt(api: ServedApi) -> None:
    report(*ROWS[4:6], after=4, ends=False)
    report(*ROWS[6:7], after=6)
    run = the_run(api)
    assert (run.attempt, run.epoch, run.state) == (2, 3, RunState.SUCCEEDED)
    assert losses(api, run) == [(row.train, row.validation) for row in ROWS[4:7]]


def test_what_goes_on_for_more_epochs_is_planned_anew(api: ServedApi) -> None:
    report(*ROWS[:2], ends=False)
    feed = CurveFeed("keras", None, run="net")
    feed.begin(2, planned=20, processes=2)
    feed.end("")
    run = the_run(api)
    assert (run.attempt, run.name, run.spec.training.epochs, run.world_size) == (2, "net", 20, 2)


def test_a_run_that_cannot_be_sent_costs_the_others_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reported_run, "_FLUSH_SECONDS", 0.2)
    name_service(monkeypatch, f"http://127.0.0.1:{free_port()}", "cw_anything")
    for file in ("a", "b"):
        report(*ROWS[:2], file=tmp_path / file)
    (tmp_path / "curvewatch-runs" / "aaa").mkdir()
    (tmp_path / "curvewatch-runs" / "aaa" / "reported.json").write_text("{")
    shell = Shell(capsys, monkeypatch)
    with serve_api(tmp_path / "service") as api:
        name_service(monkeypatch, api.url, api.token)
        away, state = sorted((tmp_path / "curvewatch-runs").glob("net-*/reported.json"))
        state.write_text(json.dumps(json.loads(state.read_text()) | {"server": api.url}))
        sent = shell("send", "--json")
        assert sent.code == 2
        assert json.loads(sent.out)["run_id"] == state.parent.name
        assert f"Error: {away.parent.name}: the profile's token is for {api.url}, not for" in sent.err
        assert "aaa/reported.json cannot be read" in sent.err
        assert [run.run_id for run in api.services.store.runs()] == [state.parent.name]


def test_a_training_from_before_what_a_run_is_about_is_another_run(api: ServedApi) -> None:
    report(*ROWS[4:6], after=4, ends=False)
    report(*ROWS[2:6], after=2)
    newest, *_ = api.services.store.runs()
    assert (newest.attempt, newest.epoch) == (1, 4)


def test_lightning_plans_the_epochs_that_it_validates(api: ServedApi) -> None:
    train, validation = make_datasets(healthy=True)
    trainer = make_lightning(max_epochs=5, check_val_every_n_epoch=2)
    trainer.fit(Classifier(healthy=True), DataLoader(train, 64), DataLoader(validation, 128))

    run = the_run(api)
    assert (run.epoch, run.spec.training.epochs) == (2, 2)


def test_epochs_beyond_all_reason_are_an_open_end(api: ServedApi) -> None:
    feed = CurveFeed("keras", None, run="net")
    feed.begin(0, planned=10**9)
    feed.add(ROWS[0])
    feed.end("")
    assert (the_run(api).epoch, the_run(api).spec.training.epochs) == (1, MOST_EPOCHS)


def test_a_trainer_that_had_to_go_on_after_the_advice_to_stop_has_finished(api: ServedApi) -> None:
    feed = CurveFeed("keras", None, run="net", stop_on="overfitting")
    feed.begin(0)
    rises = [(0.9, 0.9), (0.5, 0.5), (0.3, 0.9), (0.2, 1.3), (0.1, 1.8), (0.05, 2.4)]
    stops = [feed.add(Row(at=at, train=one, validation=two)) for at, (one, two) in enumerate(rises, 1)]
    assert stops[-1]
    assert not feed.add(Row(at=7, train=0.05, validation=0.4))
    feed.end("")
    assert the_run(api).reason == "the training has finished"


def report(*rows: Row, after: int = 0, ends: bool = True, file: Path | None = None) -> CurveFeed:
    feed = CurveFeed("keras", file, run="net")
    feed.begin(after, planned=8)
    for row in rows:
        feed.add(row)
    if ends:
        feed.end("")
    return feed


def run_script(how: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SCRIPT, how]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("how", "state", "reason"),
    [
        ("raise", RunState.FAILED, "ZeroDivisionError: the data has run out"),
        ("interrupt", RunState.STOPPED, "interrupted"),
        ("return", RunState.FAILED, "RuntimeError: the program ended before the training did"),
    ],
)
def test_a_program_that_ends_in_the_middle_says_how(
    api: ServedApi, tmp_path: Path, how: str, state: RunState, reason: str
) -> None:
    run_script(how, tmp_path)
    run = the_run(api)
    assert (run.state, run.reason, run.epoch) == (state, reason, 3)


def test_a_killed_training_goes_on_as_the_same_run(api: ServedApi, tmp_path: Path) -> None:
    assert run_script("kill", tmp_path).returncode == -signal.SIGKILL
    report(*ROWS[2:5], after=2, file=tmp_path / "curve.csv")
    run = the_run(api)
    assert (run.state, run.attempt, run.epoch) == (RunState.SUCCEEDED, 2, 5)
    assert losses(api, run) == [(row.train, row.validation) for row in ROWS[:5]]
    assert "after epoch 2" in next(
        event.message for event in api.services.store.events(run.run_id) if event.reason == "worker_restart"
    )


def test_what_goes_on_after_its_end_is_a_new_run_with_the_curve_so_far(
    api: ServedApi, tmp_path: Path
) -> None:
    report(*ROWS[:3], file=tmp_path / "curve.csv")
    first = the_run(api)
    report(*ROWS[3:5], after=3, file=tmp_path / "curve.csv")
    Reconciler(api.services.store, api.cluster, api.services.settings).step()
    newest, before = api.services.store.runs()
    assert before.run_id == first.run_id
    assert (newest.attempt, newest.epoch, newest.state) == (1, 5, RunState.SUCCEEDED)
    assert losses(api, newest) == [(row.train, row.validation) for row in ROWS[:5]]


def test_a_run_that_the_service_has_ended_goes_on_as_a_new_one(api: ServedApi, tmp_path: Path) -> None:
    run_script("kill", tmp_path)
    left = the_run(api)
    api.services.store.transition(left.run_id, RunState.LOST, expected=set(RunState), reason="x", message="x")
    report(*ROWS[2:5], after=2, file=tmp_path / "curve.csv")
    assert api.services.store.run(left.run_id).attempt <= 1
    newest = api.services.store.runs()[0]
    assert losses(api, newest) == [(row.train, row.validation) for row in ROWS[:5]]


def test_a_service_that_is_away_costs_nothing_and_gets_all_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reported_run, "_FLUSH_SECONDS", 0.2)
    name_service(monkeypatch, f"http://127.0.0.1:{free_port()}", "cw_anything")
    report(*ROWS[:4])
    shell = Shell(capsys, monkeypatch)
    assert "no Curvewatch service answers" in shell("send").err
    with serve_api(tmp_path / "service") as api:
        name_service(monkeypatch, api.url, api.token)
        (state,) = (tmp_path / "curvewatch-runs").glob("*/reported.json")
        # The service is where it was thought to be: tests cannot start it at a port that is known beforehand.
        state.write_text(json.dumps(json.loads(state.read_text()) | {"server": api.url}))
        sent = shell("send", "--json")
        assert json.loads(sent.out)["messages"] == 6, sent.err
        run = the_run(api)
        assert (run.state, run.epoch) == (RunState.SUCCEEDED, 4)
        assert losses(api, run) == [(row.train, row.validation) for row in ROWS[:4]]
        assert shell("send").code == 0
        assert len(api.services.store.runs()) == 1


def test_what_is_kept_is_for_the_user_alone(api: ServedApi, tmp_path: Path) -> None:
    report(*ROWS[:1])
    (state,) = (tmp_path / "curvewatch-runs").glob("*/reported.json")
    assert stat.S_IMODE(state.stat().st_mode) == 0o600
    kept = json.loads(state.read_text())
    assert kept["ended"]
    assert (tmp_path / "curvewatch-runs" / ".gitignore").read_text() == "*\n"
    assert api.token not in state.read_text()


@pytest.mark.usefixtures("api")
def test_a_wrong_token_is_told_before_anything_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CURVEWATCH_TOKEN", "cw_wrong")
    with pytest.raises(HookError, match="does not take the run: the token is not one of this service's"):
        report()


def test_without_a_profile_it_is_said_where_one_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CURVEWATCH_PROFILE", "/nowhere/profile.json")
    with pytest.raises(HookError, match=r"no profile at /nowhere.*CURVEWATCH_SERVER"):
        report()
    monkeypatch.setenv("CURVEWATCH_SERVER", "http://127.0.0.1:1")
    with pytest.raises(HookError, match="CURVEWATCH_TOKEN is not"):
        report()


@pytest.mark.parametrize("name", ["", "a b", "x" * 64, "../x"])
@pytest.mark.usefixtures("api")
def test_a_name_that_no_run_can_have_is_refused(name: str) -> None:
    with pytest.raises(HookError, match="a run's name is letters"):
        CurveFeed("keras", None, run=name).begin(0)


def test_other_ranks_tell_nothing(api: ServedApi) -> None:
    feed = CurveFeed("keras", None, run="net")
    feed.begin(0, leads=False, processes=2)
    feed.add(ROWS[0])
    feed.end("")
    assert not api.services.store.runs()


def test_a_folder_without_runs_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result = Shell(capsys, monkeypatch)("send", tmp_path)
    assert result.code == 2
    assert "no run of a callback" in " ".join(result.err.replace("│", " ").split())


def test_the_command_line_shows_what_trains_it(
    api: ServedApi, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report(*ROWS)
    shell = Shell(capsys, monkeypatch)
    shown = shell("show", the_run(api).run_id).out.splitlines()
    begins = ("processes", "epoch ", "state")
    facts = dict(line.strip().split(maxsplit=1) for line in shown if line.startswith(begins))
    assert facts["processes"] == "1"
    assert facts["epoch"] == "8 of 8"
    assert facts["state"].startswith("SUCCEEDED")
    assert any(line.split() == ["trained", "by", "keras"] for line in shown)
    assert not any(line.startswith(("code", "workers", "Ray job")) for line in shown)


def test_each_message_is_kept_once_however_often_the_training_goes_on(api: ServedApi, tmp_path: Path) -> None:
    file = tmp_path / "curve.csv"
    for after in range(4):
        feed = report(ROWS[after], after=after, file=file, ends=False)
        abandon(feed)
    report(ROWS[4], after=4, file=file)
    run = the_run(api)
    assert (run.attempt, run.epoch) == (5, 5)
    kept = [
        line for path in tmp_path.glob("curvewatch-runs/*/spool/*") for line in path.read_bytes().splitlines()
    ]
    assert len(kept) == len(set(kept)) == 5 + 5 + 1  # starts, epochs and the end


def test_an_epoch_that_a_crash_kept_from_the_disk_comes_from_the_curve(
    api: ServedApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "curve.csv"
    with monkeypatch.context() as crash:
        crash.setattr(SpoolingReporter, "send", lambda *_: None)
        abandon(report(*ROWS[:3], file=file, ends=False))
    report(ROWS[3], after=3, file=file)
    run = the_run(api)
    assert run.attempt == 2
    assert losses(api, run) == [(row.train, row.validation) for row in ROWS[:4]]


def test_a_fork_does_not_end_the_run_of_its_parent(api: ServedApi, tmp_path: Path) -> None:
    feed = report(*ROWS[:2], ends=False)
    child = os.fork()
    if child == 0:
        try:
            feed.end("")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    (state,) = tmp_path.glob("curvewatch-runs/*/reported.json")
    assert not json.loads(state.read_text())["ended"]
    feed.add(ROWS[2])
    feed.end("all done")
    run = the_run(api)
    assert (run.state, run.epoch) == (RunState.SUCCEEDED, 3)


def test_a_training_whose_end_was_told_is_not_gone_on_with_when_it_is_killed_in_the_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name_service(monkeypatch, f"http://127.0.0.1:{free_port()}", "cw_anything")
    seen: list[bool] = []

    def look(_: object) -> None:
        (state,) = tmp_path.glob("curvewatch-runs/*/reported.json")
        seen.append(json.loads(state.read_text())["ended"])

    monkeypatch.setattr(SpoolingReporter, "close", look)
    report(ROWS[0])
    assert seen == [True]


def test_an_earlier_process_takes_nothing_back_from_the_one_that_went_on(
    api: ServedApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "curve.csv"
    with monkeypatch.context() as short:
        short.setattr(reported_run, "_FLUSH_SECONDS", 0.2)
        before = report(*ROWS[:2], file=file, ends=False)
    after = report(ROWS[2], after=2, file=file, ends=False)
    before.end("")
    (path,) = tmp_path.glob("curvewatch-runs/*/reported.json")
    state = json.loads(path.read_text())
    assert (state["attempt"], state["ended"]) == (2, False)
    after.end("")
    assert (the_run(api).state, the_run(api).epoch) == (RunState.SUCCEEDED, 3)


@pytest.mark.parametrize("url", ["http://", "http://x..y", "http://h:99999", "http://[::1"])
def test_an_address_that_is_none_is_told_before_anything_is_trained(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name_service(monkeypatch, url, "cw_anything")
    with pytest.raises(HookError, match="its address cannot be used"):
        report()


def test_certificates_that_are_not_there_are_told_before_anything_is_trained(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name_service(monkeypatch, f"https://127.0.0.1:{free_port()}", "cw_anything")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere/ca.pem")
    with pytest.raises(HookError, match=r"does not take the run: .*/nowhere/ca.pem"):
        report()


def test_more_epochs_than_anybody_plans_have_no_end(api: ServedApi) -> None:
    feed = CurveFeed("keras", None, run="net")
    feed.begin(0, planned=10**9)
    feed.end("")
    assert the_run(api).spec.training.epochs == 1_000_000


def test_a_gateway_that_answers_for_the_service_costs_no_message(
    api: ServedApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed = report(ends=False)
    post, refusals = HttpPost.__call__, [404, 403]

    def answer(self: HttpPost, messages: tuple[IngestMessage, ...]) -> Control:
        if messages and refusals:
            raise Refused("no such route", refusals.pop())
        return post(self, messages)

    monkeypatch.setattr(HttpPost, "__call__", answer)
    feed.add(ROWS[0])
    feed.end("")
    assert not refusals
    assert the_run(api).epoch == 1


def test_what_keeps_one_run_back_keeps_back_no_other_and_a_run_that_was_lost_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("gone", "lost"):
        with serve_api(tmp_path / name) as api:
            name_service(monkeypatch, api.url, api.token)
            feed = CurveFeed("keras", None, run=name)
            feed.begin(0, planned=8)
            feed.add(ROWS[0])
            feed.end("")
    with serve_api(tmp_path / "anew") as api:
        name_service(monkeypatch, api.url, api.token)
        (path,) = tmp_path.glob("curvewatch-runs/lost-*/reported.json")
        path.write_text(json.dumps(json.loads(path.read_text()) | {"server": api.url}))
        sent = Shell(capsys, monkeypatch)("send")
        assert sent.code == 2
        assert "no Curvewatch service answers" in sent.err
        run = the_run(api)
        assert (run.name, run.epoch, run.state) == ("lost", 1, RunState.SUCCEEDED)


def test_send_does_not_take_a_run_from_the_trainer_that_has_it(
    api: ServedApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    feed = report(ROWS[0], ends=False)
    (path,) = tmp_path.glob("curvewatch-runs/*/reported.json")
    state = path.read_text()
    path.write_text(json.dumps(json.loads(state) | {"ingest_token": "cwi_earlier"}))
    sent = Shell(capsys, monkeypatch)("send")
    assert sent.code == 2
    assert "may tell about it" in sent.err
    path.write_text(state)
    feed.end("")
    assert the_run(api).state is RunState.SUCCEEDED


def test_a_service_behind_a_proxy_is_reached_as_the_command_line_reaches_it(
    api: ServedApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Proxy(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            url = self.path.replace("http://curvewatch.invalid", api.url)
            headers = {name: self.headers[name] for name in ("Authorization", "Content-Type")}
            body = self.rfile.read(int(self.headers["Content-Length"]))
            with httpx.Client(trust_env=False) as client:
                told = client.request(self.command, url, content=body, headers=headers)
            self.send_response(told.status_code)
            self.send_header("Content-Length", str(len(told.content)))
            self.end_headers()
            self.wfile.write(told.content)

        def do_POST(self) -> None:
            self.do_PUT()

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    name_service(monkeypatch, "http://curvewatch.invalid", api.token)
    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        threading.Thread(target=proxy.serve_forever, args=(0.01,)).start()
        try:
            monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.server_port}")
            report(ROWS[0])
        finally:
            proxy.shutdown()
    run = the_run(api)
    assert (run.state, run.epoch) == (RunState.SUCCEEDED, 1)


@pytest.mark.usefixtures("api")
def test_no_proxy_stands_before_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("CURVEWATCH_TOKEN", "cw_wrong")
    with pytest.raises(HookError, match="is not one of this service's"):
        report()


def abandon(feed: CurveFeed) -> None:
    """Let a training end without a word, as a killed one does."""
    run = feed._run
    assert isinstance(run, reported_run.ReportedRunFeed)
    assert run._reporter is not None
    run._reporter.close()
    run._reporter = None
    atexit.unregister(run._leave)
