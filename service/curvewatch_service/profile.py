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
        wrong = "; ".join(
            f"{'.'.join(map(str, problem['loc'])) or 'file'}: {problem['msg']}"
            for problem in error.errors(include_url=False, include_input=False)
        )
        raise ProfileError(
            f'the profile {path} must be JSON like {{"server": "http://127.0.0.1:8420", "token": "cw_..."}}: '
            f"{wrong}"
        ) from error


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
