"""Templates and files of the page: how it writes numbers, times and verdicts, and where files come from."""

from __future__ import annotations

import functools
import gzip
import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import plotly
from jinja2 import Environment, PackageLoader, StrictUndefined

from curvewatch_service.terminal import age, best_stop, number, words

_HERE = Path(__file__).parent / "static"
_FILES = {
    "style.css": (_HERE / "style.css", "text/css; charset=utf-8"),
    "live.js": (_HERE / "live.js", "text/javascript; charset=utf-8"),
    "curve.js": (_HERE / "curve.js", "text/javascript; charset=utf-8"),
    "logo.svg": (_HERE / "logo.svg", "image/svg+xml"),
    # The chart library comes with the installed package: the page needs no network beyond the service.
    "plotly.min.js": (
        Path(plotly.__file__).parent / "package_data" / "plotly.min.js",
        "text/javascript; charset=utf-8",
    ),
}
_TONES = {
    "good_fit": "good",
    "too_early": "neutral",
    "overfitting": "bad",
    "diverging": "bad",
    "not_finite": "bad",
}


@dataclass(frozen=True, kw_only=True)
class StaticFile:
    """A file that the page loads."""

    content: bytes
    """Compressed with gzip."""
    media_type: str
    digest: str
    """Short hash of the content; in the address, so that a browser may keep the file for ever."""


@functools.cache
def static_file(name: str) -> StaticFile | None:
    """Return a file of the page; None for a name that is not one of them."""
    if name not in _FILES:
        return None
    path, media_type = _FILES[name]
    content = path.read_bytes()
    return StaticFile(
        content=gzip.compress(content, mtime=0),
        media_type=media_type,
        digest=hashlib.sha256(content).hexdigest()[:12],
    )


def environment() -> Environment:
    """Return the templates; everything that they write is escaped, and a missing name is an error."""
    jinja = Environment(
        loader=PackageLoader("curvewatch_service", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    jinja.globals["static"] = _static_address
    jinja.filters |= {
        "number": number,
        "words": words,
        "best_stop": best_stop,
        "tone": lambda verdict: _TONES.get(verdict, "warn"),
        # The key `state_running` is the event that the run is running now.
        "happening": lambda reason: words(reason.removeprefix("state_")).capitalize(),
        "age": lambda moment: age((datetime.now(UTC) - moment).total_seconds()),
        "moment": lambda moment: f"{moment:%Y-%m-%d %H:%M:%S} UTC",
        "clock": lambda moment: f"{moment:%H:%M:%S}",
    }
    return jinja


def _static_address(name: str) -> str:
    file = static_file(name)
    assert file is not None, f"{name} is not among the page's files"  # noqa: S101 - a mistake of ours
    return f"/static/{name}?v={file.digest}"
