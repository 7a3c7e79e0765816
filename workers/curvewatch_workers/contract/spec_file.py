"""Read a job from YAML or JSON, and say everything that is wrong with it at once."""

from __future__ import annotations

import difflib
import types
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from curvewatch_workers.contract.errors import SpecError, SpecProblem
from curvewatch_workers.contract.job_text import JobTextError, values_of
from curvewatch_workers.contract.spec import (
    CONFIDENTIAL,
    LABEL_KEY_PATTERN,
    NAME_PATTERN,
    NUMBER_OF_WORKERS,
    RANGE_OF_WORKERS,
    TASK_PATTERN,
    JobSpec,
    PolicySpec,
)

MAX_SPEC_BYTES = 1_000_000

_RULES = {
    NAME_PATTERN: "must be letters, digits, `.`, `_` and `-`, at most 63 characters, the first and last no mark",
    TASK_PATTERN: "must be `module:callable`, as in `digits:build`",
    LABEL_KEY_PATTERN: "must be letters, digits and `_`, the first no digit, at most 63 characters",
}
"""What a pattern means, in words."""
_NO_PLACES = ("[key]", NUMBER_OF_WORKERS, RANGE_OF_WORKERS)
"""Parts of an error's location that do not stand in the file."""


def read_job_spec(path: str | Path) -> JobSpec:
    """Read a job file.

    Args:
        path: A YAML or JSON file.

    Raises:
        SpecError: The file cannot be read, is not YAML, or breaks the schema; with every problem.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "job.yaml"
    return parse_job_spec(_text_of(path, "name a job.yaml or its folder"), source=str(path))


def read_policy(path: str | Path) -> PolicySpec:
    """Read a policy from a file that holds it as a job does, below `policy`, or alone.

    Args:
        path: A YAML or JSON file; a whole job too, of which the policy is taken.

    Raises:
        SpecError: The file cannot be read, is not YAML, or breaks the schema; with every problem.
    """
    source = str(path)
    data = _values(_text_of(Path(path), "name a file with the policy block of a job"), source)
    block = data
    if isinstance(data, dict) and {"policy", "code"} & set(data):
        # What stands beside the policy must be of a job: a misspelt policy, or half of one, would count for nothing.
        strange = [name for name in data if name not in JobSpec.model_fields]
        if strange:
            problems = [
                SpecProblem(path=str(one), message=_unknown(str(one), JobSpec.model_fields))
                for one in strange
            ]
            raise SpecError(source, problems)
        block = data.get("policy", {})
    if not isinstance(block, dict):
        kind = "empty" if block is None else f"a {type(block).__name__}"
        message = f"must hold the policy block of a job, as in `policy: {{overfitting: stop}}`, but is {kind}"
        raise SpecError(source, [_whole(message)])
    try:
        return PolicySpec.model_validate(block)
    except ValidationError as error:
        raise SpecError(source, list(_problems(error, "policy"))) from error


def _text_of(path: Path, remedy: str) -> str:
    try:
        if path.stat().st_size > MAX_SPEC_BYTES:
            raise SpecError(
                str(path),
                [_whole(f"a job file has at most {MAX_SPEC_BYTES} bytes, this has {path.stat().st_size}")],
            )
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SpecError(str(path), [_whole(f"there is no such file; {remedy}")]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(str(path), [_whole(f"cannot be read as UTF-8 text: {error}")]) from error


def _values(text: str, source: str) -> Any:
    try:
        return values_of(text)
    except JobTextError as error:
        raise SpecError(source, [SpecProblem(path=error.path, message=error.message)]) from error


def parse_job_spec(text: str, *, source: str = "job") -> JobSpec:
    """Parse a job from YAML or JSON text.

    Raises:
        SpecError: The text is neither or breaks the schema; with every problem.
    """
    data = _values(text, source)
    if not isinstance(data, dict):
        kind = "empty" if data is None else f"a {type(data).__name__}"
        raise SpecError(
            source, [_whole(f"must hold a mapping with `name`, `code` and `training`, but is {kind}")]
        )
    try:
        spec = JobSpec.model_validate(data)
    except ValidationError as error:
        raise SpecError(source, list(_problems(error))) from error
    if spec.code.trained_by is not None:
        message = (
            f"is {spec.code.trained_by!r}, but a job names its code, as task or loop; a run that is trained "
            "elsewhere is told of by a callback of curvewatch_workers.hooks"
        )
        raise SpecError(source, [SpecProblem(path="code.trained_by", message=message)])
    return spec


def _whole(message: str) -> SpecProblem:
    return SpecProblem(path="", message=message)


def _problems(error: ValidationError, *below: str) -> Iterator[SpecProblem]:
    """Name what is wrong, and where in a job; `below` is where in it the values stand that were looked at."""
    for details in error.errors(include_url=False):
        location = [*below, *(part for part in details["loc"] if part not in _NO_PLACES)]
        if location[:1] == ["params"]:
            # Below each key of a free value stands its JSON type.
            location = ["params", *location[1::2]]
        yield SpecProblem(path=".".join(str(part) for part in location), message=_message(details, location))


def _unknown(name: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    hint = f"did you mean `{close[0]}`?" if close else f"known here: {', '.join(sorted(known))}"
    return f"unknown field; {hint}"


def _message(details: ErrorDetails, location: list[int | str]) -> str:
    if details["type"] == "extra_forbidden":
        return _unknown(str(location[-1]), _fields_at(location[:-1]))
    if details["type"] == "string_pattern_mismatch" and (rule := _RULES.get(details["ctx"]["pattern"])):
        return f"{rule}, got {details['input']!r}"
    if details["type"] == "missing":
        return "is required but missing"
    if details["type"] == "tuple_type":
        return f"must be a list, as in `[a, b]`, got {details['input']!r}"
    message = details["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if details["type"] == CONFIDENTIAL:
        return message
    if isinstance(details["input"], dict | list) or repr(details["input"]) in message:
        return message
    return f"{message}, got {details['input']!r}"


def _fields_at(location: list[int | str]) -> list[str]:
    """Names of the fields of the model at a place in the job."""
    model: type[BaseModel] = JobSpec
    for part in location:
        field = model.model_fields.get(str(part))
        found = _model_in(field.annotation) if field else None
        if found is None:
            return []
        model = found
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, types.UnionType, Annotated):
        return next((model for arg in get_args(annotation) if (model := _model_in(arg))), None)
    return None
