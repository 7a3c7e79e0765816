"""Every query of the built dashboards for `observability.py`, as Grafana would ask it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx

from measuring import Timed

HOURS: Final = 3
STEP_SECONDS: Final = 15
"""Three hours over a panel of some 700 pixels or more: the interval of the scrapes is the least."""
MOST_AT_ONCE: Final = 6
"""What a browser asks one server at a time over HTTP/1.1."""
_VARIABLE: Final = re.compile(r"\$(\w+)|\$\{(\w+)(?::\w+)?\}|\[\[(\w+)\]\]")
_SPECIAL: Final = re.compile(r"[\\\\^$.*+?()\[\]{}|]")
_LABEL_VALUES: Final = re.compile(r"label_values\((?:(.+),\s*)?(\w+)\)", re.DOTALL)
_BUILT_IN: Final = {
    # Four scrapes, as Grafana's own rule says.
    "__rate_interval": f"{4 * STEP_SECONDS}s",
    "__interval": f"{STEP_SECONDS}s",
    "__interval_ms": f"{1000 * STEP_SECONDS}",
    "__range": f"{HOURS}h",
    "__range_s": f"{3600 * HOURS}",
    "__range_ms": f"{3_600_000 * HOURS}",
}


@dataclass(frozen=True, kw_only=True)
class Question:
    """One query."""

    name: str
    """Dashboard, panel and letter."""
    path: str
    """Of Prometheus' API."""
    parameters: dict[str, str]

    def ask(self, client: httpx.Client) -> bytes:
        """Return the whole answer."""
        answer = client.get(self.path, params=self.parameters)
        if not answer.is_success:
            raise RuntimeError(f"{self.name}: {answer.text[:300]}; asked {self.parameters}")
        return answer.content


def questions(path: Path, client: httpx.Client, *, end: float) -> list[Question]:
    """Return what a dashboard asks when it is opened: its variables' values, annotations and panels.

    A variable with several values has all that there are, any other the first. Other data sources are left out.

    Args:
        path: The built dashboard.
        client: Of the Prometheus that knows the values.
        end: Unix time of the end of what is shown.
    """
    dashboard = json.loads(path.read_text(encoding="utf-8"))
    window = {"start": f"{end - 3600 * HOURS:.0f}", "end": f"{end:.0f}"}
    values: dict[str, str] = dict(_BUILT_IN)
    asked: list[Question] = []
    for variable in dashboard.get("templating", {}).get("list", []):
        name = f"{path.stem}: variable {variable['name']}"
        if variable["type"] == "query":
            query = variable["query"] if isinstance(variable["query"], str) else variable["query"]["query"]
            question = _label_values(name, _filled(query, values), window)
            asked.append(question)
            found = json.loads(question.ask(client))["data"]
            if variable.get("allValue"):
                # What Grafana sends for all of them, also where there is none, such as without GPUs.
                values[variable["name"]] = variable["allValue"]
                continue
            if not found:
                raise RuntimeError(f"{name}: no value, asked {question}")
            several = variable.get("multi") or variable.get("includeAll")
            values[variable["name"]] = _all_of(found) if several else found[0]
        elif variable["type"] in ("custom", "interval"):
            values[variable["name"]] = variable["query"].split(",")[0].split(" : ")[-1].strip()
        elif variable["type"] in ("textbox", "constant"):
            values[variable["name"]] = variable["query"]
    annotations = dashboard.get("annotations", {}).get("list", [])
    sources = [(f"annotation {one['name']}", one) for one in annotations if one.get("expr")]
    for panel in _panels(dashboard):
        targets = [target for target in panel.get("targets", []) if target.get("expr")]
        sources += [(f"{panel['title']} {target['refId']}", target) for target in targets]
    for name, target in sources:
        named, expr = f"{path.stem}: {name}", _filled(target["expr"], values)
        if target.get("instant") and not target.get("range"):
            now = {"query": expr, "time": window["end"]}
            asked.append(Question(name=named, path="/api/v1/query", parameters=now))
        else:
            over = {"query": expr, **window, "step": f"{STEP_SECONDS}"}
            asked.append(Question(name=named, path="/api/v1/query_range", parameters=over))
    return asked


def _all_of(values: list[str]) -> str:
    """Return the regular expression of several values."""
    return f"({'|'.join(_SPECIAL.sub(lambda found: chr(92) + found[0], value) for value in values)})"


def _panels(dashboard: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for panel in dashboard["panels"]:
        # A row that is closed holds its panels.
        yield from panel.get("panels") or [panel]


def _label_values(name: str, query: str, window: dict[str, str]) -> Question:
    match = _LABEL_VALUES.fullmatch(query.strip())
    if match is None:
        raise RuntimeError(f"{name}: {query!r} is no label_values(...), teach this benchmark to ask it")
    selector = {} if match[1] is None else {"match[]": match[1]}
    return Question(name=name, path=f"/api/v1/label/{match[2]}/values", parameters={**window, **selector})


def _filled(text: str, values: dict[str, str]) -> str:
    """Put the values in; within a string of PromQL a backslash is written twice."""

    def value(match: re.Match[str]) -> str:
        name = next(filter(None, match.groups()))
        if name not in values:
            raise RuntimeError(f"no value for the variable {name} in {text}")
        return values[name].replace("\\", "\\\\")

    return _VARIABLE.sub(value, text)


def timed(question: Question, client: httpx.Client) -> Timed:
    """Return the question as something to be timed."""

    def ask() -> float:
        clock = time.perf_counter()
        question.ask(client)
        return time.perf_counter() - clock

    return ask


def all_at_once(asked: list[Question], client: httpx.Client) -> float:
    """Return how long a dashboard takes from its opening to its last answer, in seconds."""
    clock = time.perf_counter()
    with ThreadPoolExecutor(MOST_AT_ONCE) as pool:
        list(pool.map(lambda question: question.ask(client), asked))
    return time.perf_counter() - clock
