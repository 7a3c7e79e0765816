"""The page in a real Chromium, showing a run that was really trained.

Pictures go to tests/output/.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, expect

from api_support import ServedApi, serve_api
from curvewatch_service.runs import RunState
from curvewatch_workers.contract import IngestMessage, JobSpec, read_job_spec
from page_support import CHROMIUM, ShownRun, chromium, drawn_traces, sign_in, train, visit

FOCUSED = """[
    (document.activeElement.labels?.[0] ?? document.activeElement).innerText.trim(),
    getComputedStyle(document.activeElement).outlineStyle,
]"""
"""Name and outline of the element that has the keyboard."""
pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"there is no Chromium at {CHROMIUM}")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def example(project_root: Path) -> Path:
    return project_root / "examples" / "digits_overfit"


@pytest.fixture(scope="module")
def spec(example: Path) -> JobSpec:
    return read_job_spec(example)


@pytest.fixture(scope="module")
def told(example: Path, tmp_path_factory: pytest.TempPathFactory) -> Sequence[IngestMessage]:
    return train(example, tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedApi]:
    with serve_api(tmp_path_factory.mktemp("service")) as served:
        yield served


@pytest.fixture(scope="module")
def finished(api: ServedApi, spec: JobSpec, told: Sequence[IngestMessage]) -> ShownRun:
    run = ShownRun.start(api, "digits-overfit-k3vq7a2m", spec, told)
    run.finish()
    return run


@pytest.fixture
def running(
    api: ServedApi, spec: JobSpec, told: Sequence[IngestMessage], request: pytest.FixtureRequest
) -> ShownRun:
    return ShownRun.start(api, request.node.name.replace("_", "-"), spec, told)


@pytest.fixture(scope="module")
def pictures(project_root: Path) -> Path:
    folder = project_root / "tests" / "output"
    folder.mkdir(exist_ok=True)
    return folder


def test_an_empty_list_tells_how_to_begin(browser: Browser, tmp_path: Path) -> None:
    with serve_api(tmp_path) as empty, visit(browser, empty) as visitor:
        expect(visitor.page.get_by_role("heading", name="No runs yet")).to_be_visible()
        expect(visitor.page.get_by_text("curvewatch submit job.yaml")).to_be_visible()
        assert visitor.troubles == []


def test_a_wrong_token_is_told_and_the_right_one_leads_to_the_page_asked_for(
    browser: Browser, api: ServedApi, finished: ShownRun
) -> None:
    with visit(browser, api, signed_in=False) as visitor:
        page = visitor.open(f"/runs/{finished.run_id}")
        sign_in(visitor, "cw_wrong")
        expect(page.get_by_role("alert")).to_have_text("This service does not know that token.")
        sign_in(visitor, api.token)
        page.wait_for_url(f"**/runs/{finished.run_id}")
        (cookie,) = page.context.cookies()
        assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
        page.get_by_role("button", name="Sign out").click()
        page.wait_for_url("**/login")
        visitor.open("/")
        page.wait_for_url("**/login")


def test_the_list_leads_to_the_run(
    browser: Browser, api: ServedApi, finished: ShownRun, pictures: Path
) -> None:
    with visit(browser, api) as visitor:
        row = visitor.page.get_by_role("row", name=re.compile(finished.run_id))
        expect(row).to_contain_text("succeeded")
        expect(row).to_contain_text("Overfitting")
        expect(row).to_contain_text("40 / 40")
        expect(row).to_contain_text(f"{finished.epochs[-1].validation.loss:.4f}")
        visitor.page.screenshot(path=pictures / "runs-page.png", full_page=True)
        row.get_by_role("link").click()
        expect(visitor.page.get_by_role("heading", level=1)).to_have_text("digits-overfit")
        assert visitor.troubles == []


def test_a_run_is_drawn_with_the_numbers_of_the_store(
    browser: Browser, api: ServedApi, finished: ShownRun, pictures: Path
) -> None:
    epochs = finished.epochs
    best = min(epochs, key=lambda epoch: epoch.validation.loss)
    with visit(browser, api) as visitor:
        page = visitor.open(f"/runs/{finished.run_id}")
        loss = drawn_traces(page, "loss-chart")
        accuracy = drawn_traces(page, "metric-accuracy")
        for split in ("train", "validation"):
            assert loss[split].x == [epoch.epoch for epoch in epochs]
            assert loss[split].y == [epoch.split(split).loss for epoch in epochs]
            assert accuracy[split].y == [epoch.split(split).metric_values["accuracy"] for epoch in epochs]
            assert loss[split].drawn_points == accuracy[split].drawn_points == len(epochs) == 40
        star = loss[f"best: epoch {best.epoch}"]
        assert (star.x, star.y, star.drawn_points) == ([best.epoch], [best.validation.loss], 1)

        verdict = page.get_by_role("region", name="Verdict")
        expect(verdict).to_contain_text("Overfitting")
        expect(verdict).to_contain_text(f"epoch {best.epoch}")
        receipt = page.get_by_role("region", name="Receipt")
        expect(receipt).to_contain_text("Exact: in each of the 40 epochs every sample was counted once.")
        assert _row(receipt.get_by_role("row", name="Validation").inner_text()) == ["361", "361", "0", "2"]
        assert _row(receipt.get_by_role("row", name="Train").inner_text()) == ["200", "200", "0", "2"]
        expect(page.get_by_role("region", name="Events").get_by_role("listitem").first).to_contain_text(
            "Succeeded"
        )
        page.get_by_label("Log scale").check()
        assert page.evaluate("document.getElementById('loss-chart').layout.yaxis.type") == "log"
        page.get_by_label("Log scale").uncheck()
        page.get_by_text("Job file").click()
        expect(page.get_by_text("task: digits_overfit:build")).to_be_visible()
        page.get_by_text("Job file").click()

        page.screenshot(path=pictures / "run-page.png", full_page=True)
        assert visitor.troubles == []


def _row(text: str) -> list[str]:
    """Return the counts of a row of the receipt."""
    return text.split()[1:5]


def test_a_running_run_is_followed_without_a_reload(
    browser: Browser, api: ServedApi, running: ShownRun, pictures: Path
) -> None:
    with visit(browser, api) as visitor:
        page = visitor.open(f"/runs/{running.run_id}")
        page.evaluate("window.neverReloaded = true")
        expect(page.get_by_text("After the first epochs")).to_be_visible()
        for count in (1, 12):
            running.tell(count)
            page.wait_for_function(
                "count => document.getElementById('loss-chart').data?.[0].x.length === count", arg=count
            )
            assert drawn_traces(page, "loss-chart")["validation"].drawn_points == count
            expect(page.locator("#numbers")).to_contain_text(f"{count} of 40")
        expect(page.locator(".badge")).to_have_text("running")
        page.screenshot(path=pictures / "run-page-running.png", full_page=True)
        running.finish()
        expect(page.locator(".badge")).to_have_text("succeeded")
        expect(page.locator("#loss-chart .trace").first.locator(".points path")).to_have_count(40)
        expect(page.get_by_role("button", name="Stop run")).to_have_count(0)
        assert page.evaluate("window.neverReloaded")
        assert visitor.troubles == []


def test_a_run_that_fails_shows_the_traceback_of_its_code(
    browser: Browser, api: ServedApi, running: ShownRun
) -> None:
    running.tell(1)
    with visit(browser, api) as visitor:
        page = visitor.open(f"/runs/{running.run_id}")
        expect(page.locator(".badge")).to_have_text("running")
        assert api.services.store.transition(
            running.run_id,
            RunState.FAILED,
            expected=[RunState.RUNNING],
            reason="its code raised ValueError",
            message="its code raised ValueError",
            traceback="Traceback (most recent call last):\nValueError: no <images> here",
        )
        expect(page.get_by_role("region", name="Traceback")).to_contain_text("ValueError: no <images> here")
        expect(page.locator(".badge")).to_have_text("failed")
        expect(page.locator(".reason")).to_have_text("its code raised ValueError")
        assert visitor.troubles == []


def test_a_service_that_is_away_is_told_and_its_return_is_noticed(
    browser: Browser, api: ServedApi, running: ShownRun
) -> None:
    running.tell(2)
    with visit(browser, api) as visitor:
        page = visitor.open(f"/runs/{running.run_id}")
        assert drawn_traces(page, "loss-chart")["train"].drawn_points == 2
        page.context.set_offline(True)
        expect(page.get_by_role("alert")).to_contain_text("The service does not answer. What you see is from")
        page.context.set_offline(False)
        expect(page.get_by_role("alert")).to_be_hidden()


def test_the_button_stops_the_run_for_the_user_who_pressed_it(
    browser: Browser, api: ServedApi, running: ShownRun
) -> None:
    running.tell(1)
    with visit(browser, api) as visitor:
        page = visitor.open(f"/runs/{running.run_id}")
        page.get_by_role("button", name="Stop run").click()
        expect(page.locator(".badge")).to_have_text("stopping")
        expect(page.get_by_role("button", name="Stop run")).to_be_disabled()
        assert visitor.troubles == []
    assert api.services.store.run(running.run_id).state is RunState.STOPPING
    assert any(event.actor == "ada" for event in api.services.store.events(running.run_id))


def test_another_site_cannot_press_the_button(browser: Browser, api: ServedApi, running: ShownRun) -> None:
    running.tell(1)
    with visit(browser, api) as visitor:
        cookies = {cookie["name"]: cookie["value"] for cookie in visitor.page.context.cookies()}
    with httpx.Client(base_url=api.url, cookies=cookies) as signed_in:
        answer = signed_in.post(f"/runs/{running.run_id}/stop", data={"csrf": "guessed"})
    assert answer.status_code == 403
    assert "did not come from a page of this session" in answer.text
    assert api.services.store.run(running.run_id).state is RunState.RUNNING


def test_the_logs_are_shown_as_plain_text(browser: Browser, api: ServedApi, running: ShownRun) -> None:
    api.cluster.texts[f"{running.run_id}-1"] = "<script>alert(1)</script> epoch 1\n"
    with visit(browser, api) as visitor:
        page = visitor.open(f"/runs/{running.run_id}")
        page.get_by_role("link", name="What the job wrote").click()
        page.wait_for_url("**/logs")
        assert page.locator("body").inner_text().strip() == "<script>alert(1)</script> epoch 1"


def test_an_unknown_run_gets_a_page_that_says_so(browser: Browser, api: ServedApi) -> None:
    with visit(browser, api) as visitor:
        page = visitor.open("/runs/nobody")
        expect(page.get_by_role("heading", level=1)).to_have_text("No such page")
        expect(page.get_by_text("there is no run 'nobody'")).to_be_visible()


def test_words_of_users_are_shown_and_never_run(
    browser: Browser, api: ServedApi, spec: JobSpec, told: Sequence[IngestMessage]
) -> None:
    attack = "<img src=x onerror=document.title='owned'>"
    hostile = spec.model_copy(update={"labels": {"team": attack}, "params": {"note": attack}})
    run = ShownRun.start(api, "hostile-1", hostile, told)
    run.tell(1)
    api.services.store.add_event(run.run_id, reason="note", message=attack)
    with visit(browser, api) as visitor:
        page = visitor.open(f"/runs/{run.run_id}")
        assert drawn_traces(page, "loss-chart")["train"].drawn_points == 1
        assert page.get_by_text(attack).count() >= 2
        assert "owned" not in page.title()
        assert visitor.troubles == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_pages_fit_a_phone(
    browser: Browser, api: ServedApi, finished: ShownRun, pictures: Path, dark: bool
) -> None:
    with visit(browser, api, size=(390, 844), dark=dark) as visitor:
        for name, path in (("runs", "/"), ("run", f"/runs/{finished.run_id}")):
            page = visitor.open(path)
            if name == "run":
                drawn_traces(page, "metric-accuracy")
            overflow = page.evaluate("document.scrollingElement.scrollWidth - window.innerWidth")
            assert overflow <= 0, f"{path} is {overflow} pixels wider than the phone"
            page.screenshot(
                path=pictures / f"{name}-page-phone-{'dark' if dark else 'light'}.png", full_page=True
            )


def test_everything_is_reached_by_keyboard_and_has_a_name(
    browser: Browser, api: ServedApi, running: ShownRun
) -> None:
    running.tell(2)
    with visit(browser, api) as visitor:
        page = visitor.open(f"/runs/{running.run_id}")
        drawn_traces(page, "loss-chart")
        reached: list[str] = []
        for _ in range(12):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement === document.body"):
                break
            name, outline = page.evaluate(FOCUSED)
            reached.append(name)
            assert outline == "solid", f"{name!r} does not show that it has the keyboard"
        wanted = {"Skip to content", "Curvewatch", "Sign out", "Runs", "Stop run", "Log scale", "Job file"}
        assert wanted <= set(reached)
        assert page.locator("h1").count() == 1
