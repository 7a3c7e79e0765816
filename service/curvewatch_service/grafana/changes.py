"""What differs between two JSON documents, by the names of their parts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_NAMES = ("title", "name", "refId", "id")
"""Fields that tell elements of a list apart, in the order in which they are tried."""
_WIDTH = 100


@dataclass(frozen=True, kw_only=True)
class Change:
    """One value that differs."""

    path: str
    """Where, such as `panels[Loss].targets[A].expr`."""
    before: Any
    """None: it was not there. JSON's null is taken for the same, as Grafana takes it."""
    after: Any
    """None: it is no longer there."""

    @property
    def is_filling(self) -> bool:
        """Whether Grafana may have filled it in by itself: an empty value, or the version of a panel's plugin."""
        nothing = self.before is False or self.before in ("", [], {})
        return self.after is None and (nothing or self.path.endswith(".pluginVersion"))

    def line(self) -> str:
        """Return the change as a line: `+` new, `-` gone, `~` another value."""
        if self.before is None:
            return f"+ {self.path}: {_short(self.after)}"
        if self.after is None:
            return f"- {self.path}: {_short(self.before)}"
        return f"~ {self.path}: {_short(self.before)} -> {_short(self.after)}"


def changes(before: Any, after: Any, path: str = "") -> Iterator[Change]:
    """Yield what differs; elements of lists are compared by their names where they have some."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted({*before, *after}):
            yield from changes(before.get(key), after.get(key), f"{path}.{key}" if path else key)
    elif isinstance(before, list) and isinstance(after, list):
        yield from _in_lists(before, after, path)
    elif before != after:
        yield Change(path=path, before=before, after=after)


def _in_lists(before: list[Any], after: list[Any], path: str) -> Iterator[Change]:
    old, new = _named(before), _named(after)
    if old is None or new is None:
        old, new = dict(enumerate(before)), dict(enumerate(after))
    for name in {**old, **new}:
        yield from changes(old.get(name), new.get(name), f"{path}[{name}]")
    if set(old) == set(new) and list(old) != list(new):
        yield Change(path=f"{path} (order)", before=list(old), after=list(new))


def _named(elements: list[Any]) -> dict[Any, Any] | None:
    """Return the elements by the first field that names all of them; none if no field does."""
    if all(isinstance(element, dict) for element in elements):
        for field in _NAMES:
            names = [element.get(field) for element in elements]
            if all(isinstance(name, str | int) and name != "" for name in names) and len(set(names)) == len(
                names
            ):
                return dict(zip(names, elements, strict=True))
    return None


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _WIDTH else f"{text[:_WIDTH]}…"
