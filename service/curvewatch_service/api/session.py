"""Who asks: a program with a token, or a browser that signed in with one.

A page takes `user: PageUser`, a route of the API `user: CurrentUser`. A browser's unsafe requests carry its
`csrf` word in the header `X-CSRF-Token` or in the form field `csrf`. `GET /login` is a page; `POST /login`
with the form fields `token` and `next` sends a wrong token back to it with `?failed=1`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import RedirectResponse

from curvewatch_service.api.bodies import read_form
from curvewatch_service.auth import Sessions, same_secret
from curvewatch_service.errors import ForbiddenError, NotAuthenticatedError
from curvewatch_service.services import Services

COOKIE = "curvewatch_session"
CSRF_FIELD = "csrf"
CSRF_HEADER = "X-CSRF-Token"
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_FORM = "application/x-www-form-urlencoded"
_MAX_FORM_BYTES = 64 * 1024
_MAX_PATH = 2048

router = APIRouter(include_in_schema=False)


class SignInNeededError(Exception):
    """A page was asked for by a browser that is not signed in; it is sent to `/login`."""


@dataclass(frozen=True, kw_only=True)
class User:
    """Who asks."""

    name: str
    csrf: str = ""
    """Word for the forms of this browser's pages; empty for a program."""


def services_of(request: Request) -> Services:
    """Return the services of the app that was asked."""
    services: Services = request.app.state.services
    return services


def sessions_of(request: Request) -> Sessions:
    """Return the signed-in browsers of the app that was asked."""
    sessions: Sessions = request.app.state.sessions
    return sessions


def bearer_token(request: Request) -> str | None:
    """Return the token of the `Authorization` header, None when there is none."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None


async def _csrf_word(request: Request) -> str:
    """Return the word that came with the request, from its header or its form; empty when there is none."""
    if (word := request.headers.get(CSRF_HEADER)) is not None:
        return word
    if request.method in _SAFE_METHODS or not request.headers.get("Content-Type", "").startswith(_FORM):
        return ""
    # Only a short form is read here: whoever asks is not known yet.
    length = request.headers.get("Content-Length", "")
    if not length.isdecimal() or int(length) > _MAX_FORM_BYTES:
        return ""
    field = (await request.form()).get(CSRF_FIELD)
    return field if isinstance(field, str) else ""


def require_user(request: Request, csrf_word: Annotated[str, Depends(_csrf_word)]) -> User:
    """Return who asks, by token or by cookie.

    Raises:
        NotAuthenticatedError: Nobody that is known.
        ForbiddenError: A browser's request that no page of its session made.
    """
    token = bearer_token(request)
    if token is not None:
        owner = services_of(request).tokens.owner_of(token)
        if owner is None:
            raise NotAuthenticatedError(
                "the token is not one of this service's; use the one that its first start wrote into "
                "the profile"
            )
        return User(name=owner)
    user = _browser_user(request)
    if user is None:
        raise NotAuthenticatedError(
            "no token came with the request; send the header `Authorization: Bearer <token>`, or sign in at "
            "/login"
        )
    if request.method not in _SAFE_METHODS and not same_secret(csrf_word, user.csrf):
        raise ForbiddenError(
            f"the request did not come from a page of this session: the word in {CSRF_HEADER} or in the form "
            f"field {CSRF_FIELD} is missing or wrong; reload the page and try again"
        )
    return user


def require_page_user(request: Request, csrf_word: Annotated[str, Depends(_csrf_word)]) -> User:
    """Return who asks for a page.

    Raises:
        SignInNeededError: Nobody who is signed in; the browser is sent to `/login`.
        ForbiddenError: A form that no page of its session made.
    """
    if bearer_token(request) is None and _browser_user(request) is None:
        raise SignInNeededError
    return require_user(request, csrf_word)


def _browser_user(request: Request) -> User | None:
    cookie = request.cookies.get(COOKIE)
    signed_in = sessions_of(request).find(cookie) if cookie else None
    return None if signed_in is None else User(name=signed_in.owner, csrf=signed_in.csrf)


CurrentUser = Annotated[User, Depends(require_user)]
PageUser = Annotated[User, Depends(require_page_user)]


def login_url(request: Request) -> str:
    """Return the address of the sign-in page that leads back to the page that was asked for."""
    if request.method not in _SAFE_METHODS or request.url.path == "/":
        return "/login"
    path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    return f"/login?next={quote(path, safe='')}"


def local_path(path: str) -> str:
    """Return a path of this service; whatever leads elsewhere becomes `/`."""
    # Browsers read `//host` and `/\host` as another host, and skip control characters on the way.
    leaves = not path.startswith("/") or path.startswith(("//", "/\\")) or not path.isprintable()
    return "/" if leaves or len(path) > _MAX_PATH else path


async def _login_form(request: Request) -> dict[str, str]:
    # Whoever signs in is not known yet: little is read, and nothing is kept.
    return await read_form(request, limit=_MAX_FORM_BYTES)


@router.post("/login")
def log_in(
    request: Request,
    form: Annotated[dict[str, str], Depends(_login_form)],
) -> Response:
    """Sign a browser in with a token."""
    target = local_path(form.get("next", "/"))
    # Nobody but our own page may sign a browser in: else somebody could do it with a token of his.
    ours = request.headers.get("Sec-Fetch-Site", "same-origin") in ("same-origin", "none")
    cookie = sessions_of(request).begin(form.get("token", "").strip()) if ours else None
    if cookie is None:
        return RedirectResponse(f"/login?{urlencode({'failed': 1, 'next': target})}", status_code=303)
    answer = RedirectResponse(target, status_code=303)
    answer.set_cookie(COOKIE, cookie, httponly=True, samesite="strict", secure=_is_https(request), path="/")
    return answer


@router.post("/logout")
def log_out(request: Request, user: PageUser) -> Response:  # noqa: ARG001 - who is checked, not used
    """Sign a browser out."""
    cookie = request.cookies.get(COOKIE)
    if cookie:
        sessions_of(request).end(cookie)
    answer = RedirectResponse("/login", status_code=303)
    answer.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict", secure=_is_https(request))
    return answer


def _is_https(request: Request) -> bool:
    # Behind a proxy that ends TLS only the public address tells.
    return request.url.scheme == "https" or services_of(request).settings.public_url.startswith("https:")
