"""The Kubernetes manifests: valid, restricted, complete, and valid for the services' settings."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from services.trainer.cluster import DRIVER
from tests.checks.deploy.environment import check_environment
from tests.checks.deploy.manifests import (
    BASE,
    KUBERNETES,
    OVERLAYS,
    Object,
    Workload,
    base_files,
    deployment,
    environment,
    of_kind,
    rendered,
    workloads,
)
from tests.checks.deploy.versions import IMAGES, OURS, our_version, pinned
from tests.checks.docs.blocks import blocks_of
from tests.support import ROOT

# The image writes to its root file system at start.
WRITES_TO_ITS_ROOT = {"opensearch"}
SERVICE_OF = {
    "api": "api",
    "loader": "loader",
    "retriever": "retriever",
    "trainer": "trainer",
    "ray-head": "trainer",
    "ray-worker": "trainer",
}
COMPONENTS = {*SERVICE_OF, "redis", "opensearch"}


@pytest.fixture(params=["base", *OVERLAYS])
def objects(request: pytest.FixtureRequest) -> tuple[Object, ...]:
    return deployment(request.param)


def test_base_renders_to_the_objects_in_its_files() -> None:
    def ids(items: tuple[Object, ...]) -> set[tuple[str, str]]:
        return {(item["kind"], item["metadata"]["name"].removesuffix("-" + _hash(item))) for item in items}

    def _hash(item: Object) -> str:
        return item["metadata"]["name"].rpartition("-")[2] if "redis.conf" in item.get("data", {}) else "no hash"

    assert ids(rendered(BASE)) == ids(base_files())


def test_base_lists_all_its_files() -> None:
    listed = yaml.safe_load((BASE / "kustomization.yaml").read_text())["resources"]
    assert sorted([*listed, "kustomization.yaml"]) == sorted(path.name for path in BASE.glob("*.yaml"))


@pytest.mark.parametrize("version", ["1.30", "1.37"])
def test_objects_are_valid_for_kubernetes(version: str) -> None:
    objects = [item for name in ("base", *OVERLAYS) for item in deployment(name)]
    pods = [
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": load.name, "labels": load.labels}, "spec": load.spec}
        for load in workloads(tuple(objects))
        if load.kind == "RayCluster"
    ]
    # Each validation loads the schema again, so equal objects are validated once.
    distinct = {json.dumps(item, sort_keys=True) for item in (*objects, *pods) if item["kind"] != "RayCluster"}
    for item in distinct:
        kubernetes_validate.validate(json.loads(item), version, strict=True)


def test_network_policies_precede_pods(objects: tuple[Object, ...]) -> None:
    kinds = [item["kind"] for item in objects]
    last_policy = max(place for place, kind in enumerate(kinds) if kind == "NetworkPolicy")
    assert last_policy < min(kinds.index(load.kind) for load in workloads(objects))


def test_each_component_exists_once(objects: tuple[Object, ...]) -> None:
    assert sorted(load.component for load in workloads(objects)) == sorted(COMPONENTS)


def test_pods_meet_the_restricted_standard(objects: tuple[Object, ...]) -> None:
    for load in workloads(objects):
        pod, container = load.spec["securityContext"], load.container["securityContext"]
        assert pod["runAsNonRoot"] is True and pod["runAsUser"] > 0, load
        assert pod["seccompProfile"] == {"type": "RuntimeDefault"}, load
        assert container["allowPrivilegeEscalation"] is False, load
        assert container["capabilities"] == {"drop": ["ALL"]}, load
        assert container.get("readOnlyRootFilesystem", False) is (load.component not in WRITES_TO_ITS_ROOT), load
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(load.spec), load
        allowed = {"name", "configMap", "emptyDir", "persistentVolumeClaim"}
        assert all(set(volume) <= allowed for volume in load.spec.get("volumes", [])), load
    (namespace,) = of_kind(objects, "Namespace").values()
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_pods_use_service_accounts_without_tokens(objects: tuple[Object, ...]) -> None:
    accounts = of_kind(objects, "ServiceAccount")
    assert all(account["automountServiceAccountToken"] is False for account in accounts.values())
    assert {load.spec["serviceAccountName"] for load in workloads(objects)} == set(accounts)
    for load in workloads(objects):
        assert load.spec["automountServiceAccountToken"] is False, load
        # Service links would set variables such as API_PORT, and TLM_API_PORT for a Service named tlm-api.
        assert load.spec["enableServiceLinks"] is False, load


def test_containers_have_all_probes(objects: tuple[Object, ...]) -> None:
    for load in workloads(objects):
        probes = {"startupProbe", "readinessProbe", "livenessProbe"}
        assert probes <= set(load.container), load
        # A restart does not repair a dependency.
        assert "readyz" not in str(load.container.get("livenessProbe")), load


def test_containers_have_requests_and_limits(objects: tuple[Object, ...]) -> None:
    for load in workloads(objects):
        for side in ("requests", "limits"):
            assert {"cpu", "memory", "ephemeral-storage"} <= set(load.container["resources"][side]), load


def test_images_are_pinned(objects: tuple[Object, ...]) -> None:
    for load in workloads(objects):
        assert pinned(load.container["image"]), load.container["image"]


def test_base_has_the_project_version_and_the_locked_ray() -> None:
    for load in workloads(base_files()):
        name, tag = load.container["image"].split(":")
        if load.component in SERVICE_OF:
            assert (name, tag) == (f"{OURS}{_image(load)}", our_version()), load
    (cluster,) = of_kind(base_files(), "RayCluster").values()
    assert f"ray=={cluster['spec']['rayVersion']} " in (ROOT / "requirements.txt").read_text()


@pytest.mark.parametrize("below", ["base", "overlays/gpu"])
def test_documented_overlay_replaces_every_image(tmp_path: Path, below: str) -> None:
    page = ROOT / "docs" / "deploy.md"
    (text,) = (b.text for b in blocks_of(page) if "kind: Kustomization" in b.text)
    component = "components: [../deploy/kubernetes/components/hub]"
    assert "resources: [../deploy/kubernetes/base]" in text and component in page.read_text(encoding="utf-8")
    overlay = f"{text.replace('kubernetes/base', f'kubernetes/{below}')}\n{component}"
    overlay = overlay.replace("../deploy/kubernetes", os.path.relpath(KUBERNETES, tmp_path.resolve()))
    (tmp_path / "kustomization.yaml").write_text(overlay, encoding="utf-8")
    assert "hub" in of_kind(rendered(tmp_path), "NetworkPolicy") and "hub" not in of_kind(base_files(), "NetworkPolicy")
    for load in workloads(rendered(tmp_path)):
        if load.component in SERVICE_OF:
            assert load.container["image"] == f"registry.example/tlm/{_image(load)}:{our_version()}"


def test_ray_requires_a_token_and_its_head_runs_no_training(objects: tuple[Object, ...]) -> None:
    (cluster,) = of_kind(objects, "RayCluster").values()
    assert cluster["apiVersion"] == "ray.io/v1"
    assert cluster["spec"]["authOptions"] == {"mode": "token", "secretName": "ray-token"}
    assert cluster["spec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    head, *workers = (load for load in workloads(objects) if load.kind == "RayCluster")
    # The coordinator submits paths of its own image.
    (trainer,) = (load for load in workloads(objects) if load.component == "trainer")
    assert {head.container["image"], *(load.container["image"] for load in workers)} == {trainer.container["image"]}


def test_head_of_ray_survives_restarts_and_runs_no_drivers(objects: tuple[Object, ...]) -> None:
    (cluster,) = of_kind(objects, "RayCluster").values()
    options = cluster["spec"]["gcsFaultToleranceOptions"]
    (redis,) = (service for name, service in of_kind(objects, "Service").items() if name == "redis")
    assert options["redisAddress"] == f"redis:{redis['spec']['ports'][0]['port']}"
    assert options["redisPassword"]["valueFrom"]["secretKeyRef"] == {"name": "redis-password", "key": "password"}
    assert "resources" not in cluster["spec"]["headGroupSpec"]["rayStartParams"]
    for group in cluster["spec"]["workerGroupSpecs"]:
        assert json.loads(json.loads(group["rayStartParams"]["resources"])) == {DRIVER: 2}
    for load in workloads(objects):
        if load.kind == "RayCluster":
            variables = {item["name"]: item.get("value") for item in load.container["env"]}
            assert variables["RAY_gcs_rpc_server_reconnect_timeout_s"] == "600", load


def test_training_worker_fits_into_a_pod(objects: tuple[Object, ...]) -> None:
    for load in workloads(objects):
        if load.component == "ray-worker":
            values, limits = environment(load, objects), load.container["resources"]["limits"]
            assert float(values["TLM_TRAINER_WORKER_CPUS"]) <= float(limits["cpu"])
            assert float(values["TLM_TRAINER_WORKER_GPUS"]) == float(limits.get("nvidia.com/gpu", 0))


def test_ray_has_a_worker_for_each_concurrent_job(objects: tuple[Object, ...]) -> None:
    coordinators = of_kind(objects, "Deployment")["trainer"]["spec"]["replicas"]
    concurrency = int(of_kind(objects, "ConfigMap")["trainer"]["data"]["TLM_TRAINER_CONCURRENCY"])
    (group,) = of_kind(objects, "RayCluster")["ray"]["spec"]["workerGroupSpecs"]
    assert group["replicas"] == coordinators * concurrency


def test_ray_has_shared_memory_beyond_its_object_store(objects: tuple[Object, ...]) -> None:
    (cluster,) = of_kind(objects, "RayCluster").values()
    groups = [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]
    for group, load in zip(groups, (load for load in workloads(objects) if load.kind == "RayCluster"), strict=True):
        (name,) = (m["name"] for m in load.container["volumeMounts"] if m["mountPath"] == "/dev/shm")
        (volume,) = (volume["emptyDir"] for volume in load.spec["volumes"] if volume["name"] == name)
        assert volume["medium"] == "Memory"
        assert 2 * int(group["rayStartParams"]["object-store-memory"]) <= _bytes(volume["sizeLimit"])
        assert 2 * _bytes(volume["sizeLimit"]) <= _bytes(load.container["resources"]["limits"]["memory"])


def _bytes(size: str) -> int:
    return int(size[:-2]) << {"Mi": 20, "Gi": 30}[size[-2:]]


def test_gpu_workers_have_the_settings_of_nccl() -> None:
    overlay = yaml.safe_load((KUBERNETES / "overlays" / "gpu" / "kustomization.yaml").read_text(encoding="utf-8"))
    (patch,) = (p["patch"] for p in overlay["patches"] if p["target"] == {"kind": "ConfigMap", "name": "trainer"})
    added = {step["path"].removeprefix("/data/"): step["value"] for step in yaml.safe_load(patch)}
    compose = yaml.safe_load((ROOT / "deploy" / "compose.gpu.yml").read_text(encoding="utf-8"))["services"]
    for name in ("ray-head", "ray-worker"):
        assert compose[name]["environment"] == added
    assert {"NCCL_DEBUG", "NCCL_SOCKET_IFNAME"} <= added.keys()
    assert int(compose["ray-worker"]["shm_size"].removesuffix("gb")) >= 8, "NCCL between the GPUs of one container"


def test_redis_maxmemory_is_at_most_half_its_limit(objects: tuple[Object, ...]) -> None:
    """A rewrite of the append-only file may double the memory in use."""
    (config,) = (item["data"]["redis.conf"] for item in objects if "redis.conf" in item.get("data", {}))
    (maxmemory,) = re.findall(r"^maxmemory (\d+)gb$", config, re.MULTILINE)
    (redis,) = (load for load in workloads(objects) if load.component == "redis")
    (limit,) = re.findall(r"^(\d+)Gi$", redis.container["resources"]["limits"]["memory"])
    assert 2 * int(maxmemory) <= int(limit)
    assert redis.container["resources"]["requests"]["memory"] == f"{limit}Gi"


def test_workloads_select_their_own_pods(objects: tuple[Object, ...]) -> None:
    for kind in ("Deployment", "StatefulSet"):
        for item in of_kind(objects, kind).values():
            labels = item["spec"]["template"]["metadata"]["labels"]
            assert item["spec"]["selector"]["matchLabels"].items() <= labels.items(), item["metadata"]["name"]
    (budget,) = of_kind(objects, "PodDisruptionBudget").values()
    assert _selected(budget["spec"]["selector"]["matchLabels"], objects).component == "api"


def test_services_target_existing_ports_inside_the_cluster(objects: tuple[Object, ...]) -> None:
    services = of_kind(objects, "Service")
    for name, service in services.items():
        load = _selected(service["spec"]["selector"], objects)
        assert load.component == name
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= {p["name"] for p in load.container["ports"]}
        assert service["spec"].get("type", "ClusterIP") == "ClusterIP"
    for name, item in of_kind(objects, "StatefulSet").items():
        assert item["spec"]["serviceName"] in services, name
    assert not {"Ingress", "HTTPRoute"} & {item["kind"] for item in objects}


def test_references_of_pods_exist(objects: tuple[Object, ...]) -> None:
    secrets = of_kind(deployment("dev"), "Secret")
    known: dict[str, set[Any]] = {
        "configMap": set(of_kind(objects, "ConfigMap")),
        "claim": set(of_kind(objects, "PersistentVolumeClaim")),
        "secret": {(name, key) for name, secret in secrets.items() for key in secret["data"]},
    }
    for load in workloads(objects):
        for kind, names in _references(load).items():
            assert names <= known[kind], (load.name, names - known[kind])
    (cluster,) = of_kind(objects, "RayCluster").values()
    assert (cluster["spec"]["authOptions"]["secretName"], "auth_token") in known["secret"]


def test_only_the_dev_overlay_contains_secrets() -> None:
    assert not of_kind(base_files(), "Secret")
    assert not of_kind(deployment("gpu"), "Secret")


def test_mounts_match_the_pod_volumes(objects: tuple[Object, ...]) -> None:
    claimed = {
        item["metadata"]["name"]: {claim["metadata"]["name"] for claim in item["spec"]["volumeClaimTemplates"]}
        for item in of_kind(objects, "StatefulSet").values()
    }
    for load in workloads(objects):
        volumes = {volume["name"] for volume in load.spec.get("volumes", [])} | claimed.get(load.name, set())
        assert {mount["name"] for mount in load.container["volumeMounts"]} == volumes, load


def test_variables_are_settings_of_their_service(objects: tuple[Object, ...]) -> None:
    for load in workloads(objects):
        if load.component in SERVICE_OF:
            settings = check_environment(SERVICE_OF[load.component], environment(load, objects))
            mounted = {mount["mountPath"] for mount in load.container["volumeMounts"]}
            assert {str(settings.storage), str(settings.scratch)} <= mounted, load


def test_commands_start_existing_services(objects: tuple[Object, ...]) -> None:
    for load in workloads(objects):
        if load.component in ("api", "loader", "retriever", "trainer"):
            assert load.container["command"] == ["python", "-m", f"services.{load.component}"]
            assert (ROOT / "services" / load.component / "__main__.py").exists()


def _image(load: Workload) -> str:
    return IMAGES.get(SERVICE_OF[load.component], SERVICE_OF[load.component])


def _selected(selector: dict[str, str], objects: tuple[Object, ...]) -> Workload:
    (load,) = (load for load in workloads(objects) if selector.items() <= load.labels.items())
    return load


def _references(load: Workload) -> dict[str, set[Any]]:
    volumes, variables = load.spec.get("volumes", []), load.container.get("env", [])
    from_maps = {source["configMapRef"]["name"] for source in load.container.get("envFrom", [])}
    keys = [variable["valueFrom"]["secretKeyRef"] for variable in variables if "valueFrom" in variable]
    return {
        "configMap": from_maps | {volume["configMap"]["name"] for volume in volumes if "configMap" in volume},
        "claim": {v["persistentVolumeClaim"]["claimName"] for v in volumes if "persistentVolumeClaim" in v},
        "secret": {(key["name"], key["key"]) for key in keys},
    }
