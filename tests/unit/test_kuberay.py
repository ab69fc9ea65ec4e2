"""The manifest and the image in deploy/kuberay: KubeRay and Kubernetes accept them, and what they name exists."""

from __future__ import annotations

import json
import re
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from bert_serving.ray import build_app
from bert_serving.ray.options import parse_args
from ray.serve.schema import ServeDeploySchema

from tests.support.kubernetes import KUBERAY, serve_config, with_unknown_field

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "tests/fixtures/crds/ray-service.json").read_text())
DOCKERFILE = (KUBERAY / "Dockerfile").read_text()
TWO_NEWEST = kubernetes_validate.utils.all_versions()[-2:]

_OBJECT_STORE = 0.3  # Ray's part of a pod's memory


@pytest.fixture
def service() -> dict[str, Any]:
    return dict(yaml.safe_load((KUBERAY / "rayservice.yaml").read_text()))


def groups(service: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = service["spec"]["rayClusterConfig"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def check(service: dict[str, Any], kubernetes: str) -> None:
    """Raise an error if KubeRay or Kubernetes would refuse the service, or drop a field that it does not know."""
    jsonschema.validate(service, SCHEMA)
    for group in groups(service):
        labels = {"matchLabels": group["template"]["metadata"]["labels"]}
        spec = {"selector": labels, "template": group["template"]}
        deployment = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "any"}, "spec": spec}
        kubernetes_validate.validate(deployment, kubernetes, strict=True)


@pytest.mark.parametrize("kubernetes", TWO_NEWEST)
def test_kuberay_and_kubernetes_accept_the_service(service: dict[str, Any], kubernetes: str) -> None:
    check(service, kubernetes)


@pytest.mark.parametrize(
    "path",
    [
        (),
        ("spec",),
        ("spec", "rayClusterConfig"),
        ("spec", "rayClusterConfig", "autoscalerOptions"),
        ("spec", "rayClusterConfig", "headGroupSpec"),
        ("spec", "rayClusterConfig", "headGroupSpec", "template", "spec"),
        ("spec", "rayClusterConfig", "workerGroupSpecs", 0),
        ("spec", "rayClusterConfig", "workerGroupSpecs", 0, "template", "spec", "containers", 0),
    ],
)
def test_the_check_refuses_a_field_that_does_not_exist(service: dict[str, Any], path: tuple[Any, ...]) -> None:
    with pytest.raises(jsonschema.ValidationError, match="doesNotExist"):
        check(with_unknown_field(service, path), TWO_NEWEST[-1])


def test_ray_serve_accepts_the_configuration_and_the_application_takes_its_arguments() -> None:
    config = serve_config()
    assert [each.model_extra for each in ServeDeploySchema(**config).applications] == [None]
    (application,) = config["applications"]
    assert application["import_path"] == f"{build_app.__module__.rpartition('.')[0]}:{build_app.__name__}"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Ray warns about values that a later version will refuse
        build_app(application["args"])


def test_a_worker_pod_has_room_for_a_replica_and_a_gateway(service: dict[str, Any]) -> None:
    (workers,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    (container,) = workers["template"]["spec"]["containers"]
    limits = container["resources"]["limits"]
    (application,) = serve_config()["applications"]
    replicas, settings = parse_args(application["args"])
    assert int(limits["cpu"]) >= replicas.num_cpus + 1
    assert workers["minReplicas"] >= replicas.min_replicas
    assert workers["maxReplicas"] == replicas.max_replicas
    processes_while_compiling = 2.2  # the estimate in the manifest
    texts_mb = settings.memory_mb + settings.cache_mb + (settings.http_memory_mb or 8 * settings.max_message_mb)
    memory = float(limits["memory"].removesuffix("Gi"))
    assert memory * (1 - _OBJECT_STORE) >= processes_while_compiling + texts_mb / 1024
    assert container["resources"]["requests"] == limits
    grace = workers["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace >= settings.drain_timeout + 15  # see "When a replica dies" in docs/ray.md


def test_the_head_gets_no_replica_and_no_requests(service: dict[str, Any]) -> None:
    assert service["spec"]["excludeHeadPodFromServeSvc"] is True
    assert groups(service)[0]["rayStartParams"] == {"num-cpus": "0"}


def test_all_pods_have_the_image_and_the_version_of_ray_that_the_tests_use(service: dict[str, Any]) -> None:
    images = {
        container["image"] for group in groups(service) for container in group["template"]["spec"]["containers"]
    }
    assert images == {"bert-embedding-service:ray"}
    assert service["spec"]["rayClusterConfig"]["rayVersion"] == version("ray")
    assert re.search(rf"^FROM rayproject/ray:{re.escape(version('ray'))}-py311-cpu$", DOCKERFILE, re.M)
    page = (KUBERAY / "README.md").read_text()
    build = "docker build -f deploy/kuberay/Dockerfile -t bert-embedding-service:ray ."
    assert build in page
    assert build in DOCKERFILE


def test_the_image_is_built_like_the_one_of_the_server() -> None:
    """Its RUN lines are those of the other Dockerfile, which test_packaging.py runs, for another Python."""

    def lines(text: str) -> list[str]:
        text = text.replace("--chown=ray:users ", "").replace("[ray,demo]", "[server,demo,otel]")
        text = re.sub(r"/opt/venv/bin/|--python /opt/venv |--system ", "", text)
        return re.findall(r"^(?:RUN .*pip install|COPY (?:pyproject|server|client)).*$", text, re.M)

    assert lines(DOCKERFILE) == lines((ROOT / "Dockerfile").read_text())
    assert len(lines(DOCKERFILE)) == 6


@pytest.mark.parametrize("kubernetes", TWO_NEWEST)
def test_only_the_port_of_the_proxy_is_open_to_other_pods(service: dict[str, Any], kubernetes: str) -> None:
    policy = yaml.safe_load((KUBERAY / "network-policy.yaml").read_text())
    kubernetes_validate.validate(policy, kubernetes, strict=True)
    for group in groups(service):
        assert policy["spec"]["podSelector"]["matchLabels"] == group["template"]["metadata"]["labels"]
    everyone, own = policy["spec"]["ingress"]
    assert everyone["ports"] == [{"port": 8000}]
    assert [sorted(peer) for peer in own["from"]] == [["podSelector"], ["namespaceSelector", "podSelector"]]
    assert own["from"][0]["podSelector"] == policy["spec"]["podSelector"]


def test_every_pod_gets_the_optional_key(service: dict[str, Any]) -> None:
    """The application is built on any pod, and the gateway needs the key that is set there."""
    for group in groups(service):
        (container,) = group["template"]["spec"]["containers"]
        (source,) = container["envFrom"]
        assert source["secretRef"] == {"name": "bert-embedding-service-keys", "optional": True}
