"""The rendered manifests: names, selectors and ports refer to each other, and pods are closed and bounded."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator  # type: ignore[import-untyped]  # comes with Ray, without stubs
from packaging.version import Version

from curvewatch_service.settings import Settings
from curvewatch_workers.series import CURVES_PATH

ROOT = Path(__file__).parents[2]
BUILT = ROOT / "dashboards/curvewatch_dashboards/built"
SCHEMAS = ROOT.parent / "shared" / "schemas"
CRDS = {
    "RayCluster": SCHEMAS / "kuberay-v1.7.0" / "ray.io_rayclusters.yaml",
    "PrometheusRule": SCHEMAS / "prometheus-operator-v0.93.0" / "monitoring.coreos.com_prometheusrules.yaml",
    "ServiceMonitor": SCHEMAS / "prometheus-operator-v0.93.0" / "monitoring.coreos.com_servicemonitors.yaml",
}
KUBECTL = shutil.which("kubectl")
pytestmark = pytest.mark.skipif(
    KUBECTL is None, reason="kubectl is not installed (apt-get install kubernetes-client)"
)

Manifest = dict[str, Any]
SERVICE_LABELS = {"app.kubernetes.io/name": "curvewatch", "app.kubernetes.io/component": "service"}


@cache
def rendered(folder: Path = ROOT / "k8s" / "base") -> tuple[Manifest, ...]:
    assert KUBECTL is not None
    command = [KUBECTL, "kustomize", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return tuple(yaml.safe_load_all(done.stdout))


def the(kind: str) -> Manifest:
    (manifest,) = of(kind)
    return manifest


def of(kind: str) -> list[Manifest]:
    return [manifest for manifest in rendered() if manifest["kind"] == kind]


def pod_specs() -> dict[str, Manifest]:
    ray = the("RayCluster")["spec"]
    groups = {group["groupName"]: group["template"]["spec"] for group in ray["workerGroupSpecs"]}
    return {
        "service": the("Deployment")["spec"]["template"]["spec"],
        "head": ray["headGroupSpec"]["template"]["spec"],
        **groups,
    }


def containers() -> dict[str, Manifest]:
    return {name: container for name, spec in pod_specs().items() for container in spec["containers"]}


def environment(container: Manifest) -> dict[str, str]:
    return {variable["name"]: variable["value"] for variable in container.get("env", ())}


def mounts(container: Manifest) -> dict[str, str]:
    return {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}


def test_the_parts_are_there_once_and_the_overlay_chooses_the_namespace() -> None:
    named = [(manifest["kind"], manifest["metadata"]["name"]) for manifest in rendered()]
    assert len(set(named)) == len(named)
    assert {kind for kind, _ in named} >= {
        "Deployment",
        "Service",
        "RayCluster",
        "ServiceMonitor",
        "PrometheusRule",
    }
    assert not any("namespace" in manifest["metadata"] for manifest in rendered())


def test_the_service_selects_the_pods_of_the_deployment_and_a_port_that_they_have() -> None:
    deployment, service = the("Deployment")["spec"], the("Service")["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    assert deployment["selector"]["matchLabels"].items() <= labels.items()
    assert service["selector"].items() <= labels.items()
    assert service["selector"] == SERVICE_LABELS, "without the component it would select the Ray pods too"
    (container,) = deployment["template"]["spec"]["containers"]
    assert {port["targetPort"] for port in service["ports"]} <= {port["name"] for port in container["ports"]}


def test_no_ray_pod_is_taken_for_the_service() -> None:
    ray = the("RayCluster")["spec"]
    for group in (ray["headGroupSpec"], *ray["workerGroupSpecs"]):
        labels = group["template"]["metadata"]["labels"]
        assert not the("Service")["spec"]["selector"].items() <= labels.items()


def test_the_monitor_selects_the_service_and_a_port_and_path_that_exist() -> None:
    monitor, service = the("ServiceMonitor")["spec"], the("Service")
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    ports = {port["name"] for port in service["spec"]["ports"]}
    assert {endpoint["port"] for endpoint in monitor["endpoints"]} <= ports
    assert [endpoint["path"] for endpoint in monitor["endpoints"]] == ["/metrics", CURVES_PATH]
    (told_apart,) = monitor["endpoints"][1]["relabelings"]
    assert told_apart == {"sourceLabels": ["__metrics_path__"], "targetLabel": "metrics_path"}


def test_rules_and_monitor_carry_the_labels_that_an_operator_selects_by() -> None:
    assert the("PrometheusRule")["metadata"]["labels"] == the("ServiceMonitor")["metadata"]["labels"]


def test_the_rules_are_the_built_ones() -> None:
    built = yaml.safe_load((BUILT / "rules.yaml").read_text())
    assert the("PrometheusRule")["spec"] == built


def test_each_dashboard_is_the_built_one_and_the_sidecar_finds_it() -> None:
    built = {path.stem: json.loads(path.read_text()) for path in BUILT.glob("*.json")}
    configs = {config["metadata"]["name"]: config for config in of("ConfigMap")}
    # A hash in the name would leave the old dashboard behind.
    assert configs.keys() == {f"curvewatch-dashboard-{name}" for name in built}
    for name, dashboard in built.items():
        config = configs[f"curvewatch-dashboard-{name}"]
        assert config["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert json.loads(config["data"][f"curvewatch-{name}.json"]) == dashboard


def test_every_volume_refers_to_something_that_exists() -> None:
    claims = {claim["metadata"]["name"] for claim in of("PersistentVolumeClaim")}
    for name, spec in pod_specs().items():
        for volume in spec["volumes"]:
            match volume:
                case {"persistentVolumeClaim": {"claimName": claim}}:
                    assert claim in claims, name
                case {"secret": {"secretName": secret, "items": [{"key": key}]}}:
                    # KubeRay makes this Secret, with this key, when the RayCluster asks for tokens.
                    assert (secret, key) == (the("RayCluster")["metadata"]["name"], "auth_token")
                    assert the("RayCluster")["spec"]["authOptions"] == {"mode": "token"}
                case {"emptyDir": _}:
                    pass
                case _:
                    pytest.fail(f"{name}: nothing is known of volume {volume}")
        (container,) = spec["containers"]
        assert mounts(container).keys() == {volume["name"] for volume in spec["volumes"]}


def test_the_service_account_exists() -> None:
    assert pod_specs()["service"]["serviceAccountName"] == the("ServiceAccount")["metadata"]["name"]


def test_workers_and_service_share_the_storage_at_the_same_path() -> None:
    path = environment(containers()["service"])["CURVEWATCH_STORAGE_PATH"]
    for name, spec in pod_specs().items():
        (container,) = spec["containers"]
        (volume,) = (key for key, place in mounts(container).items() if place == path)
        (claim,) = (v["persistentVolumeClaim"]["claimName"] for v in spec["volumes"] if v["name"] == volume)
        assert claim == "curvewatch-runs", name
    (runs,) = (
        claim for claim in of("PersistentVolumeClaim") if claim["metadata"]["name"] == "curvewatch-runs"
    )
    assert runs["spec"]["accessModes"] == ["ReadWriteMany"]


def test_service_and_workers_are_the_same_user_because_they_read_each_others_private_files() -> None:
    users = {
        (context["runAsUser"], context["runAsGroup"], context["fsGroup"])
        for context in (spec["securityContext"] for spec in pod_specs().values())
    }
    assert len(users) == 1


def test_the_settings_are_ones_that_the_service_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = environment(containers()["service"])
    ours = {name for name in variables if name.startswith("CURVEWATCH_")}
    known = {f"CURVEWATCH_{field.upper()}" for field in Settings.model_fields} | {"CURVEWATCH_PROFILE"}
    assert ours <= known
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert str(settings.storage_path) == variables["CURVEWATCH_STORAGE_PATH"]
    assert settings.public_url == variables["CURVEWATCH_PUBLIC_URL"]


def test_the_service_finds_ray_and_the_workers_find_the_service() -> None:
    container = containers()["service"]
    args = container["args"]
    assert args[0] == "serve"
    # KubeRay names the head's Service after the cluster.
    head = f"{the('RayCluster')['metadata']['name']}-head-svc"
    assert args[args.index("--ray-address") + 1] == f"http://{head}:8265"
    service = the("Service")
    (port,) = service["spec"]["ports"]
    assert (
        environment(container)["CURVEWATCH_PUBLIC_URL"]
        == f"http://{service['metadata']['name']}:{port['port']}"
    )
    assert container["ports"] == [{"name": "http", "containerPort": Settings.model_fields["port"].default}]


def test_what_the_service_writes_lies_on_a_volume() -> None:
    container = containers()["service"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    places = tuple(mounts(container).values())
    for name in ("CURVEWATCH_DATA_DIR", "CURVEWATCH_STORAGE_PATH", "CURVEWATCH_PROFILE", "HOME"):
        assert environment(container)[name].startswith(places)
    assert (
        environment(container)["CURVEWATCH_RAY_TOKEN_PATH"] == f"{mounts(container)['ray-token']}/auth_token"
    )


def test_one_writer_has_the_database() -> None:
    assert the("Deployment")["spec"]["replicas"] == 1
    assert the("Deployment")["spec"]["strategy"] == {"type": "Recreate"}


def test_the_pod_outlives_the_services_own_grace() -> None:
    grace = Settings.model_fields["shutdown_grace_seconds"].default
    assert pod_specs()["service"]["terminationGracePeriodSeconds"] > grace


def test_the_service_is_probed() -> None:
    container = containers()["service"]
    probes = {name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")}
    assert {probe["port"] for probe in probes.values()} == {"http"}
    assert [probe["path"] for probe in probes.values()] == ["/healthz", "/healthz", "/readyz"]


def test_every_container_is_pinned_bounded_and_not_root() -> None:
    for name, spec in pod_specs().items():
        assert spec["automountServiceAccountToken"] is False, name
        assert spec["enableServiceLinks"] is False, "CURVEWATCH_SERVICE_PORT would be read as a setting"
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["runAsUser"] > 0, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        (container,) = spec["containers"]
        image, _, tag = container["image"].rpartition(":")
        assert image, f"{name} has no tag"
        assert tag != "latest", name
        assert container["resources"]["limits"].keys() >= {"cpu", "memory"}, name
        assert container["resources"]["requests"].keys() >= {"cpu", "memory"}, name
        assert container["securityContext"]["allowPrivilegeEscalation"] is False, name
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}, name


def test_an_overlay_sets_the_namespace_and_the_images_of_all_pods(tmp_path: Path) -> None:
    overlay = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": "training",
        # The old name of `resources` for folders: kubectl 1.20 knows no other.
        "bases": [os.path.relpath(ROOT / "k8s" / "base", tmp_path.resolve())],
        "images": [
            {"name": f"curvewatch-{part}", "newName": f"registry.example.org/{part}"}
            for part in ("service", "workers")
        ],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    manifests = rendered(tmp_path)
    assert {manifest["metadata"]["namespace"] for manifest in manifests} == {"training"}
    images = re.findall(r"'image': '([^']*)'", str([one["spec"] for one in manifests if "spec" in one]))
    assert sorted(images) == [
        "registry.example.org/service:0.1.0",
        "registry.example.org/workers:0.1.0",
        "registry.example.org/workers:0.1.0",
    ]


def test_no_secret_is_written_down() -> None:
    assert not of("Secret")


def test_ray_keeps_to_the_rules_that_its_schema_does_not_hold() -> None:
    spec = the("RayCluster")["spec"]
    assert Version(spec["rayVersion"]) >= Version("2.52"), "tokens need it"
    assert f"ray=={spec['rayVersion']}" in (ROOT / "constraints.txt").read_text().splitlines()
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert not spec.get("enableInTreeAutoscaling")
    for group in spec["workerGroupSpecs"]:
        assert group["minReplicas"] == group["replicas"] == group["maxReplicas"], "nothing scales it"


@pytest.mark.parametrize("kind", list(CRDS))
def test_a_custom_resource_keeps_to_its_schema(kind: str) -> None:
    if not CRDS[kind].is_file():
        pytest.skip(f"the schema of {kind} is not at {CRDS[kind]}")
    assert problems(kind, the(kind)) == []


@pytest.mark.parametrize("kind", list(CRDS))
def test_a_misspelt_field_of_a_custom_resource_is_found(kind: str) -> None:
    if not CRDS[kind].is_file():
        pytest.skip(f"the schema of {kind} is not at {CRDS[kind]}")
    misspelt = json.loads(json.dumps(the(kind)))
    misspelt["spec"]["misspelt"] = 1
    assert any("misspelt" in problem for problem in problems(kind, misspelt))


def problems(kind: str, manifest: Manifest) -> list[str]:
    validator = Draft7Validator(schema_of(kind, manifest["apiVersion"]))
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(manifest)]


@cache
def schema_of(kind: str, api_version: str) -> Manifest:
    crd = yaml.load(CRDS[kind].read_bytes(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506
    group, version = api_version.split("/")
    assert group == crd["spec"]["group"]
    (schema,) = (one["schema"] for one in crd["spec"]["versions"] if one["name"] == version)
    closed: Manifest = _closed(schema["openAPIV3Schema"])
    return closed


def _closed(schema: Any) -> Any:
    """Return the schema with objects that refuse fields they do not know, as a strict API server does."""
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(part) for key, part in schema.items()}
    if closed.get("x-kubernetes-int-or-string"):
        closed["type"] = ["integer", "string"]
    is_open = closed.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in closed
    if isinstance(closed.get("properties"), dict) and closed.get("type") == "object" and not is_open:
        metadata = {"apiVersion", "kind", "metadata"} <= closed["properties"].keys()
        closed["additionalProperties"] = False
        if metadata:
            closed["properties"]["metadata"] = {"type": "object"}
    return closed
