"""Text of others on its way to a terminal: shown, never obeyed.

Jobs, workers and services write names, reasons, messages and tracebacks. A control code in one of them could
move the cursor, rename the window or hide a line.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_KEPT = "\n\t"
_OBEYED = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Control, format (such as those that turn the direction of writing), surrogate, line and paragraph ends."""
_COLOR = re.compile(r"(\x1b\[[0-9;]*m)")
_OTHER_CODE = re.compile(r"\x1b\[(?![0-9;]*m)[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b\n]*(?:\x07|\x1b\\)")
"""Codes that move or erase, and those that name the window or link, as progress bars write them."""


def printable(text: str) -> str:
    """Return a text with each character that a terminal obeys replaced; line ends and tabs stay."""
    if text.isprintable():
        return text
    return "".join(
        REPLACEMENT if unicodedata.category(one) in _OBEYED and one not in _KEPT else one for one in text
    )


def colored(text: str) -> str:
    """Return the same, with the codes for colors and bold kept, and whole other codes left out.

    For what a program wrote for a terminal on purpose.
    """
    parts = _COLOR.split(_OTHER_CODE.sub("", text))
    return "".join(part if index % 2 else printable(part) for index, part in enumerate(parts))


class PrintableConsole(Console):
    """A console that sends no control code but its own: whatever is printed on it went through `printable`."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render, with the text of every segment made harmless."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)
