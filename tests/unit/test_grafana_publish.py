"""`curvewatch grafana publish` against a server that takes documented requests only."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from cli_support import Result, Shell
from curvewatch_dashboards.knobs import Knobs
from curvewatch_service.grafana.planning import built_dashboards
from grafana_support import TOKEN, VERSIONS, Answer, FakeGrafana, refusal, serve_grafana

KNOBS = Knobs()
BUILT = built_dashboards()
BUILT_RUN = next(dashboard.model for dashboard in BUILT if dashboard.name == "run.json")
RUN = BUILT_RUN["uid"]
FOLDER = KNOBS.folder_uid
SOURCE = KNOBS.datasource_uid
SAVE = "/api/dashboards/db"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CURVEWATCH_GRAFANA_TOKEN", TOKEN)
    monkeypatch.delenv("CURVEWATCH_GRAFANA_URL", raising=False)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    return Shell(capsys, monkeypatch)


@pytest.fixture(params=VERSIONS)
def grafana(request: pytest.FixtureRequest) -> Iterator[FakeGrafana]:
    with serve_grafana(FakeGrafana(version=request.param)) as served:
        yield served


@pytest.fixture
def latest() -> Iterator[FakeGrafana]:
    with serve_grafana(FakeGrafana(version=VERSIONS[-1])) as served:
        yield served


def publish(shell: Shell, grafana: FakeGrafana, *options: str | Path) -> Result:
    result = shell("grafana", "publish", "--url", grafana.url, *options)
    assert "Traceback" not in result.err
    assert TOKEN not in result.out + result.err
    return result


def told(shell: Shell, grafana: FakeGrafana, *options: str | Path) -> dict[str, dict[str, Any]]:
    document = json.loads(publish(shell, grafana, "--json", *options).out)
    return {one["uid"]: one for one in document["objects"]}


def actions(shell: Shell, grafana: FakeGrafana, *options: str | Path) -> dict[str, str]:
    return {uid: one["action"] for uid, one in told(shell, grafana, *options).items()}


def test_every_built_dashboard_is_found_in_the_installed_package() -> None:
    folder = files("curvewatch_dashboards") / "built"
    names = sorted(file.name for file in folder.iterdir() if file.name.endswith(".json"))
    assert [dashboard.name for dashboard in BUILT] == names
    assert "run.json" in names
    assert len({dashboard.model["uid"] for dashboard in BUILT}) == len(BUILT)
    for dashboard in BUILT:
        assert 0 < len(dashboard.model["uid"]) <= 40, "Grafana takes no longer uid"


def test_folder_data_source_and_dashboards_are_made(shell: Shell, grafana: FakeGrafana) -> None:
    result = publish(shell, grafana, "--prometheus-url", "http://prometheus:9090")
    assert result.code == 0, result.err
    assert grafana.folders[FOLDER]["title"] == "Curvewatch"
    source = grafana.datasources[SOURCE]
    assert (source["type"], source["access"], source["url"]) == (
        "prometheus",
        "proxy",
        "http://prometheus:9090",
    )
    assert set(grafana.dashboards) == {dashboard.model["uid"] for dashboard in BUILT}
    for dashboard in BUILT:
        (saved,) = grafana.dashboards[dashboard.model["uid"]]
        assert saved["model"] == dashboard.model
        assert (saved["folder"], saved["message"]) == (FOLDER, dashboard.message)
    assert f"create    dashboard {BUILT_RUN['title']}  {grafana.url}/d/{RUN}" in result.out
    assert f"{len(BUILT) + 2} created in {grafana.url} (Grafana {grafana.version})" in result.out


def test_a_second_call_changes_nothing_and_says_so(shell: Shell, grafana: FakeGrafana) -> None:
    options = ("--prometheus-url", "http://prometheus:9090", "--folder", "Training")
    publish(shell, grafana, *options)
    for more in ((), ("--overwrite",)):
        grafana.requests.clear()
        result = publish(shell, grafana, *options, *more)
        assert (result.code, grafana.writes) == (0, [])
        assert f"Nothing to change in {grafana.url}" in result.out
        assert f"all {len(BUILT) + 2} are up to date" in result.out
    assert set(actions(shell, grafana).values()) == {"unchanged"}


def test_an_earlier_published_dashboard_is_brought_up_to_date(shell: Shell, grafana: FakeGrafana) -> None:
    publish(shell, grafana)
    grafana.edit(
        RUN, by="sa-ci", message="Curvewatch 0.0.9: run.json (0123456789abcdef)", description="Old words."
    )
    one = told(shell, grafana)[RUN]
    assert one["action"] == "update"
    assert {"path": "description", "before": "Old words.", "after": BUILT_RUN["description"]} in one[
        "changes"
    ]
    assert grafana.dashboards[RUN][-1]["model"] == BUILT_RUN
    assert len(grafana.dashboards[RUN]) == 3


def test_what_a_person_changed_is_kept_until_told_otherwise(shell: Shell, grafana: FakeGrafana) -> None:
    publish(shell, grafana)
    grafana.edit(RUN, by="ada", description="Our own words.")
    kept = publish(shell, grafana)
    assert kept.code == 2
    assert "ada saved it on 2026-05-04T10:00:00Z, not this command" in kept.out
    assert "publish with --overwrite" in kept.out
    assert grafana.dashboards[RUN][-1]["model"]["description"] == "Our own words."
    assert publish(shell, grafana, "--overwrite").code == 0
    assert grafana.dashboards[RUN][-1]["model"] == BUILT_RUN


def test_a_dashboard_that_was_imported_by_hand_is_a_persons(shell: Shell, latest: FakeGrafana) -> None:
    latest._save(RUN, {**BUILT_RUN, "refresh": "1m"}, message="", by="ada", folder="")
    assert actions(shell, latest)[RUN] == "kept"
    assert actions(shell, latest, "--overwrite")[RUN] == "update"
    assert latest.dashboards[RUN][-1]["folder"] == FOLDER


def test_a_dashboard_stays_where_a_person_moved_it(shell: Shell, grafana: FakeGrafana) -> None:
    publish(shell, grafana)
    grafana.folders["team"] = {"uid": "team", "title": "Team", "version": 1}
    saved = grafana.dashboards[RUN][-1]
    saved.update(folder="team", message="Curvewatch 0.0.9: run.json (0123456789abcdef)")
    saved["model"] = {**saved["model"], "refresh": "1m"}
    assert actions(shell, grafana)[RUN] == "update"
    assert grafana.dashboards[RUN][-1]["folder"] == "team"
    moved = told(shell, grafana, "--overwrite")[RUN]
    assert {"path": "folder", "before": "team", "after": FOLDER} in moved["changes"]
    assert grafana.dashboards[RUN][-1]["folder"] == FOLDER


def test_a_dynamic_dashboard_that_a_person_made_of_it_is_kept(shell: Shell, latest: FakeGrafana) -> None:
    publish(shell, latest)
    latest.edit(RUN, description="Ours.")
    latest.dynamic.add(RUN)
    kept = told(shell, latest)[RUN]
    assert (kept["action"], "the schema of dynamic dashboards" in kept["reason"]) == ("kept", True)
    assert latest.dashboards[RUN][-1]["model"]["description"] == "Ours."
    assert actions(shell, latest, "--overwrite")[RUN] == "update"
    assert latest.dashboards[RUN][-1]["model"] == BUILT_RUN
    assert actions(shell, latest)[RUN] == "unchanged"


def test_a_folder_keeps_the_title_that_people_gave_it(shell: Shell, grafana: FakeGrafana) -> None:
    publish(shell, grafana)
    grafana.folders[FOLDER]["title"] = "Our trainings"
    assert actions(shell, grafana)[FOLDER] == "unchanged"
    assert actions(shell, grafana, "--folder", "ML")[FOLDER] == "update"
    assert grafana.folders[FOLDER]["title"] == "ML"


def test_a_data_source_is_left_alone_unless_a_prometheus_is_given(shell: Shell, grafana: FakeGrafana) -> None:
    publish(shell, grafana, "--prometheus-url", "http://old:9090")
    source = grafana.datasources[SOURCE]
    source.update(name="Ours", basicAuth=True, basicAuthUser="curvewatch")
    grafana.requests.clear()
    assert SOURCE not in actions(shell, grafana)
    assert [request for request in grafana.requests if "datasources" in request] == []
    one = told(shell, grafana, "--prometheus-url", "http://new:9090")[SOURCE]
    assert one["changes"] == [{"path": "url", "before": "http://old:9090", "after": "http://new:9090"}]
    assert (source["url"], source["name"], source["basicAuthUser"]) == (
        "http://new:9090",
        "Ours",
        "curvewatch",
    )
    assert f"PUT /api/datasources/uid/{SOURCE}" in grafana.requests


def test_what_is_provisioned_from_files_is_not_written(shell: Shell, latest: FakeGrafana) -> None:
    publish(shell, latest, "--prometheus-url", "http://old:9090")
    latest.datasources[SOURCE]["readOnly"] = True
    latest.provisioned.add(RUN)
    latest.edit(RUN, description="From a file.")
    latest.requests.clear()
    objects = told(shell, latest, "--prometheus-url", "http://new:9090", "--overwrite")
    assert (objects[SOURCE]["action"], objects[RUN]["action"]) == ("kept", "kept")
    assert "provisioned from a file" in objects[SOURCE]["reason"]
    assert "provisioned from a file" in objects[RUN]["reason"]
    assert latest.writes == []


def test_a_dry_run_shows_what_would_change_and_writes_nothing(shell: Shell, grafana: FakeGrafana) -> None:
    new = publish(shell, grafana, "--dry-run", "--prometheus-url", "http://prometheus:9090")
    assert (new.code, grafana.writes) == (0, [])
    assert f"+ title: {json.dumps(BUILT_RUN['title'])}" in new.out
    assert "+ panels: [" in new.out
    assert '+ url: "http://prometheus:9090"' in new.out
    assert f"Nothing was written to {grafana.url}" in new.out
    assert f"would be: {len(BUILT) + 2} created" in new.out

    publish(shell, grafana)
    grafana.edit(RUN, message="Curvewatch 0.0.9: run.json (0123456789abcdef)", refresh="1m", liveNow=True)
    grafana.requests.clear()
    changed = publish(shell, grafana, "--dry-run")
    assert (changed.code, grafana.writes) == (0, [])
    lines = [line.strip() for line in changed.out.splitlines()]
    shown = [line for line in lines if line.startswith(("+ ", "- ", "~ "))]
    assert shown == ["- liveNow: true", f'~ refresh: "1m" -> "{BUILT_RUN["refresh"]}"']


def test_many_differences_are_counted_for_people_and_listed_for_programs(
    shell: Shell, latest: FakeGrafana
) -> None:
    publish(shell, latest)
    panels = [{**panel, "description": "?", "transparent": True} for panel in BUILT_RUN["panels"]]
    latest.edit(RUN, panels=panels)
    shown = publish(shell, latest, "--dry-run").out
    listed = told(shell, latest, "--dry-run")[RUN]["changes"]
    changed = [one for one in listed if one["path"].endswith((".description", ".transparent"))]
    assert len(changed) > 40
    assert f"and {len(changed) - 40} more differences; --json has all of them" in shown


def test_a_change_between_reading_and_writing_is_not_lost(shell: Shell, latest: FakeGrafana) -> None:
    publish(shell, latest)
    latest.edit(RUN, message="Curvewatch 0.0.9: run.json (0123456789abcdef)", refresh="1m")
    changed = refusal(412, "The dashboard has been changed by someone else", status="version-mismatch")
    latest.fail("POST", SAVE, changed)
    result = publish(shell, latest)
    assert result.code == 2
    assert "somebody saved it at this moment; publish again" in result.out


def test_json_tells_where_and_what(shell: Shell, latest: FakeGrafana) -> None:
    document = json.loads(publish(shell, latest, "--json", "--dry-run").out)
    assert (document["url"], document["version"], document["dry_run"]) == (latest.url, VERSIONS[-1], True)
    folder, *dashboards = document["objects"]
    assert folder == {
        "kind": "folder",
        "uid": FOLDER,
        "title": "Curvewatch",
        "action": "create",
        "reason": "",
        "url": f"{latest.url}/dashboards/f/{FOLDER}",
        "changes": [{"path": "title", "before": None, "after": "Curvewatch"}],
    }
    assert [one["uid"] for one in dashboards] == [dashboard.model["uid"] for dashboard in BUILT]


def test_an_editor_publishes_dashboards_and_is_told_what_a_data_source_needs(
    shell: Shell, grafana: FakeGrafana
) -> None:
    grafana.role = "Editor"
    assert publish(shell, grafana).code == 0
    assert set(grafana.dashboards) == {dashboard.model["uid"] for dashboard in BUILT}
    result = publish(shell, grafana, "--prometheus-url", "http://prometheus:9090")
    assert result.code == 2
    assert f"Error: data source (uid {SOURCE}): Grafana at {grafana.url} answered 403" in result.err
    assert "its service account needs Data sources: Writer, or the role Admin" in result.err


def test_a_viewer_is_told_what_each_thing_needs(shell: Shell, grafana: FakeGrafana) -> None:
    grafana.role = "Viewer"
    result = publish(shell, grafana)
    assert result.code == 2
    assert f"folder 'Curvewatch' (uid {FOLDER}): Grafana at {grafana.url} answered 403" in result.out
    assert "Folders: Creator, or the role Editor" in result.out
    assert "not tried, because its folder could not be made" in result.out
    assert grafana.writes == ["POST /api/folders"]


def test_one_refused_dashboard_keeps_back_no_other(shell: Shell, latest: FakeGrafana) -> None:
    latest.fail(
        "POST", SAVE, refusal(412, "A dashboard with the same uid already exists", status="name-exists")
    )
    result = publish(shell, latest)
    assert result.code == 2
    assert "another dashboard is in its place; rename or remove that one" in result.out
    assert len(latest.dashboards) == len(BUILT) - 1


def test_after_grafana_has_gone_nothing_more_is_tried(shell: Shell, latest: FakeGrafana) -> None:
    latest.fail("POST", "/api/folders", Answer(200, "<html>Sign in</html>"))
    objects = told(shell, latest)
    assert objects[FOLDER]["action"] == "failed"
    assert "is no Grafana" in objects[FOLDER]["reason"]
    assert {objects[dashboard.model["uid"]]["reason"] for dashboard in BUILT} == {
        "not tried, because Grafana does not answer any more; publish again"
    }
    assert latest.writes == ["POST /api/folders"]


def test_an_empty_answer_to_a_write_is_an_answer(shell: Shell, latest: FakeGrafana) -> None:
    publish(shell, latest)
    latest.fail("PUT", f"/api/folders/{FOLDER}", Answer(204, ""))
    assert publish(shell, latest, "--folder", "ML").code == 0


@pytest.mark.parametrize("way", ["option", "file"])
def test_the_token_comes_from_where_it_is_kept(
    way: str, shell: Shell, latest: FakeGrafana, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CURVEWATCH_GRAFANA_TOKEN")
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    options: tuple[str | Path, ...] = ("--token", TOKEN) if way == "option" else ("--token-file", path)
    assert publish(shell, latest, *options).code == 0


def test_a_missing_or_broken_token_is_told_and_never_shown(
    shell: Shell, latest: FakeGrafana, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = publish(shell, latest, "--token", "glsa_secret\nX: y")
    assert broken.code == 2
    assert "characters that no token has" in broken.err
    assert "secret" not in broken.err
    wrong = publish(shell, latest, "--token", "glsa_other")
    assert "it does not know the token, or the token has expired" in wrong.err
    assert "glsa_other" not in wrong.err
    monkeypatch.delenv("CURVEWATCH_GRAFANA_TOKEN")
    none = publish(shell, latest)
    assert (none.code, "set CURVEWATCH_GRAFANA_TOKEN" in none.err) == (2, True)
    away = publish(shell, latest, "--token-file", tmp_path / "none")
    assert (away.code, "the token cannot be read from" in away.err) == (2, True)
    assert latest.writes == []


@pytest.mark.parametrize(
    ("option", "value", "rule"),
    [
        ("--prometheus-url", "prometheus:9090", "is no address of a Prometheus"),
        ("--folder", " ", "a folder needs a title"),
        ("--url", "grafana.example.org", "is no address of a Grafana"),
        ("--url", "https://admin:secret@grafana", "has a user, a query or a fragment in it"),
    ],
)
def test_a_wrong_option_is_told_before_anything_is_asked(
    option: str, value: str, rule: str, shell: Shell, latest: FakeGrafana
) -> None:
    result = publish(shell, latest, option, value)
    assert result.code == 2
    assert rule in result.err
    assert "secret" not in result.err
    assert latest.requests == []


def test_an_old_grafana_is_named(shell: Shell) -> None:
    with serve_grafana(FakeGrafana(version="10.4.2")) as old:
        result = publish(shell, old)
    assert result.code == 0
    assert "This Grafana is 10.4.2; the dashboards are made for 11 to 13" in result.err
