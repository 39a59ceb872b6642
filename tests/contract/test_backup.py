"""`deploy/backup` with real Redis servers, and what the service does if Redis and storage are of different moments."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from services.common.archive import Archive
from services.common.history import History
from services.common.redis_client import TO_MOVE, key
from services.trainer.cluster import Status
from services.trainer.sweeper import StorageSweeper
from tests.contract.coordinator_harness import CoordinatorHarness, MovableClockStore
from tests.contract.gateway import FakeRetriever, T, make_gateway
from tests.factories import make_resolved, make_spec
from tests.redis_server import RedisServer, free_port, redis_binary
from tests.support import ROOT
from tests.trainer_fakes import counting_stage
from tlm_client.stack.processes import port_is_free
from tlm_core.artifacts.store import ArtifactStore
from tlm_core.jobs.states import State

Start = Callable[[str], RedisServer]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start Redis servers. The script needs the next port too."""
    servers: list[RedisServer] = []

    def started(name: str) -> RedisServer:
        while not port_is_free((port := free_port()) + 1):
            continue
        (tmp_path / name).mkdir()
        servers.append(RedisServer(tmp_path / name, port))
        servers[-1].start()
        return servers[-1]

    yield started
    for server in servers:
        server.kill()


def backup(
    verb: str, folder: Path, server: RedisServer, storage: Path | str, at_storage: str = ""
) -> subprocess.CompletedProcess[str]:
    environment = {
        "PATH": f"{Path(redis_binary()).parent}:{os.environ['PATH']}", "AT_REDIS": "", "AT_STORAGE": at_storage,
        "REDIS_DATA": str(server.folder), "REDIS_PORT": str(server.port), "REDIS_PASSWORD": server.password,
        "STORAGE": str(storage),
    }  # fmt: skip
    command = [ROOT / "deploy" / "backup", verb, folder]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)


def service(server: RedisServer, folder: Path) -> CoordinatorHarness:
    """Return a service on this Redis, with the storage in `folder`. Its cluster knows no submission."""
    artifacts = ArtifactStore(str(folder / "storage"), folder / "cache")
    return CoordinatorHarness(MovableClockStore(server.client(), History(artifacts)), folder)


def add_ended_job(harness: CoordinatorHarness) -> str:
    """Return a job that has succeeded, and whose streams are in the storage."""
    job = harness.submit()
    assert harness.until_ended(harness.coordinator(), job).state is State.SUCCEEDED
    Archive(harness.store).move_marked()
    return job


def add_running_job(harness: CoordinatorHarness, digest: str = "e" * 64) -> str:
    """Return a job whose first stage on a worker has written checkpoints up to step 3 and runs."""
    resolved = make_resolved()
    data = resolved.dataset.model_copy(update={"digest": digest})
    job = harness.store.submit(T, make_spec(), resolved.model_copy(update={"dataset": data}))[0].id
    harness.until_submitted(harness.coordinator(), job)
    write_checkpoints(harness, job)
    return job


def write_checkpoints(harness: CoordinatorHarness, job: str, steps: int = 3) -> None:
    def interrupt(step: int) -> None:
        if step > steps:
            raise RuntimeError("interrupted")

    submission = harness.job(job).submissions["main"]
    harness.work(submission, prepare=counting_stage(5, interrupt))
    if steps < 5:
        harness.cluster.statuses[submission] = Status.RUNNING


def move_streams(harness: CoordinatorHarness, job: str) -> None:
    harness.store._redis.sadd(TO_MOVE, f"{T}/{job}")
    Archive(harness.store).move_marked()


def finish(harness: CoordinatorHarness, job: str) -> list[str]:
    """Run a job of a restored service, whose lease has expired, to its end. Returns its events."""
    coordinator = harness.coordinator("b")
    for _ in range(20):
        harness.store.expire_deadlines()
        coordinator.round()
        for submission in harness.job(job).submissions.values():
            if harness.cluster.statuses.get(submission) is Status.RUNNING:
                harness.work(submission, prepare=counting_stage(5))
    assert harness.job(job).state is State.SUCCEEDED, harness.job(job)
    return [event.type for event in harness.store.events(T, job, limit=1000)]


def check_files(harness: CoordinatorHarness, job: str) -> None:
    result = harness.job(job).result
    assert result is not None
    for entry in result.artifacts.values():
        harness.artifacts.verify(entry.ref)


def test_restored_service_has_all_jobs_and_continues(start: Start, tmp_path: Path) -> None:
    server = start("redis")
    harness = service(server, tmp_path / "a")
    ended, running = add_ended_job(harness), add_running_job(harness)
    events = harness.store.events(T, ended)
    server.client().hset("RAYtlm-ray@NODE", "n", "gone")
    saved = backup("save", tmp_path / "backup", server, tmp_path / "a" / "storage")
    assert saved.returncode == 0, saved.stderr
    server.kill()
    shutil.rmtree(tmp_path / "a")

    again = start("again")
    (tmp_path / "b" / "storage").mkdir(parents=True)
    restored = backup("restore", tmp_path / "backup", again, tmp_path / "b" / "storage")
    assert restored.returncode == 0, restored.stderr
    again.kill()
    assert not list(again.folder.glob("*.rdb"))
    again.start()  # The append-only file has the data.
    harness = service(again, tmp_path / "b")
    assert {job.id for job in harness.store.list_jobs(T)[0]} == {ended, running}
    assert harness.store.events(T, ended) == events
    assert not again.client().exists("RAYtlm-ray@NODE")
    check_files(harness, ended)
    assert "stage.resumed" in finish(harness, running)
    check_files(harness, running)


def test_backup_is_private_and_preserves_modes_of_files(start: Start, tmp_path: Path) -> None:
    saved, storage = tmp_path / "backup", tmp_path / "storage"
    storage.mkdir()
    (storage / "shared").touch()
    (storage / "shared").chmod(0o664)
    assert backup("save", saved, start("redis"), storage).returncode == 0
    modes = [path.stat().st_mode & 0o777 for path in (saved, saved / "redis.rdb", saved / "storage" / "shared")]
    assert modes == [0o700, 0o600, 0o664]


def test_restore_into_a_redis_with_jobs_is_refused(start: Start, tmp_path: Path) -> None:
    server = start("redis")
    harness = service(server, tmp_path / "a")
    harness.submit()
    assert backup("save", tmp_path / "backup", server, "").returncode == 0
    refused = backup("restore", tmp_path / "backup", server, "")
    assert refused.returncode == 1 and "Redis has jobs" in refused.stderr
    assert len(harness.store.list_jobs(T)[0]) == 1
    assert not (server.folder / "restore.rdb").exists()


@pytest.mark.parametrize("records", ["datasets", "corpora", "webhooks"])
def test_restore_into_a_redis_with_records_changes_no_storage(start: Start, tmp_path: Path, records: str) -> None:
    server = start("redis")
    assert backup("save", tmp_path / "backup", server, "").returncode == 0
    (tmp_path / "backup" / "storage" / "old").touch()
    (tmp_path / "storage").mkdir()
    server.client().zadd(key(T, records), {"name": 0})
    refused = backup("restore", tmp_path / "backup", server, tmp_path / "storage")
    assert refused.returncode == 1 and "Stop the gateways and empty Redis" in refused.stderr
    assert server.client().exists(key(T, records)) and not list((tmp_path / "storage").iterdir())


def test_restore_fails_if_redis_cannot_write_its_file(start: Start, tmp_path: Path) -> None:
    server = start("redis")
    server.client().set("large", os.urandom(65_536))
    assert backup("save", tmp_path / "backup", server, "").returncode == 0
    again = start("again")
    assert again.process is not None
    resource.prlimit(again.process.pid, resource.RLIMIT_FSIZE, (4096, 4096))  # as on a full disk
    failed = backup("restore", tmp_path / "backup", again, "")
    assert failed.returncode == 1 and "Redis cannot write the restored data" in failed.stderr, failed
    assert not list(again.folder.glob("*.rdb"))


@pytest.mark.parametrize("at_storage", ["", "true"])  # `true` succeeds without reading what the first tar sends.
def test_restore_of_an_unreadable_storage_fails(start: Start, tmp_path: Path, at_storage: str) -> None:
    server = start("redis")
    assert backup("save", tmp_path / "backup", server, "").returncode == 0
    (tmp_path / "backup" / "storage").rmdir()
    failed = backup("restore", tmp_path / "backup", server, tmp_path, at_storage)
    assert failed.returncode == 1 and f"tar cannot copy {tmp_path}/backup/storage" in failed.stderr, failed


def test_failed_save_leaves_no_backup(start: Start, tmp_path: Path) -> None:
    server = start("redis")
    server.password = "wrong"
    assert backup("save", tmp_path / "backup", server, "").returncode == 1
    assert backup("restore", tmp_path / "backup", server, "").returncode == 1
    missing = backup("save", tmp_path / "other", server, tmp_path / "nothing")
    assert missing.returncode == 1 and "tar cannot read" in missing.stderr


def test_redis_older_than_the_storage(start: Start, tmp_path: Path) -> None:
    """Work of the time between is lost, and done again where a job of the restored Redis needs it."""
    server = start("redis")
    harness = service(server, tmp_path / "a")
    ended, running = add_ended_job(harness), add_running_job(harness)
    move_streams(harness, running)
    assert backup("save", tmp_path / "backup", server, "").returncode == 0
    # The later moment: the job has ended, and has replaced its history and its checkpoints; a new job came.
    write_checkpoints(harness, running, 5)
    finish(harness, running)
    Archive(harness.store).move_marked()
    newer = add_ended_job(harness)
    server.kill()

    again = start("again")
    assert backup("restore", tmp_path / "backup", again, "").returncode == 0
    harness = service(again, tmp_path / "a")
    with make_gateway(again.client(), tmp_path / "a").test_client() as api:
        assert api.get(f"/v1/jobs/{newer}").status_code == 404
        assert api.get(f"/v1/jobs/{running}").json()["state"] == "running"
        finish(harness, running)
        check_files(harness, running)
        check_files(harness, ended)
        Archive(harness.store).move_marked()
        for path in ("events", "metrics", "logs"):
            assert api.get(f"/v1/jobs/{running}/{path}").status_code == 200, path
    StorageSweeper(harness.store, harness.artifacts, FakeRetriever().client()).sweep()
    assert (tmp_path / "a" / "storage" / T / "jobs" / newer).exists(), "deleted after a week"


def test_storage_older_than_redis(start: Start, tmp_path: Path) -> None:
    """Files of the time between are lost. Unfinished jobs, and new jobs of equal work, compute them again."""
    server = start("redis")
    harness = service(server, tmp_path / "a")
    shutil.copytree(tmp_path / "a" / "storage", tmp_path / "b" / "storage")
    ended, running = add_ended_job(harness), add_running_job(harness)
    move_streams(harness, running)

    harness = service(server, tmp_path / "b")
    with make_gateway(server.client(), tmp_path / "b").test_client() as api:
        assert [job["state"] for job in api.get("/v1/jobs").json()["data"]] == ["running", "succeeded"]
        for path in ("report", "events", "model/files"):
            lost = api.get(f"/v1/jobs/{ended}/{path}")
            assert (lost.status_code, "does not exist" in lost.text) == (404, True), path
        assert "stage.resumed" not in finish(harness, running)
        check_files(harness, running)
        move_streams(harness, running)
        for path in ("events", "metrics", "logs"):
            assert api.get(f"/v1/jobs/{running}/{path}").json()["data"], path
    again = harness.submit()
    finish(harness, again)
    check_files(harness, again)
