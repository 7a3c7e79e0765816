"""The files that a Grafana reads at its start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from curvewatch_dashboards import build
from curvewatch_dashboards.knobs import Knobs

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "dashboards" / "provisioning"


def read(name: str) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))
    return document


def test_the_data_source_is_the_one_that_is_published() -> None:
    document = read("datasources/curvewatch.yaml")
    (source,) = document["datasources"]
    assert document["apiVersion"] == 1
    assert (source["uid"], source["name"]) == (Knobs().datasource_uid, Knobs().datasource_name)
    assert (source["type"], source["access"], source["url"]) == (
        "prometheus",
        "proxy",
        Knobs().prometheus_url,
    )
    assert source["isDefault"] is False, "the Grafana of others keeps its own default"
    assert source["jsonData"]["timeInterval"] == Knobs().scrape_interval


def test_the_dashboards_come_into_the_folder_that_is_published() -> None:
    document = read("dashboards/curvewatch.yaml")
    (provider,) = document["providers"]
    assert document["apiVersion"] == 1
    assert (provider["folderUid"], provider["folder"]) == (Knobs().folder_uid, Knobs().folder_title)
    assert provider["type"] == "file"
    assert provider["options"]["path"] == Knobs().provisioned_folder
    assert provider["allowUiUpdates"] is False, "the dashboards are generated"


def test_the_knobs_reach_the_files() -> None:
    files = build.outputs(Knobs(prometheus_url="http://prometheus:9090", folder_title="ML"))
    provisioned = {name: text for name, text in files.items() if name.startswith("dashboards/provisioning/")}
    assert len(provisioned) == 2
    assert "url: http://prometheus:9090" in provisioned["dashboards/provisioning/datasources/curvewatch.yaml"]
    assert "folder: ML" in provisioned["dashboards/provisioning/dashboards/curvewatch.yaml"]
