"""Errors as answers: every one is a `Problem`, and none shows a stack trace."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from curvewatch_service.api.session import SignInNeededError, login_url
from curvewatch_service.errors import ServiceError
from curvewatch_service.schemas import Problem
from curvewatch_workers.contract import SpecError

MEDIA_TYPE = "application/problem+json"


def problem_answer(problem: Problem, *, headers: dict[str, str] | None = None) -> Response:
    """Return a problem as an answer."""
    return Response(
        problem.model_dump_json(), status_code=problem.status, media_type=MEDIA_TYPE, headers=headers
    )


def unexpected() -> Problem:
    """Return what a caller is told of an error of ours."""
    return Problem(
        title="InternalError",
        status=500,
        detail="the service failed to answer this request; its log says why",
    )


def validation_problem(problems: list[str]) -> Problem:
    """Return what a caller is told of a request that breaks the schema."""
    return Problem(
        title="BadRequestError",
        status=422,
        detail=f"the request cannot be used: {'; '.join(problems)}",
        problems=problems,
    )


def describe(error: RequestValidationError | ValidationError) -> list[str]:
    """Return each thing that a validation found wrong, with its place."""
    return [f"{'.'.join(map(str, details['loc']))}: {details['msg']}" for details in error.errors()]


def install(app: FastAPI) -> None:
    """Let an app answer every error with a problem."""
    app.add_exception_handler(ServiceError, _service_error)
    app.add_exception_handler(SpecError, _spec_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(SignInNeededError, _sign_in)


# Starlette types a handler by the widest exception, so each narrows by itself.


def _service_error(_request: Request, error: Exception) -> Response:
    status = error.status if isinstance(error, ServiceError) else 500
    problem = Problem(title=type(error).__name__, status=status, detail=str(error))
    return problem_answer(problem, headers={"WWW-Authenticate": "Bearer"} if status == 401 else None)


def _spec_error(_request: Request, error: Exception) -> Response:
    problems = [str(problem) for problem in error.problems] if isinstance(error, SpecError) else []
    return problem_answer(Problem(title="SpecError", status=422, detail=str(error), problems=problems))


def _validation_error(_request: Request, error: Exception) -> Response:
    return problem_answer(
        validation_problem(describe(error) if isinstance(error, RequestValidationError) else [])
    )


def _http_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    what = f"{request.method} {request.url.path}"
    detail = {404: f"there is no {what}", 405: f"{what} is not allowed"}.get(error.status_code, error.detail)
    problem = Problem(title=HTTPStatus(error.status_code).phrase, status=error.status_code, detail=detail)
    return problem_answer(problem, headers=dict(error.headers or {}))


def _sign_in(request: Request, _error: Exception) -> Response:
    return RedirectResponse(login_url(request), status_code=303)
