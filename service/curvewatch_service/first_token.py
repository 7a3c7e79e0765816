"""The token that the service makes by itself, so that whoever starts it can use it."""

from __future__ import annotations

import getpass
import itertools
import logging
import os
from pathlib import Path

from curvewatch_service.auth import new_alerts_token
from curvewatch_service.errors import SettingsError
from curvewatch_service.profile import write_profile
from curvewatch_service.services import Services
from curvewatch_service.settings import Settings
from curvewatch_workers.contract import PROFILE_VARIABLE, Profile, ProfileError, profile_path, read_profile

logger = logging.getLogger(__name__)


def provide_token(services: Services) -> None:
    """Make a token and write it where the command line finds it, at the first start or when nothing is there.

    A profile that is there at the first start stays beside the new one: it may hold the only copy of
    another service's token. One that holds a token of this service follows it to another port.

    Raises:
        SettingsError: The profile cannot be written; then no token was made.
    """
    path = profile_path()
    if path.exists() and not services.tokens.empty:
        _follow(services)
        return
    # The store keeps only a hash: a token that could not be written down afterwards would be lost.
    _require_writable(path)
    if path.exists():
        _set_aside(path)
    token = services.tokens.issue(_user_name())
    write_profile(Profile(server=local_url(services.settings), token=token))
    logger.info("A token for this service is in %s.", path, extra={"action": "token_issued"})


def provide_alerts_token(settings: Settings) -> str:
    """Return the token with which Alertmanager tells of alerts; make it at the first start.

    Raises:
        SettingsError: The file cannot be read or written, or is empty.
    """
    path = settings.alerts_token_path
    try:
        if not path.exists():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
                file.write(new_alerts_token())
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"the file of Alertmanager's token, {path}, cannot be used ({error}); choose another with "
            "CURVEWATCH_ALERTS_TOKEN_PATH"
        ) from error
    if not token:
        raise SettingsError(f"the file of Alertmanager's token, {path}, is empty; remove it, and one is made")
    return token


def _follow(services: Services) -> None:
    """Write the service's address into a profile that leads to where the service was."""
    try:
        profile = read_profile()
    except ProfileError:
        # It is somebody's all the same, and the commands that need it say what is wrong.
        return
    here = local_url(services.settings)
    # A user of this machine may have chosen the public address.
    if profile.server.rstrip("/") in {here, services.settings.public_url}:
        return
    if services.tokens.owner_of(profile.token) is None:
        return
    path = write_profile(profile.model_copy(update={"server": here}))
    logger.info(
        "The profile %s led to %s and now leads to %s.",
        path,
        profile.server,
        here,
        extra={"action": "profile_moved"},
    )


def _set_aside(path: Path) -> None:
    first = path.with_name(f"{path.name}.previous")
    names = itertools.chain([first], (path.with_name(f"{first.name}-{n}") for n in itertools.count(2)))
    # Each copy may be the only one of its token: none is written over another.
    kept = next(name for name in names if not os.path.lexists(name))
    path.replace(kept)
    logger.warning(
        "The profile that was at %s is kept as %s.", path, kept, extra={"action": "profile_replaced"}
    )


def _require_writable(path: Path) -> None:
    probe = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe.touch(mode=0o600)
        probe.unlink()
    except OSError as error:
        raise SettingsError(
            f"the profile {path} cannot be written ({error.strerror}), and it is where the service's token "
            f"belongs; set {PROFILE_VARIABLE} to another path"
        ) from error


def _user_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # In a container the user may have a number only.
        return "admin"


def local_url(settings: Settings) -> str:
    """Return the service's address as this machine reaches it."""
    host = "127.0.0.1" if settings.host in {"0.0.0.0", "::"} else settings.host  # noqa: S104 - not bound to
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"
