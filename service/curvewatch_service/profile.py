"""Writes the profile, with the token that the service has made."""

from __future__ import annotations

import json
import os
from pathlib import Path

from curvewatch_workers.contract import Profile, ProfileError, profile_path


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
