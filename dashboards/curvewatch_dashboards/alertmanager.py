"""Alertmanager's configuration: who is told what, and which alert keeps another quiet.

Alerts on a run go to its owner, whose address the receivers take from the label `owner`; alerts on the service go to
those who run it. Every alert on a run goes to the service too, which shows it on the run's page and acts on it where
the job says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from textwrap import indent

from curvewatch_dashboards.alerts import RANKING
from curvewatch_dashboards.knobs import Knobs
from curvewatch_dashboards.yaml_text import NOTE, yaml_text

TO_SERVICE = "curvewatch-service"
WATCHDOG = "watchdog"
EXAMPLE = "#"
"""What begins a line of an example; without it the receiver is filled in."""
_HEAD = f"""{NOTE}# What is yours: the receivers at the end. Copy the file, fill them in, and check it:
# amtool check-config alertmanager.yaml
"""
SEVERITIES = ("critical", "warning", "info")


@dataclass(frozen=True, kw_only=True)
class Receiver:
    """One receiver that a site fills in."""

    name: str
    purpose: str
    example: dict[str, object]
    """What it may look like when it is filled in."""


def receivers() -> tuple[Receiver, ...]:
    """Return the receivers to fill in; as long as one is empty, nobody gets what goes to it."""
    owner = "{{ .CommonLabels.owner }}"
    text = '{{ range .Alerts }}{{ .Annotations.description }} {{ .Annotations.page }}{{ "\\n" }}{{ end }}'
    page: dict[str, object] = {
        "pagerduty_configs": [
            {
                "routing_key_file": "/etc/alertmanager/pagerduty-key",
                "description": "{{ .CommonAnnotations.summary }}",
            }
        ]
    }
    return (
        Receiver(
            name="owner-critical",
            purpose="wakes the owner of the run",
            example={
                "slack_configs": [
                    {"api_url_file": "/etc/alertmanager/slack-url", "channel": f"@{owner}", "text": text}
                ]
            },
        ),
        Receiver(
            name="owner-warning",
            purpose="tells the owner of the run, today",
            example={
                "email_configs": [
                    {
                        "to": f"{owner}@example.org",
                        "from": "curvewatch@example.org",
                        "smarthost": "mail.example.org:587",
                    }
                ]
            },
        ),
        Receiver(
            name="owner-info",
            purpose="for the owner of the run to look at some time",
            example={
                "slack_configs": [
                    {"api_url_file": "/etc/alertmanager/slack-url", "channel": "#training", "text": text}
                ]
            },
        ),
        Receiver(name="operators-critical", purpose="wakes those who run the service", example=page),
        Receiver(
            name="operators-warning",
            purpose="tells those who run the service, today",
            example={
                "slack_configs": [
                    {"api_url_file": "/etc/alertmanager/slack-url", "channel": "#operations", "text": text}
                ]
            },
        ),
        Receiver(
            name=WATCHDOG,
            purpose="a service that raises the alarm when this stops coming",
            example={
                "webhook_configs": [{"url": "https://deadman.example.org/ping", "send_resolved": False}]
            },
        ),
    )


def routes(knobs: Knobs) -> dict[str, object]:
    """Return the tree of routes."""
    to_owner: list[dict[str, object]] = [
        {"matchers": [f'severity="{severity}"'], "receiver": f"owner-{severity}"} for severity in SEVERITIES
    ]
    # The service hears of each run by itself, and soon: it is to stop one that was told to stop.
    to_service: dict[str, object] = {
        "matchers": ['run_id!=""'],
        "receiver": TO_SERVICE,
        "group_by": ["run_id"],
        "group_wait": knobs.service_group_wait,
        "group_interval": knobs.service_group_interval,
        "repeat_interval": knobs.service_repeat_interval,
        "continue": True,
    }
    always: dict[str, object] = {
        "matchers": ['alertname="CurvewatchWatchdog"'],
        "receiver": WATCHDOG,
        "group_wait": "0s",
        "group_interval": "1m",
        "repeat_interval": "1m",
    }
    of_runs: dict[str, object] = {
        "matchers": ['owner!=""'],
        "receiver": "owner-warning",
        "group_by": ["owner", "alertname"],
        "routes": to_owner,
    }
    of_service: dict[str, object] = {"matchers": ['severity="critical"'], "receiver": "operators-critical"}
    return {
        "receiver": "operators-warning",
        "group_by": ["alertname"],
        "group_wait": "30s",
        "group_interval": "5m",
        "repeat_interval": "12h",
        "routes": [always, to_service, of_runs, of_service],
    }


def inhibitions() -> list[dict[str, object]]:
    """Return which alert keeps which quiet: of one run, and only among alerts on curves.

    A label that is missing on both sides counts as equal, so that without the component an alert on the service would
    keep those of every run quiet.
    """
    return [
        {
            "source_matchers": ['component="learning"', _named(above)],
            "target_matchers": ['component="learning"', _named(ranks)],
            "equal": ["cluster", "instance", "run_id"],
        }
        for place, ranks in enumerate(RANKING)
        if (above := tuple(name for rank in RANKING[:place] for name in rank))
    ]


def service_receiver(knobs: Knobs) -> dict[str, object]:
    """Return the receiver that tells the service."""
    authorization = {"credentials_file": knobs.alerts_token_file}
    webhook = {
        "url": f"{knobs.service_url}/api/v1/alerts",
        "send_resolved": True,
        "http_config": {"authorization": authorization},
    }
    return {"name": TO_SERVICE, "webhook_configs": [webhook]}


def alertmanager_file(knobs: Knobs) -> str:
    """Return the configuration, with what a receiver may look like as comments below each that is to be filled in."""
    head = {"route": routes(knobs), "inhibit_rules": inhibitions()}
    to_fill_in = "".join(_commented(receiver) for receiver in receivers())
    return f"{_HEAD}{yaml_text(head)}receivers:\n{yaml_text([service_receiver(knobs)])}{to_fill_in}"


def _commented(receiver: Receiver) -> str:
    example = indent(yaml_text(receiver.example), "  ").rstrip("\n")
    return (
        f"# {receiver.name}: {receiver.purpose}.\n- name: {receiver.name}\n" + indent(example, EXAMPLE) + "\n"
    )


def _named(alerts: tuple[str, ...]) -> str:
    return f'alertname=~"{"|".join(alerts)}"'
