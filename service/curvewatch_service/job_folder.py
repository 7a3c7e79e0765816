"""What a user submits: a job file and the folder of code beside it, checked before anything is sent."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from curvewatch_service.code import files_that_travel, require_task_module
from curvewatch_service.errors import CodeBundleError
from curvewatch_workers.contract import JobSpec, SpecError, SpecProblem, read_job_spec


@dataclass(frozen=True, kw_only=True)
class JobFolder:
    """A job that is ready to be sent."""

    path: Path
    """The job file."""
    text: str
    """Its content."""
    spec: JobSpec
    code: Path
    """The folder of code that travels to the cluster."""


def read_job_folder(path: Path) -> JobFolder:
    """Read a job file, or the `job.yaml` of a folder, and check that its code is there.

    The code is parsed and never run: it may need what only the workers have.

    Raises:
        SpecError: The job breaks the schema, or its folder, module or callable is not there.
    """
    path = path / "job.yaml" if path.is_dir() else path
    spec = read_job_spec(path)
    code = (path.parent / spec.code.working_dir).resolve()
    problem = next(_code_problems(spec, code), None)
    if problem is not None:
        raise SpecError(str(path), [problem])
    return JobFolder(path=path, text=path.read_text(encoding="utf-8"), spec=spec, code=code)


def _code_problems(spec: JobSpec, code: Path) -> Iterator[SpecProblem]:
    if not code.is_dir():
        what = "is a file" if code.exists() else "does not exist"
        yield SpecProblem(
            path="code.working_dir",
            message=f"{spec.code.working_dir!r} {what}; name a folder, relative to the job file "
            f"(looked for {code})",
        )
        return
    module, _, name = spec.code.entry.partition(":")
    try:
        names = [path.relative_to(code).as_posix() for path in files_that_travel(code)]
    except CodeBundleError as error:
        yield SpecProblem(path="code.working_dir", message=str(error))
        return
    try:
        require_task_module(names, spec.code, installed_known=True)
    except CodeBundleError as error:
        message = str(error).removeprefix(f"{spec.code.entry_field}: ")
        yield SpecProblem(path=spec.code.entry_field, message=f"{message} (in {code})")
        return
    source = _source_of(module, code)
    if source is not None:
        yield from _callable_problems(spec.code.entry_field, module, name, source)


def _source_of(module: str, code: Path) -> Path | None:
    base = code.joinpath(*module.split("."))
    for candidate in (base.with_name(f"{base.name}.py"), base / "__init__.py"):
        if candidate.is_file():
            return candidate
    # The module is part of an installed package: what it holds is not known here.
    return None


def _callable_problems(field: str, module: str, name: str, source: Path) -> Iterator[SpecProblem]:
    try:
        tree = ast.parse(source.read_bytes(), filename=str(source))
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        where = f"{source}, line {line}" if line else str(source)
        yield SpecProblem(path=field, message=f"module {module!r} is not valid Python: {error} ({where})")
        return
    names = set(_top_level_names(tree.body))
    # After a star import, or with a module `__getattr__`, any name may be there.
    if name not in names and not names & {"*", "__getattr__"}:
        known = sorted(node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef))
        hint = _suggestion(name, known, "it defines no function")
        yield SpecProblem(path=field, message=f"{source.name} has no {name!r}; {hint}")


def _top_level_names(body: list[ast.stmt]) -> Iterator[str]:
    """Names that a module binds, those inside `if`, `try` and `with` included."""
    for node in body:
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                yield from (alias.asname or alias.name.partition(".")[0] for alias in aliases)
            case ast.Assign() | ast.AnnAssign():
                yield from (part.id for part in ast.walk(node) if isinstance(part, ast.Name))
            case ast.If() | ast.Try() | ast.With():
                inner = [part for part in ast.iter_child_nodes(node) if isinstance(part, ast.stmt)]
                handlers = [part for handler in getattr(node, "handlers", []) for part in handler.body]
                yield from _top_level_names(inner + handlers)


def _suggestion(wrong: str, known: list[str], nothing: str) -> str:
    close = difflib.get_close_matches(wrong, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known there: {', '.join(known)}" if known else nothing
