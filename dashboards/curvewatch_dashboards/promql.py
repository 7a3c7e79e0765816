"""PromQL that cannot misspell a series or a label: selectors come from the table of series."""

from __future__ import annotations

from curvewatch_workers.series import Series


def select(series: Series, **matchers: str) -> str:
    """Return the selector of a series, as in `curvewatch_loss{split="validation"}`.

    A value that starts with `=~`, `!~` or `!=` brings its own operator (`=~a|b` needs no escaping); any other is
    compared with `=`.

    Raises:
        ValueError: The series has no such label.
    """
    for label in matchers:
        if label not in series.labels:
            raise ValueError(f"{series.name} has no label {label!r}; it has {', '.join(series.labels)}")
    inner = ",".join(f"{label}{_operator(value)}" for label, value in matchers.items())
    return f"{series.name}{{{inner}}}" if inner else series.name


def one_of(series: Series, selector: str) -> str:
    """Return each element of a selector of a series once.

    A service whose pod was replaced, or a second one on the same database, is another `instance`: a panel over time
    would draw each line twice and show numbers of before beside those of now.
    """
    return f"max by ({', '.join(series.labels)}) ({selector})"


def lately(selector: str, *, window: str = "$__range") -> str:
    """Return the latest value of each element in a time, by default the one that a dashboard shows.

    For what is asked for once, as of the end of that time: a run that has left `/metrics` by then would be missing.
    """
    return f"last_over_time({selector}[{window}])"


def _operator(value: str) -> str:
    for operator in ("=~", "!~", "!="):
        if value.startswith(operator):
            return f'{operator}"{value.removeprefix(operator)}"'
    return f'="{value}"'


def ignoring(left: Series, right: Series) -> str:
    """Return the matching clause between two series of a run.

    Only the labels that tell the two apart are ignored, so that `cluster`, `namespace`, `job` and all else
    that a scrape or a federation adds stays in the match, and two clusters never answer for each other.
    """
    different = sorted(set(left.labels) ^ set(right.labels))
    return f"ignoring ({', '.join(different)})" if different else ""
