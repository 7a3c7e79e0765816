"""Bodies of requests, read with a limit, and only once it is known who sends them."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from urllib.parse import parse_qs

from fastapi import Request
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from curvewatch_service.errors import BadRequestError, TooLargeError, WrongMediaError

SPEC_BYTES = 1_000_000
"""Most bytes of a job file."""
_FORM = "application/x-www-form-urlencoded"
_FRAMING_BYTES = 64 * 1024
_CODE_REMEDY = "keep data and checkpoints outside of the code folder and give their paths in params"


@dataclass(frozen=True, kw_only=True)
class Upload:
    """A job as it was sent."""

    spec: str
    """The job file."""
    code: bytes
    """The zipped code folder."""


async def read_body(request: Request, *, limit: int, remedy: str = "send fewer messages at once") -> bytes:
    """Return a body of at most so many bytes.

    Raises:
        TooLargeError: It has more.
    """
    rule = f"the limit is {limit}; {remedy}"
    return b"".join([chunk async for chunk in _limited(request, limit=limit, what="the request", rule=rule)])


async def read_form(request: Request, *, limit: int) -> dict[str, str]:
    """Return the fields of a form of at most so many bytes; of a field that is there twice, the last one.

    Only the plain form is read: the parts of a multipart body would be written to the disk on the way.

    Raises:
        WrongMediaError: It is another kind of body.
        TooLargeError: It has more bytes.
    """
    kind = request.headers.get("Content-Type", "")
    if kind.partition(";")[0].strip().lower() != _FORM:
        raise WrongMediaError(f"{request.url.path} reads a form as {_FORM}, got content type {kind!r}")
    body = await read_body(request, limit=limit, remedy="send only the fields of the form")
    fields = parse_qs(body.decode("utf-8", "replace"), keep_blank_values=True)
    return {name: values[-1] for name, values in fields.items()}


async def read_upload(request: Request, *, max_code_bytes: int) -> Upload:
    """Return the parts `spec` and `code` of a multipart body.

    Raises:
        BadRequestError: It is no multipart body with these parts.
        TooLargeError: The code or the job file is larger than allowed.
    """
    if not request.headers.get("Content-Type", "").lower().startswith("multipart/form-data"):
        raise BadRequestError(
            "a job is sent as multipart/form-data with the parts `spec` (the job file) and `code` (a zip), "
            f"got content type {request.headers.get('Content-Type')!r}"
        )
    stream = _limited(
        request,
        limit=max_code_bytes + SPEC_BYTES + _FRAMING_BYTES,
        what="the job with its zipped code folder",
        rule=f"the limit for the code is {max_code_bytes} bytes zipped; {_CODE_REMEDY}",
    )
    parser = MultiPartParser(request.headers, stream, max_files=2, max_fields=2, max_part_size=SPEC_BYTES)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise BadRequestError(f"the parts of the request cannot be read: {error.message}") from error
    try:
        spec = await _part(
            form, "spec", limit=SPEC_BYTES, remedy="keep long values in files of the code folder"
        )
        code = await _part(form, "code", limit=max_code_bytes, remedy=_CODE_REMEDY)
    finally:
        await form.close()
    try:
        return Upload(spec=spec.decode(), code=code)
    except UnicodeDecodeError as error:
        raise BadRequestError(
            f"the part `spec` is not UTF-8 text: {error}; save the job file as UTF-8"
        ) from error


async def _part(form: FormData, name: str, *, limit: int, remedy: str) -> bytes:
    value = form.get(name)
    if value is None:
        raise BadRequestError(
            f"the request has no part `{name}`; send `spec` (the job file) and `code` (a zip)"
        )
    data = await value.read() if isinstance(value, UploadFile) else value.encode()
    if len(data) > limit:
        raise TooLargeError(f"the part `{name}` has {len(data)} bytes, the limit is {limit}; {remedy}")
    return data


async def _limited(request: Request, *, limit: int, what: str, rule: str) -> AsyncGenerator[bytes, None]:
    """Pass a body on, and end it as soon as it is known to be too large."""
    announced = request.headers.get("Content-Length", "")
    size = int(announced) if announced.isdecimal() else 0
    if size <= limit:
        size = 0
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit:
                break
            yield chunk
    if size > limit:
        raise TooLargeError(f"{what} has {size} bytes or more, {rule}")
