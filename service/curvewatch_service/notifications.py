"""Alertmanager's webhook: the form of what it sends, and what is read of it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field

MOST_ALERTS = 1000
"""Of one notification."""
_MOST_LABELS = 64
_LONGEST = 8192


def _one_line(value: str) -> str:
    """Take out what a terminal or a log would act on."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in value).split())


def _kept(value: datetime) -> datetime:
    """Refuse the hours around the years 1 and 9999 whose moment in UTC has no date."""
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ValueError(f"{value.isoformat()} is not in the years 1 to 9999 in UTC") from None


Label = Annotated[str, Field(max_length=_LONGEST), AfterValidator(_one_line)]
Labels = Annotated[dict[Annotated[str, Field(max_length=256)], Label], Field(max_length=_MOST_LABELS)]


class AlertOfWebhook(BaseModel):
    """One alert of a notification; what else it holds is not read."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    status: Literal["firing", "resolved"]
    labels: Labels
    annotations: Labels = {}
    startsAt: AwareDatetime  # noqa: N815 - the names of Alertmanager
    endsAt: AwareDatetime | None = None  # noqa: N815
    """Of one that fires: nothing, or a moment before its start."""
    fingerprint: Annotated[str, Field(pattern=r"^[0-9a-f]{1,64}$")]
    """Hash of its labels."""


class AlertmanagerWebhook(BaseModel):
    """A notification of Alertmanager's webhook, version 4."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    version: Literal["4"]
    alerts: Annotated[list[AlertOfWebhook], Field(max_length=MOST_ALERTS)]
    truncatedAlerts: Annotated[int, Field(ge=0)] = 0  # noqa: N815
    """Alerts that were left out of the notification (`max_alerts` of the receiver)."""


class Notification(BaseModel):
    """What is kept of an alert."""

    model_config = ConfigDict(frozen=True)

    run_id: str
    """Empty for an alert on no run."""
    fingerprint: str
    name: str
    severity: str
    summary: str
    description: str
    runbook_url: str
    started_at: Annotated[datetime, AfterValidator(_kept)]
    ended_at: Annotated[datetime, AfterValidator(_kept)] | None

    @property
    def status(self) -> str:
        """`firing` or `resolved`."""
        return "firing" if self.ended_at is None else "resolved"


def notification_of(alert: AlertOfWebhook) -> Notification:
    """Return what is kept of an alert.

    Raises:
        ValidationError: One of its times has no date in UTC.
    """
    resolved = alert.status == "resolved"
    return Notification(
        run_id=alert.labels.get("run_id", ""),
        fingerprint=alert.fingerprint,
        name=alert.labels.get("alertname", "unnamed"),
        severity=alert.labels.get("severity", "none"),
        summary=alert.annotations.get("summary", ""),
        description=alert.annotations.get("description", ""),
        runbook_url=_http_address(alert.annotations.get("runbook_url", "")),
        started_at=alert.startsAt,
        ended_at=max(alert.endsAt or alert.startsAt, alert.startsAt) if resolved else None,
    )


def _http_address(value: str) -> str:
    """Return an address that a page may link to, else nothing: an annotation can hold any scheme."""
    return value if value.startswith(("http://", "https://")) else ""
