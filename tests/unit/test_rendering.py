from __future__ import annotations

import gzip
import re
from pathlib import Path

import pytest

from curvewatch_service import rendering

TEMPLATES = Path(rendering.__file__).parent / "templates"
STATIC = Path(rendering.__file__).parent / "static"
Color = tuple[float, ...]
LEAST_CONTRAST = 4.5
"""WCAG 2.1, level AA, for text of normal size."""


def test_every_file_that_a_template_names_is_served_and_no_other_lies_there() -> None:
    named = {
        name
        for template in TEMPLATES.glob("*.html")
        for name in re.findall(r"static\('(.+?)'\)", template.read_text())
    }
    assert all(rendering.static_file(name) for name in named)
    assert {path.name for path in STATIC.iterdir()} == named - {"plotly.min.js"}
    assert rendering.static_file("../pages.py") is None


def test_a_file_travels_compressed_and_its_digest_is_that_of_its_content() -> None:
    file = rendering.static_file("plotly.min.js")
    assert file is not None
    assert b"plotly.js v" in gzip.decompress(file.content)[:200]
    assert len(file.content) < 2_000_000
    other = rendering.static_file("style.css")
    assert other is not None
    assert other.digest != file.digest


def test_no_template_holds_a_script_or_leads_to_another_host() -> None:
    for template in TEMPLATES.glob("*.html"):
        text = template.read_text()
        assert not re.search(r"<script(?![^>]*\bsrc=)|\son\w+=|https?://", text), template.name
    assert not re.search(r"url\(|@import|https?://", (STATIC / "style.css").read_text())


def test_text_of_users_is_escaped_everywhere() -> None:
    jinja = rendering.environment()
    text = jinja.get_template("problem.html").render(owner="<b>", csrf="", title="<i>", detail="<script>")
    assert "<script>" not in text
    assert "<b>" not in text
    assert "&lt;script&gt;" in text


def palettes() -> list[dict[str, Color]]:
    """Return the colors of the light and of the dark scheme."""
    found = []
    for block in re.findall(r":root \{(.*?)\}", (STATIC / "style.css").read_text(), re.DOTALL):
        colors = dict(re.findall(r"--(\w+): #(\w{6});", block))
        found.append({name: tuple(map(float, bytes.fromhex(value))) for name, value in colors.items()})
    return found


def luminance(color: Color) -> float:
    """Return the relative luminance as WCAG defines it."""
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (part / 255 for part in color)
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: Color, second: Color) -> float:
    lighter, darker = sorted((luminance(first), luminance(second)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_every_color_of_text_stands_out_from_what_is_behind_it(scheme: int) -> None:
    palette = palettes()[scheme]
    for name in ("text", "muted", "accent", "good", "warn", "bad"):
        for behind in ("page", "card"):
            assert contrast(palette[name], palette[behind]) >= LEAST_CONTRAST, f"{name} on {behind}"
    # Badges have 11 % of their own color behind their text.
    for name in ("muted", "accent", "good", "warn", "bad"):
        mixed = tuple(
            0.11 * own + 0.89 * card for own, card in zip(palette[name], palette["card"], strict=True)
        )
        assert contrast(palette[name], mixed) >= LEAST_CONTRAST, f"badge in {name}"
    assert contrast(palette["card"], palette["accent"]) >= LEAST_CONTRAST, "the sign-in button"
