"""The whole stack on this machine: start, restart, status, stop and cleanup."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import httpx
import pytest

from tests.support import wait_for
from tlm_client.client import TLMClient
from tlm_client.stack import parts
from tlm_client.stack.control import run_stack
from tlm_client.stack.folder import StackFolder
from tlm_client.stack.parts import StackOptions, clear_ray
from tlm_client.stack.processes import FOLDER_MARK, list_processes
from tlm_core.errors import ClusterUnavailable, MissingDependency

pytestmark = pytest.mark.ray

TLM = (sys.executable, "-m", "tlm_client")
ROWS = "".join(f'{{"text": "text number {n} of class {n % 2}", "label": "c{n % 2}"}}\n' for n in range(40))


def tlm(*arguments: str, timeout: float = 150.0) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*TLM, *arguments], capture_output=True, text=True, timeout=timeout, check=False)


def processes_of(folder: Path) -> list[int]:
    return list_processes({FOLDER_MARK: str(folder)})


def part(folder: Path, name: str) -> Any:
    state = StackFolder(folder).state()
    return state.parts.get(name) if state else None


def listening(pids: list[int]) -> set[str]:
    """Return the local addresses of listening sockets in the format of /proc (hexadecimal, address:port)."""
    inodes = set()
    for pid in pids:
        for entry in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                target = os.readlink(entry)
            except OSError:
                continue
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    addresses = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text(encoding="ascii").splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                addresses.add(fields[1])
    return addresses


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("stack") / "data"
    yield root
    tlm("down", "--data-dir", str(root))


@pytest.fixture(scope="module")
def up(folder: Path) -> dict[str, Any]:
    """Start a stack in the background."""
    result = tlm("up", "--detach", "--port", "0", "--json", "--data-dir", str(folder))
    assert result.returncode == 0, result.stderr
    ready: dict[str, Any] = json.loads(result.stdout)
    return ready


def test_all_parts_are_up_and_answer(up: dict[str, Any], folder: Path) -> None:
    result = tlm("status", "--json", "--data-dir", str(folder))
    status = json.loads(result.stdout)
    assert result.returncode == 0, status
    assert (status["state"], status["answers"], status["url"]) == ("ready", True, up["url"])
    assert datetime.fromisoformat(status["started_at"]) < datetime.now(UTC)
    assert {name: p["state"] for name, p in status["parts"].items()} == dict.fromkeys(
        ("redis", "ray", "retriever", "trainer", "loader", "api"), "up"
    )


@pytest.mark.usefixtures("up")
def test_parts_listen_only_on_loopback(folder: Path) -> None:
    addresses = listening(processes_of(folder))
    assert len(addresses) >= 5
    outside = {a for a in addresses if a.split(":")[0] not in ("0100007F", "0000000000000000FFFF00000100007F")}
    assert outside == set()


def test_metrics_have_the_free_space_of_redis_disk(up: dict[str, Any]) -> None:
    headers = {"Authorization": f"Bearer {Path(up['token_file']).read_text(encoding='ascii').strip()}"}
    wait_for(lambda: "\ntlm_redis_disk_free_bytes " in httpx.get(f"{up['url']}/metrics", headers=headers).text, 10)


def test_gateway_and_ray_require_a_token(up: dict[str, Any], folder: Path) -> None:
    assert httpx.get(f"{up['url']}/v1/jobs").status_code == 401
    ray = next(p for p in processes_of(folder) if b"--dashboard-port" in Path(f"/proc/{p}/cmdline").read_bytes())
    arguments = Path(f"/proc/{ray}/cmdline").read_text(encoding="utf-8").split("\0")
    port = arguments[arguments.index("--dashboard-port") + 1]
    assert httpx.get(f"http://127.0.0.1:{port}/api/jobs/").status_code == 401


def test_second_stack_on_the_folder_reports_the_first(up: dict[str, Any], folder: Path) -> None:
    commands = [("up", *options, "--port", "0", "--data-dir", str(folder)) for options in ((), ("--detach",))]
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda command: tlm(*command), commands))
    for result in results:
        assert result.returncode == 1
        assert f"already running at {up['url']}" in result.stderr
    assert StackFolder(folder).running()


def test_used_port_is_reported_and_starts_nothing(up: dict[str, Any], tmp_path: Path) -> None:
    port = up["url"].rsplit(":", 1)[1]
    result = tlm("up", "--port", port, "--data-dir", str(tmp_path / "other"))
    assert result.returncode == 1
    assert f"Port {port}" in result.stderr and "--port" in result.stderr
    assert processes_of(tmp_path / "other") == []


def test_killed_gateway_restarts_with_its_data(up: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    rows = tmp_path / "toy.jsonl"
    rows.write_text(ROWS, encoding="utf-8")
    token = Path(up["token_file"]).read_text(encoding="ascii").strip()
    with TLMClient(up["url"], token) as client:
        client.add_dataset("toy", {"file": rows})
    before = part(folder, "api").pid
    os.kill(before, signal.SIGKILL)

    def restarted() -> bool:
        api = part(folder, "api")  # read once: between two reads the state changes
        return api.state == "up" and api.pid != before

    wait_for(restarted, 60)
    with TLMClient(up["url"], token) as client:
        assert [d.name for d in client.datasets()] == ["toy"]
    assert part(folder, "api").restarts == 1


@pytest.mark.usefixtures("up")
def test_down_leaves_no_process_and_up_restores_the_data(folder: Path) -> None:
    result = tlm("down", "--data-dir", str(folder))
    assert (result.returncode, result.stdout) == (0, "Stopped\n")
    assert processes_of(folder) == []
    assert StackFolder(folder).state() is None
    assert tlm("status", "--data-dir", str(folder)).returncode == 3

    with subprocess.Popen(
        [*TLM, "up", "--port", "0", "--data-dir", str(folder)], stdout=subprocess.PIPE, text=True
    ) as restarted:
        assert restarted.stdout is not None
        assert restarted.stdout.readline().startswith("Ready at http://127.0.0.1:")
        datasets = json.loads(tlm("--data-dir", str(folder), "dataset", "list", "--json").stdout)
        assert [d["name"] for d in datasets] == ["toy"]
        restarted.send_signal(signal.SIGINT)
        assert restarted.wait(60) == 0
    assert processes_of(folder) == []


def started(folder: Path) -> tuple[subprocess.Popen[bytes], list[int]]:
    """Return a starting foreground stack, and its processes after Ray has started its own."""
    process = subprocess.Popen([*TLM, "up", "--port", "0", "--data-dir", str(folder)], stderr=subprocess.PIPE)
    ray = lambda: [p for p in processes_of(folder) if b"gcs_server" in Path(f"/proc/{p}/cmdline").read_bytes()]  # noqa: E731
    wait_for(ray, 90)
    return process, processes_of(folder)


def test_ctrl_c_during_start_leaves_no_process(tmp_path: Path) -> None:
    process, running = started(tmp_path / "stack")
    with process:
        assert len(running) >= 4
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    assert processes_of(tmp_path / "stack") == []
    assert not StackFolder(tmp_path / "stack").running()
    assert (tmp_path / "stack" / "logs" / "ray" / "gcs_server.out").exists(), "Ray's logs remain"
    assert not (tmp_path / "stack" / "ray").exists()


def test_failing_ray_is_reported_with_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "ray"
    broken.write_text("#!/bin/sh\necho no room in shared memory\nexit 1\n", encoding="utf-8")
    broken.chmod(0o755)
    monkeypatch.setattr(parts, "ray_executable", lambda: str(broken))
    options = StackOptions(tmp_path / "stack", port=0)
    with pytest.raises(ClusterUnavailable, match="no room in shared memory"):
        run_stack(options, notify=lambda _: None, on_ready=lambda _: None)
    assert processes_of(tmp_path / "stack") == []
    assert not StackFolder(tmp_path / "stack").running()


def test_missing_redis_starts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "redis_executable", Mock(side_effect=MissingDependency("no redis-server")))
    options = StackOptions(tmp_path / "stack", port=0)
    with pytest.raises(MissingDependency):
        run_stack(options, notify=lambda _: None, on_ready=lambda _: None)
    assert processes_of(tmp_path / "stack") == []
    assert not StackFolder(tmp_path / "stack").running()


def test_killed_supervisor_leaves_no_process(tmp_path: Path) -> None:
    process, running = started(tmp_path / "stack")
    with process:
        assert len(running) >= 4
        process.kill()
    wait_for(lambda: processes_of(tmp_path / "stack") == [], 20)
    assert not StackFolder(tmp_path / "stack").running()
    with socket.socket() as probe:
        state = StackFolder(tmp_path / "stack").state()
        assert state is not None
        assert probe.connect_ex(("127.0.0.1", int(state.url.rsplit(":", 1)[1]))) != 0
    clear_ray(StackFolder(tmp_path / "stack"))
