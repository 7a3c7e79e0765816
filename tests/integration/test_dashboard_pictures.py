"""The pictures of the dashboards: every panel is drawn from real answers, with what they hold.

Taken again with `CURVEWATCH_DASHBOARD_PICTURES=1 pytest tests/integration/test_dashboard_pictures.py`.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dashboard_support import DASHBOARDS, panels
from drawing_support import ROW_PIXELS, WIDTH, Asked, drawn_dashboard, drawn_panel
from page_support import CHROMIUM, chromium
from panel_support import needs_grafana_data
from prometheus_support import needs_prometheus
from watched_support import CHOSEN, Watched, watched

takes_pictures = pytest.mark.skipif(
    not os.environ.get("CURVEWATCH_DASHBOARD_PICTURES"),
    reason="renews the pictures of the dashboards; set CURVEWATCH_DASHBOARD_PICTURES=1 to take them",
)
pytestmark = [
    needs_prometheus,
    needs_grafana_data,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"there is no Chromium at {CHROMIUM}"),
    takes_pictures,
]
IMAGES = Path(__file__).parents[2] / "docs" / "images" / "dashboards"
EPOCHS_APART = 1.2
"""Seconds between two epochs on the pictures, so that curves over time have a shape."""


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    with watched(tmp_path_factory.mktemp("watched"), epochs_apart=EPOCHS_APART) as found:
        yield found


def _asked(name: str, seen: Watched) -> Asked:
    # Rates need four scrapes.
    return Asked(prometheus=seen.prometheus, chosen=CHOSEN[name], since=seen.since, step=2)


@pytest.mark.parametrize("name", DASHBOARDS)
def test_every_panel_is_drawn_with_what_was_answered(name: str, seen: Watched) -> None:
    for panel in panels(DASHBOARDS[name]):
        figure = drawn_panel(panel, _asked(name, seen))
        drawn = [
            value
            for trace in figure.data
            for value in (trace.cells.values[0] if trace.type == "table" else trace.x)
        ] + [one.text for one in figure.layout.annotations]
        assert drawn, f"nothing on panel {panel['title']!r}"


def test_a_panel_of_another_kind_is_told(seen: Watched) -> None:
    with pytest.raises(KeyError, match="piechart"):
        drawn_panel({"type": "piechart", "targets": []}, _asked("run", seen))


@pytest.mark.parametrize("name", DASHBOARDS)
def test_the_pictures_are_taken(name: str, seen: Watched, tmp_path: Path) -> None:
    page_file, picture = tmp_path / f"{name}.html", IMAGES / f"{name}.png"
    page_file.write_text(drawn_dashboard(DASHBOARDS[name], _asked(name, seen)), encoding="utf-8")
    lowest = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in DASHBOARDS[name]["panels"])
    IMAGES.mkdir(parents=True, exist_ok=True)
    before = time.time()
    with chromium() as browser:
        page = browser.new_page(viewport={"width": WIDTH + 16, "height": lowest * ROW_PIXELS + 16})
        page.goto(page_file.as_uri())
        assert page.locator(".panel .main-svg").first.is_visible()
        assert page.locator(".panel").count() == len(panels(DASHBOARDS[name]))
        page.screenshot(path=picture)
    assert picture.stat().st_mtime >= math.floor(before)
    assert picture.stat().st_size < 400_000
