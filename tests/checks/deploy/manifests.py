"""The Kubernetes objects of the base files, and of the overlays as rendered by kustomize."""

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
    """Return the objects in the base files, and each ConfigMap that kustomize would generate."""
    kustomization = yaml.safe_load((BASE / "kustomization.yaml").read_text())
    objects = [item for name in kustomization["resources"] for item in yaml.safe_load_all((BASE / name).read_text())]
    for config in kustomization["configMapGenerator"]:
        data = {name: (BASE / name).read_text() for name in config["files"]}
        objects.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": config["name"]}, "data": data})
    return tuple(objects)


@functools.cache
def rendered(folder: Path) -> tuple[Object, ...]:
    """Return the output of `kubectl kustomize`."""
    if shutil.which("kubectl") is None:
        skip_or_fail("kubectl is missing, so overlays cannot be rendered")
    result = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return tuple(yaml.safe_load_all(result.stdout))


def deployment(name: str) -> tuple[Object, ...]:
    """Return the objects of `base` (from its files) or of a rendered overlay."""
    return base_files() if name == "base" else rendered(KUBERNETES / "overlays" / name)


@dataclass(frozen=True)
class Workload:
    """A pod template: kind and name of its object, labels and spec of its pods."""

    kind: str
    name: str
    labels: Mapping[str, str]
    spec: Mapping[str, Any]

    @property
    def component(self) -> str:
        return self.labels["app.kubernetes.io/component"]

    @property
    def container(self) -> Mapping[str, Any]:
        (container,) = self.spec["containers"]
        return container


def of_kind(objects: tuple[Object, ...], kind: str) -> dict[str, Object]:
    return {item["metadata"]["name"]: item for item in objects if item["kind"] == kind}


def workloads(objects: tuple[Object, ...]) -> list[Workload]:
    """Return every pod template among the objects."""
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
    """Return the container's variables; a value from a Secret is `secret`."""
    config_maps = of_kind(objects, "ConfigMap")
    values: dict[str, str] = {}
    for source in workload.container.get("envFrom", []):
        values |= config_maps[source["configMapRef"]["name"]]["data"]
    return values | {item["name"]: item.get("value", "secret") for item in workload.container.get("env", [])}
