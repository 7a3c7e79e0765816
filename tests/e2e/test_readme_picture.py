"""The picture of the README: a run on a Ray cluster, from its submission to its page.

Taken again with `CURVEWATCH_README_PICTURES=1 pytest tests/e2e/test_readme_picture.py`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import expect

from curvewatch_service.code import zip_folder
from curvewatch_service.demo_service import DemoService
from curvewatch_service.follow import follow
from curvewatch_service.job_folder import read_job_folder
from curvewatch_workers.contract import read_profile
from page_support import CHROMIUM, chromium, drawn_traces, visit

pytestmark = [
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"there is no Chromium at {CHROMIUM}"),
    pytest.mark.skipif(
        not os.environ.get("CURVEWATCH_README_PICTURES"),
        reason="renews the README's picture; set CURVEWATCH_README_PICTURES=1 to take it",
    ),
]


@dataclass
class Site:
    url: str
    token: str


@pytest.fixture
def service() -> Iterator[DemoService]:
    own = DemoService()
    try:
        yield own
    finally:
        own.stop()


def test_the_picture_shows_a_run_that_was_submitted_to_ray(service: DemoService, project_root: Path) -> None:
    with service.start() as client:
        folder = read_job_folder(project_root / "examples" / "digits_overfit")
        run_id = client.submit(folder.text, zip_folder(folder.code)).run_id
        *_, last = follow(client, run_id, limit_seconds=240)
    assert last.run.state == "SUCCEEDED"
    profile = read_profile(service.profile_path)
    site = Site(url=profile.server, token=profile.token)
    with chromium() as browser, visit(browser, site) as visitor:
        page = visitor.open(f"/runs/{run_id}")
        assert drawn_traces(page, "loss-chart")["validation"].y == [
            epoch.validation.loss for epoch in last.epochs
        ]
        expect(page.get_by_role("region", name="Verdict")).to_contain_text("Overfitting")
        drawn_traces(page, "metric-accuracy")
        images = project_root / "docs" / "images"
        images.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=images / "run-page.png", full_page=True)
        assert visitor.troubles == []
