"""The service's settings: read once from `CURVEWATCH_*` variables, at the edge."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from curvewatch_service.errors import SettingsError

MEBIBYTE = 1024 * 1024
PREFIX = "CURVEWATCH_"
_WILDCARDS = {"0.0.0.0", "::"}  # noqa: S104 - recognised, not bound to


def _absolute(path: Path) -> Path:
    return path.expanduser().absolute()


def _http_url(value: str) -> str:
    if not value.startswith(("http://", "https://")):
        # Of one with a user there may be a password in it.
        got = "one with a user in it" if "@" in value else repr(value)
        raise ValueError(f"must start with http:// or https://, got {got}")
    return value.rstrip("/")


AbsolutePath = Annotated[Path, AfterValidator(_absolute)]
HttpUrl = Annotated[str, AfterValidator(_http_url)]


def _default_public_url(data: dict[str, Any]) -> str:
    host: str = data["host"]
    if host in _WILDCARDS:
        host = "127.0.0.1" if data["ray_address"] is None else socket.gethostname()
    return f"http://{f'[{host}]' if ':' in host else host}:{data['port']}"


class Settings(BaseSettings):
    """What an operator can choose. Each field is the variable `CURVEWATCH_<FIELD>`."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, use_attribute_docstrings=True)

    host: str = "127.0.0.1"
    """Address that the service listens on."""
    port: int = Field(default=8420, ge=1, le=65535)
    """Port that the service listens on."""
    data_dir: AbsolutePath = Path("~/.curvewatch").expanduser()
    """Folder of everything that the service keeps."""
    database_url: str = Field(default_factory=lambda data: f"sqlite:///{data['data_dir'] / 'curvewatch.db'}")
    """SQLAlchemy URL of the store."""
    storage_path: AbsolutePath = Field(default_factory=lambda data: data["data_dir"] / "runs")
    """Folder of the runs' own files, shared between the workers and the service."""
    alerts_token_path: AbsolutePath = Field(default_factory=lambda data: data["data_dir"] / "alerts-token")
    """File of the token with which Alertmanager tells of alerts; made at the first start."""
    alert_silence_seconds: float = Field(default=900, gt=0, le=30 * 86400)
    """How long an alert counts as firing after it was told the last time: Alertmanager tells it every five minutes."""
    ray_address: HttpUrl | None = None
    """URL of the Ray dashboard, such as `http://head:8265`; none starts a local Ray of its own."""
    ray_token_path: AbsolutePath | None = None
    """File that holds the token of the Ray cluster."""
    public_url: HttpUrl = Field(default_factory=_default_public_url)
    """URL under which the workers reach the service."""
    cluster_name: str = Field(
        default_factory=lambda data: "embedded" if data["ray_address"] is None else "ray"
    )
    """Name of the cluster, as `curvewatch_run_info` carries it."""
    worker_python: str = sys.executable
    """Python interpreter of the workers, full path: the cluster's PATH may lead to one without Ray."""
    max_code_bytes: int = Field(default=100 * MEBIBYTE, ge=1)
    """Most bytes of a zipped code folder; unpacked it may have ten times as many."""
    max_code_files: int = Field(default=10_000, ge=1)
    """Most files of a code folder."""
    linger_seconds: float = Field(default=600, ge=0)
    """How long a run that has ended stays on `/metrics`."""
    silence_seconds: float = Field(default=3600, gt=0)
    """How long the trainer of a run that is trained elsewhere may be silent before the run counts as lost."""
    reconcile_interval_seconds: float = Field(default=1.0, gt=0)
    """Pause between two looks at the cluster."""
    shutdown_grace_seconds: float = Field(default=30, ge=0)
    """How long runs may take to write a checkpoint when the service stops."""
    remote_write_url: HttpUrl | None = None
    """Where each epoch is written at its own time, such as `http://prometheus:9090/api/v1/write`; none for nowhere."""
    remote_write_token_path: AbsolutePath | None = None
    """File of the bearer token for it, read again for each request."""
    cluster_max_cpus: float | None = Field(default=None, gt=0)
    """Most CPUs that the cluster can grow to; none takes what it has now."""
    cluster_max_gpus: float | None = Field(default=None, ge=0)
    """Most GPUs that the cluster can grow to; none takes what it has now."""

    @property
    def embedded(self) -> bool:
        """Whether the service starts a Ray of its own."""
        return self.ray_address is None


def load_settings(**chosen: Any) -> Settings:
    """Read the settings from the environment; what is chosen here wins.

    Raises:
        SettingsError: A value cannot be used; names each variable.
    """
    try:
        return Settings(**chosen)
    except ValidationError as error:
        problems = [
            _problem(details["loc"], details["msg"], chosen)
            for details in error.errors()
            # A default that is derived from a wrong value is no mistake of its own.
            if details["type"] != "default_factory_not_called"
        ]
        raise SettingsError("; ".join(problems)) from error


def _problem(location: tuple[int | str, ...], message: str, chosen: dict[str, Any]) -> str:
    field = str(location[0])
    name = field if field in chosen else f"{PREFIX}{field.removeprefix(PREFIX.lower()).upper()}"
    return f"{name}: {message.removeprefix('Value error, ')}"
