"""The Kubernetes objects: as the base's files hold them, and as kustomize renders the overlays."""

from __future__ import annotations

import functools
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.support import ROOT, skip_or_fail

KUBERNETES = ROOT / "deploy" / "kubernetes"
BASE = KUBERNETES / "base"
OVERLAYS = ("dev", "gpu")

Object = dict[str, Any]


@functools.cache
def base_files() -> tuple[Object, ...]:
    """What the base's files hold, and a ConfigMap for each one that kustomize would generate."""
    kustomization = yaml.safe_load((BASE / "kustomization.yaml").read_text())
    objects = [item for name in kustomization["resources"] for item in yaml.safe_load_all((BASE / name).read_text())]
    for made in kustomization["configMapGenerator"]:
        data = {name: (BASE / name).read_text() for name in made["files"]}
        objects.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": made["name"]}, "data": data})
    return tuple(objects)


@functools.cache
def rendered(folder: Path) -> tuple[Object, ...]:
    """What `kubectl kustomize` makes of a folder."""
    if shutil.which("kubectl") is None:
        skip_or_fail("no kubectl, so overlays cannot be rendered")
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return tuple(yaml.safe_load_all(done.stdout))


def deployment(name: str) -> tuple[Object, ...]:
    """`base`, from its files, or an overlay, rendered."""
    return base_files() if name == "base" else rendered(KUBERNETES / "overlays" / name)


@dataclass(frozen=True)
class Workload:
    """Something that makes pods: its object's kind and name, its pods' labels and spec."""

    kind: str
    name: str
    labels: Mapping[str, str]
    spec: Mapping[str, Any]

    @property
    def component(self) -> str:
        return self.labels["app.kubernetes.io/component"]

    @property
    def container(self) -> Mapping[str, Any]:
        (only,) = self.spec["containers"]
        return only


def of_kind(objects: tuple[Object, ...], kind: str) -> dict[str, Object]:
    return {item["metadata"]["name"]: item for item in objects if item["kind"] == kind}


def workloads(objects: tuple[Object, ...]) -> list[Workload]:
    """Every pod template among the objects."""
    return [
        Workload(item["kind"], item["metadata"]["name"], template["metadata"]["labels"], template["spec"])
        for item in objects
        for template in _templates(item)
    ]


def _templates(item: Object) -> Iterator[Object]:
    if item["kind"] in ("Deployment", "StatefulSet"):
        yield item["spec"]["template"]
    elif item["kind"] == "RayCluster":
        yield item["spec"]["headGroupSpec"]["template"]
        yield from (group["template"] for group in item["spec"]["workerGroupSpecs"])


def environment(workload: Workload, objects: tuple[Object, ...]) -> dict[str, str]:
    """The container's variables; those out of Secrets as `secret`."""
    config_maps = of_kind(objects, "ConfigMap")
    values: dict[str, str] = {}
    for source in workload.container.get("envFrom", []):
        values |= config_maps[source["configMapRef"]["name"]]["data"]
    return values | {item["name"]: item.get("value", "secret") for item in workload.container.get("env", [])}
