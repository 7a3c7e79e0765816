"""Who may do what: users' tokens, signed-in browsers, and the token of each run's ingest.

Whoever reads the database learns no secret from it: only hashes are kept. The secrets are 256 random
bits, so a plain SHA-256 of them cannot be guessed.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import delete, exists, select

from curvewatch_service.errors import BadRequestError, NotFoundError
from curvewatch_service.store import Store
from curvewatch_service.tables import SessionRow, TokenRow

TOKEN_PREFIX = "cw_"  # noqa: S105 - what tokens begin with, no token
INGEST_TOKEN_PREFIX = "cwi_"  # noqa: S105
ALERTS_TOKEN_PREFIX = "cwa_"  # noqa: S105
SESSION_LIFETIME = timedelta(days=7)


def token_hash(token: str) -> str:
    """Return what is kept of a token."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def _utc_now() -> datetime:
    return datetime.now(UTC)


class TokenStore:
    """Tokens of users."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @property
    def empty(self) -> bool:
        """Whether no token was ever issued."""
        with self._store.read() as session:
            return not session.scalar(select(exists(select(TokenRow))))

    def issue(self, owner: str) -> str:
        """Make a token for a user and return it; it cannot be read again.

        Raises:
            BadRequestError: The name is empty or holds control characters.
        """
        if not owner.strip() or not owner.isprintable():
            raise BadRequestError(f"a user's name needs printable characters, got {owner!r}; choose another")
        token = TOKEN_PREFIX + secrets.token_urlsafe(32)
        with self._store.write() as session:
            session.add(TokenRow(token_hash=token_hash(token), owner=owner, created_at=_utc_now()))
        return token

    def owner_of(self, token: str) -> str | None:
        """Return the user of a token, None when it is not one of ours."""
        hashed = token_hash(token)
        with self._store.read() as session:
            row = session.get(TokenRow, hashed)
            return row.owner if row is not None and hmac.compare_digest(row.token_hash, hashed) else None


@dataclass(frozen=True, kw_only=True)
class SignedIn:
    """A user in a browser."""

    owner: str
    csrf: str
    """Word that every form of this browser's pages carries; another site cannot know it."""


class Sessions:
    """Browsers that signed in with a token; they are signed out when the token is withdrawn."""

    def __init__(self, store: Store, *, clock: Callable[[], datetime] = _utc_now) -> None:
        self._store = store
        self._clock = clock

    def begin(self, token: str) -> str | None:
        """Sign a browser in and return its cookie, None when the token is not one of ours."""
        hashed, cookie, now = token_hash(token), secrets.token_urlsafe(32), self._clock()
        with self._store.write() as session:
            if session.get(TokenRow, hashed) is None:
                return None
            session.execute(delete(SessionRow).where(SessionRow.expires_at <= now))
            session.add(
                SessionRow(
                    session_hash=token_hash(cookie), token_hash=hashed, expires_at=now + SESSION_LIFETIME
                )
            )
        return cookie

    def find(self, cookie: str) -> SignedIn | None:
        """Return who is signed in with a cookie, None when nobody is (any more)."""
        query = (
            select(TokenRow.owner)
            .join(SessionRow, SessionRow.token_hash == TokenRow.token_hash)
            .where(SessionRow.session_hash == token_hash(cookie), SessionRow.expires_at > self._clock())
        )
        with self._store.read() as session:
            owner = session.scalar(query)
        return None if owner is None else SignedIn(owner=owner, csrf=_csrf_of(cookie))

    def end(self, cookie: str) -> None:
        """Sign a browser out."""
        with self._store.write() as session:
            session.execute(delete(SessionRow).where(SessionRow.session_hash == token_hash(cookie)))


def _csrf_of(cookie: str) -> str:
    # Bound to the session without a place of its own: who does not have the cookie cannot compute it.
    return hmac.new(cookie.encode(), b"csrf", hashlib.sha256).hexdigest()


def same_secret(given: str, expected: str) -> bool:
    """Compare two secrets in a time that does not tell where they differ."""
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), expected.encode())


def new_ingest_token() -> str:
    """Make a token that is good for one run's ingest only."""
    return INGEST_TOKEN_PREFIX + secrets.token_urlsafe(32)


def new_alerts_token() -> str:
    """Make a token that is good for telling of alerts only."""
    return ALERTS_TOKEN_PREFIX + secrets.token_urlsafe(32)


def write_ingest_token(path: Path, token: str) -> None:
    """Write a run's token where its workers read it, for the service's own user only."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(token)


def may_ingest(store: Store, run_id: str, token: str) -> bool:
    """Tell whether a token is the one of this run's ingest; false for a run that does not exist."""
    try:
        expected = store.ingest_token_hash(run_id)
    except NotFoundError:
        return False
    return same_secret(token_hash(token), expected)
