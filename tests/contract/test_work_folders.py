"""Working folders of workers that are terminated or killed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from services.trainer.scratch import work_folder
from tests.contract.coordinator_harness import CoordinatorHarness
from tests.redis_server import RedisServer
from tests.support import ROOT, files_under

_HOLD = """
import sys, time
from pathlib import Path
from services.trainer.scratch import work_folder
with work_folder(Path(sys.argv[1]), sys.argv[2]) as work:
    (work / "tokens").write_text("1 2 3")
    print("ready", flush=True)
    time.sleep(60)
"""

_TRAIN = """
import time
from services.trainer import program
from tlm_core.stages import Stage

def slow(context):
    (context.out / "tokens").write_text("1 2 3")
    print("ready", flush=True)
    time.sleep(60)

Stage.load = lambda stage: slow
program.main()
"""


@contextmanager
def running(code: str, *arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """Start a process that runs `code`, and wait until it prints `ready`."""
    command = [sys.executable, "-c", code, *arguments]
    with subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def test_terminated_worker_deletes_its_folder(harness: CoordinatorHarness, redis_server: RedisServer) -> None:
    job_id, scratch = harness.submit(), harness.folder / "scratch"
    submission = harness.until_submitted(harness.coordinator(), job_id)
    own = {
        "REDIS_URL": redis_server.url, "REDIS_PASSWORD": redis_server.password, "SCRATCH": str(scratch),
        "STORAGE": harness.artifacts.root, "DRAIN_SECONDS": "0.1",
    }  # fmt: skip
    environment: Mapping[str, str] = {f"TLM_TRAINER_{key}": value for key, value in own.items()}
    arguments = list(harness.cluster.commands[submission])[3:]
    with running(_TRAIN, *arguments, **environment) as process:
        assert [path.name for path in files_under(scratch / "work")] == ["tokens"]
        process.terminate()
        assert process.wait(30) == 143
    assert list((scratch / "work").iterdir()) == []


def test_next_worker_deletes_only_folders_of_killed_workers(tmp_path: Path) -> None:
    with running(_HOLD, str(tmp_path), "lives"), running(_HOLD, str(tmp_path), "killed") as killed:
        killed.kill()
        killed.wait()
        assert len(list(files_under(tmp_path))) == 2
        with work_folder(tmp_path, "next") as work, work_folder(tmp_path, "beside") as beside:
            left = sorted((tmp_path / "work").iterdir())
            assert [path.name.split("-")[0] for path in left] == ["beside", "lives", "next"]
            assert (left[1] / "tokens").read_text() == "1 2 3"
        assert not work.exists() and not beside.exists()


def test_unused_models_of_the_hub_are_deleted_between_jobs(tmp_path: Path) -> None:
    used, unused = (tmp_path / "hub" / "hub" / f"models--{name}" for name in ("used", "unused"))
    for folder in (used, unused):
        folder.mkdir(parents=True)
    with running(_HOLD, str(tmp_path), "lives") as other:
        os.utime(unused, (0, 0))
        with work_folder(tmp_path, "next"):
            assert unused.exists(), "The other process may read it."
        other.kill()
        other.wait()
    (unused.parent / "version.txt").touch()
    os.utime(unused.parent / "version.txt", (0, 0))
    with work_folder(tmp_path, "next"):
        assert sorted(path.name for path in unused.parent.iterdir()) == ["models--used", "version.txt"]
