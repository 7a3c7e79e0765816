"""Files that a Grafana reads at its start: the data source, and where the dashboards lie."""

from __future__ import annotations

from typing import Any

from curvewatch_dashboards.knobs import Knobs


def datasource(knobs: Knobs, url: str) -> dict[str, Any]:
    """Return the data source of a Prometheus, with the fields that provisioning and the HTTP API share."""
    return {
        "name": knobs.datasource_name,
        "uid": knobs.datasource_uid,
        "type": "prometheus",
        "access": "proxy",
        "url": url,
        "isDefault": False,
        # POST: the query of a word over time is long. The interval keeps rate() above two scrapes.
        "jsonData": {"httpMethod": "POST", "timeInterval": knobs.scrape_interval},
    }


def datasources_file(knobs: Knobs) -> dict[str, Any]:
    """Return the file for Grafana's folder provisioning/datasources."""
    return {"apiVersion": 1, "datasources": [{**datasource(knobs, knobs.prometheus_url), "editable": False}]}


def dashboards_file(knobs: Knobs) -> dict[str, Any]:
    """Return the file for Grafana's folder provisioning/dashboards."""
    provider = {
        "name": "curvewatch",
        "orgId": 1,
        "folder": knobs.folder_title,
        "folderUid": knobs.folder_uid,
        "type": "file",
        "disableDeletion": False,
        # A change in the browser would be undone by the next start.
        "allowUiUpdates": False,
        "updateIntervalSeconds": 30,
        "options": {"path": knobs.provisioned_folder, "foldersFromFilesStructure": False},
    }
    return {"apiVersion": 1, "providers": [provider]}
