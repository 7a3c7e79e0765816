"""From the text of a job file to plain values: JSON as JSON, all else as YAML without its surprises."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import yaml

_AMBIGUOUS = re.compile(r"[-+]?(0[0-9][0-9_]*|[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)")
"""What YAML 1.1 reads as octal or in base sixty, and YAML 1.2 and most people do not."""
_LARGEST_BITS = 1000
"""Of a whole number; what has more is beyond every float."""


class JobTextError(Exception):
    """The text holds no values that a job could be made of."""

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.path = path


def values_of(text: str) -> Any:
    """Return what a job file says, as mappings, lists, text, numbers, booleans and nulls.

    JSON is no whole subset of YAML: of an emoji that JSON writes as two escapes, YAML makes two broken halves.

    Raises:
        JobTextError: It is neither JSON nor YAML, or holds what cannot travel; the message says where.
    """
    try:
        data = _json(text) if text.lstrip("\ufeff \t\r\n").startswith("{") else None
        # Anything that begins like JSON may be YAML all the same.
        data = yaml.load(text, Loader=_JobLoader) if data is None else data  # noqa: S506 - a safe loader
        for path, value in _leaves(data, ""):
            _require_portable(path, value)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise JobTextError(f"is neither YAML nor JSON: {error}") from error
    return data


def _json(text: str) -> Any:
    try:
        return json.loads(text.removeprefix("\ufeff"), object_pairs_hook=_each_key_once)
    except (ValueError, RecursionError):
        return None


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise JobTextError(f"the key `{_shown(key)}` stands twice; remove one")
        found[key] = value
    return found


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield each key and each value that holds no others, with its place."""
    if isinstance(value, dict):
        for key, inner in value.items():
            inner_path = f"{path}.{_shown(key)}" if path else _shown(key)
            yield inner_path, key
            yield from _leaves(inner, inner_path)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _leaves(inner, f"{path}.{number}")
    else:
        yield path, value


def _require_portable(path: str, value: Any) -> None:
    if isinstance(value, str) and not _is_text(value):
        raise JobTextError(
            f"holds half of a character, {_shown(value)!r} (a lone surrogate); write the character itself",
            path,
        )
    if isinstance(value, int) and value.bit_length() > _LARGEST_BITS:
        raise JobTextError(
            f"a whole number may have {_LARGEST_BITS} bits, this has {value.bit_length()}; write a smaller one",
            path,
        )


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(value: object) -> str:
    """Return a value as it can be printed anywhere, and not too long."""
    text = str(value).encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= 100 else f"{text[:100]}..."


class _JobLoader(yaml.SafeLoader):
    """YAML as a job file needs it: no aliases, no key twice, `1e-3` a number, nothing that reads two ways."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Compose a node; an alias could stand for a document of any size."""
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]  # the stubs leave its types out
            raise yaml.MarkedYAMLError(
                problem="aliases are not taken; write the value again", problem_mark=event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Construct a value; PyYAML's own constructors fail with whatever Python's parsers raise."""
        if node.tag.endswith((":int", ":float")) and _AMBIGUOUS.fullmatch(str(node.value)):
            raise yaml.MarkedYAMLError(
                problem=f"`{_shown(node.value)}` can be read as more than one number; write it in decimal digits "
                "without a leading zero, or in quotes if it is text",
                problem_mark=node.start_mark,
            )
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            kind = node.tag.rpartition(":")[2]
            raise yaml.MarkedYAMLError(
                problem=f"`{_shown(node.value)}` is no {kind} ({_shown(error)})", problem_mark=node.start_mark
            ) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Construct a mapping; of a key that stands twice, one value would be lost."""
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = key_node.value
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(
                    problem="a key must be plain text, no list and no mapping",
                    problem_mark=key_node.start_mark,
                )
            if key in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key `{key}` stands twice; remove one", problem_mark=key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_JobLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)
