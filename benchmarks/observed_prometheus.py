"""A real Prometheus for `observability.py`: rules in variants, and how long each group took at each evaluation."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import yaml

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from curvewatch_dashboards.knobs import Knobs
from curvewatch_dashboards.prometheus import prometheus_config
from observed_runs import INSTANCE
from prometheus_support import PROMETHEUS, RULES, Prometheus, free_port

AS_BUILT: Final = "as built"
NOTHING: Final = "nothing"
EVALUATION_SECONDS: Final = 2
VARIANTS_SECONDS: Final = 6
"""Between two evaluations of all variants, so that they seldom meet each other."""
_LEAST_SECONDS: Final = 0.2
_OWNER_JOIN: Final = "\n* on (job, instance, run_id) group_left"
_GAUGES: Final = re.compile(
    r'prometheus_rule_group_last_(duration_seconds|evaluation_timestamp_seconds){rule_group="[^;]*;([^"]+)"} (\S+)'
)
Rule = dict[str, Any]


def _without_owner(rule: Rule) -> Rule:
    return {**rule, "expr": rule["expr"].split(_OWNER_JOIN)[0]}


def _plain_words(rule: Rule) -> Rule:
    return {**rule, "annotations": dict.fromkeys(rule["annotations"], "words")}


def _nothing(rule: Rule) -> Rule:
    return {**_plain_words(rule), "expr": "curvewatch_epoch < 0"}


def _varied(rule: Rule, variant: str, records: Collection[str]) -> Rule:
    """Return a rule whose series are others than those of the built rules, and that reads its variant's records."""
    name = variant.replace(" ", "_")
    if "record" in rule:
        expr = "curvewatch_epoch < 0" if variant == NOTHING else rule["expr"]
        return {"record": f"{rule['record']}_{name}", "expr": expr}
    changed = VARIANTS[variant](rule)
    expr = changed["expr"]
    for record in records:
        expr = expr.replace(record, f"{record}_{name}")
    return {**changed, "expr": expr, "labels": {**rule["labels"], "variant": variant}}


VARIANTS: Final[dict[str, Callable[[Rule], Rule]]] = {
    "without the owner": _without_owner,
    "plain words": _plain_words,
    NOTHING: _nothing,
}
"""What a group costs without a part of it: the join with the owner, the templates; and as many rules that find none."""


def group_names() -> list[str]:
    """Return the names of the built groups."""
    return [group["name"] for group in yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]]


def load_variants(folder: Path, url: str) -> None:
    """Let a Prometheus evaluate each variant of the rules beside the built ones, in groups named `group/variant`.

    Args:
        folder: Of its configuration.
        url: Of the Prometheus.
    """
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    records = [rule["record"] for group in groups for rule in group["rules"] if "record" in rule]
    for variant in VARIANTS:
        made = [
            {
                "name": f"{group['name']}/{variant}",
                "rules": [_varied(rule, variant, records) for rule in group["rules"]],
            }
            for group in groups
        ]
        text = yaml.safe_dump({"groups": made})
        (folder / f"variant-{variant.replace(' ', '-')}.yaml").write_text(text, encoding="utf-8")
    path = folder / "prometheus.yaml"
    configuration = yaml.safe_load(path.read_text(encoding="utf-8"))
    configuration["rule_files"].append(str(folder / "variant-*.yaml"))
    configuration["global"]["evaluation_interval"] = f"{VARIANTS_SECONDS}s"
    path.write_text(yaml.safe_dump(configuration), encoding="utf-8")
    httpx.post(f"{url}/-/reload", timeout=60).raise_for_status()


@contextmanager
def prometheus(folder: Path, service: str, *, rules: Sequence[Path] = ()) -> Iterator[str]:
    """Start a Prometheus that scrapes both paths of the service as the built configuration does; gives its URL.

    Args:
        folder: Of its configuration, its log and, in `data`, its storage.
        service: URL of the service.
        rules: Rule files, evaluated every two seconds.
    """
    if PROMETHEUS is None:
        raise RuntimeError("prometheus is not installed (apt-get install prometheus)")
    configuration: dict[str, Any] = prometheus_config(Knobs(service_url=service))
    del configuration["alerting"]
    configuration["rule_files"] = [str(path) for path in rules]
    configuration["global"]["evaluation_interval"] = f"{EVALUATION_SECONDS}s"
    for scraped in configuration["scrape_configs"]:
        (target,) = scraped["static_configs"]
        target["labels"] = {"instance": INSTANCE}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(configuration), encoding="utf-8")
    url = f"http://127.0.0.1:{free_port()}"
    command = [
        PROMETHEUS,
        f"--config.file={folder / 'prometheus.yaml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={url.removeprefix('http://')}",
        "--web.enable-lifecycle",
    ]
    log = folder / "prometheus.log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    asked = Prometheus(url, log)
    try:
        wait("Prometheus is ready", asked.ready, seconds=60)
        yield url
    finally:
        asked.close()
        process.terminate()
        process.wait(60)


def wait(what: str, condition: Callable[[], bool], *, seconds: float) -> None:
    """Wait for a condition.

    Raises:
        TimeoutError: It did not come.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds:.0f} s: {what}")
        time.sleep(_LEAST_SECONDS)


def wait_for(url: str, expr: str, least: float, *, seconds: float) -> None:
    """Wait until an expression has at least a value."""
    wait(f"{expr} >= {least:g}", lambda: value(url, expr) >= least, seconds=seconds)


def value(url: str, expr: str) -> float:
    """Return the value of an expression now, 0 where it finds nothing."""
    answer = httpx.get(f"{url}/api/v1/query", params={"query": expr}, timeout=30).raise_for_status().json()
    found = answer["data"]["result"]
    return float(found[0]["value"][1]) if found else 0.0


def evaluations(url: str, count: int, groups: Collection[str]) -> dict[str, list[float]]:
    """Return the seconds of the next evaluations of some groups, by their names, as Prometheus itself tells them."""
    seconds: dict[str, list[float]] = {}
    last: dict[str, str] = {}

    def look() -> bool:
        told: dict[str, dict[str, str]] = {}
        for what, group, number in _GAUGES.findall(httpx.get(f"{url}/metrics", timeout=30).text):
            told.setdefault(group, {})[what] = number
        for group in told.keys() & set(groups):
            gauges = told[group]
            began = gauges["evaluation_timestamp_seconds"]
            if last.setdefault(group, began) != began:
                last[group] = began
                seconds.setdefault(group, []).append(float(gauges["duration_seconds"]))
        return len(seconds) == len(groups) and all(len(taken) >= count for taken in seconds.values())

    wait(f"{count} evaluations of each group", look, seconds=60 + 3 * count * VARIANTS_SECONDS)
    return {group: taken[:count] for group, taken in seconds.items()}


def rules_of(url: str) -> list[Rule]:
    """Return the built rules with what Prometheus tells of them: their last error and the time of one evaluation.

    Raises:
        RuntimeError: A rule fails.
    """
    groups = httpx.get(f"{url}/api/v1/rules", timeout=60).raise_for_status().json()["data"]["groups"]
    rules: list[Rule] = [rule for group in groups for rule in group["rules"]]
    failed = [f"{rule['name']}: {rule['lastError']}" for rule in rules if rule.get("lastError")]
    if failed:
        raise RuntimeError("rules fail: " + "; ".join(failed))
    return [rule for rule in rules if "variant" not in rule.get("labels", {})]
