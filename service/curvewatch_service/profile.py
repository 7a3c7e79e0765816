"""The command line's profile: which service, and the token for it."""

from __future__ import annotations

import json
import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

PROFILE_VARIABLE = "CURVEWATCH_PROFILE"


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
    """Read the profile, or the one at a path.

    Raises:
        ProfileError: There is none, or it is not one.
    """
    path = path or profile_path()
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ProfileError(
            f"there is no profile at {path}; the first `curvewatch serve` writes one, or name a service with "
            "--server and --token"
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


def write_profile(profile: Profile) -> Path:
    """Write the profile, readable by its owner only, and return its path.

    Raises:
        ProfileError: It cannot be written.
    """
    path = profile_path()
    draft = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The token must never be readable by others, not even before a chmod.
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(profile.model_dump(), file, indent=2)
            file.write("\n")
        draft.replace(path)
    except OSError as error:
        raise ProfileError(f"the profile {path} cannot be written: {error}") from error
    return path
