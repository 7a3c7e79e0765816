"""Prometheus' configuration: what it scrapes of the service, the rules, and where alerts go."""

from __future__ import annotations

from urllib.parse import urlsplit

from curvewatch_dashboards.knobs import Knobs
from curvewatch_workers.series import CURVES_PATH


def prometheus_config(knobs: Knobs) -> dict[str, object]:
    """Return the configuration."""
    target = {"static_configs": [{"targets": [urlsplit(knobs.service_url).netloc]}]}
    return {
        "global": {
            "scrape_interval": knobs.scrape_interval,
            "evaluation_interval": knobs.scrape_interval,
        },
        "rule_files": [knobs.rules_file],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": [knobs.alertmanager_address]}]}]},
        "scrape_configs": [
            {"job_name": "curvewatch", **target},
            {
                "job_name": "curvewatch-curves",
                "metrics_path": CURVES_PATH,
                "scrape_interval": knobs.curves_interval,
                # The 10 s that Prometheus waits by itself are too few for the curves of a thousand long runs.
                "scrape_timeout": knobs.curves_interval,
                **target,
            },
        ],
    }
