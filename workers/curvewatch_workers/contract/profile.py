"""The profile of the command line and of the trainers' callbacks: which service, and the token for it."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

PROFILE_VARIABLE = "CURVEWATCH_PROFILE"
"""Names the profile's file."""
SERVER_VARIABLE, TOKEN_VARIABLE = "CURVEWATCH_SERVER", "CURVEWATCH_TOKEN"
"""Take the place of the file, both together."""


class ProfileError(Exception):
    """The profile is missing or cannot be used."""


class Profile(BaseModel):
    """A service and the token of one user of it."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    server: str = Field(pattern=r"^https?://")
    """Address of the service, such as http://127.0.0.1:8420."""
    token: str = Field(pattern=r"^[!-~]+$", repr=False)
    """API token of the user."""


def profile_path() -> Path:
    """Return where the profile is: $CURVEWATCH_PROFILE, else ~/.config/curvewatch/profile.json."""
    named = os.environ.get(PROFILE_VARIABLE)
    return Path(named).expanduser() if named else Path.home() / ".config" / "curvewatch" / "profile.json"


def read_profile(path: Path | None = None) -> Profile:
    """Read the profile, or the one at a path; $CURVEWATCH_SERVER and $CURVEWATCH_TOKEN come before the profile.

    Raises:
        ProfileError: There is none, or it is not one, or only one of the two variables is set.
    """
    server, token = os.environ.get(SERVER_VARIABLE), os.environ.get(TOKEN_VARIABLE)
    if path is None and (server or token):
        if not (server and token):
            there, missing = (
                (SERVER_VARIABLE, TOKEN_VARIABLE) if server else (TOKEN_VARIABLE, SERVER_VARIABLE)
            )
            raise ProfileError(
                f"${there} is set and ${missing} is not; set both, or neither to use the profile"
            )
        return profile_of(server, token)
    path = path or profile_path()
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ProfileError(
            f"there is no profile at {path}; the first `curvewatch serve` writes one, or name a service with "
            f"--server and --token, or ${SERVER_VARIABLE} and ${TOKEN_VARIABLE}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ProfileError(f"the profile {path} cannot be read: {error}") from error
    try:
        return Profile.model_validate_json(text)
    except ValidationError as error:
        raise ProfileError(
            f'the profile {path} must be JSON like {{"server": "http://127.0.0.1:8420", "token": "cw_..."}}: '
            f"{_wrong(error)}"
        ) from error


def profile_of(server: str, token: str) -> Profile:
    """Return the profile of a service and a token that a user typed.

    Raises:
        ProfileError: One of them cannot be used; the token is not repeated.
    """
    try:
        return Profile(server=server, token=token)
    except ValidationError as error:
        raise ProfileError(
            f"service {server!r} and the token that was given cannot be used: {_wrong(error)}; an address is "
            "like http://127.0.0.1:8420, a token like cw_..."
        ) from error


def _wrong(error: ValidationError) -> str:
    problems = error.errors(include_url=False, include_input=False)
    return "; ".join(f"{'.'.join(map(str, one['loc'])) or 'file'}: {one['msg']}" for one in problems)
