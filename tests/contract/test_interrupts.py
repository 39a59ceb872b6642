"""Ctrl-C in the `tlm` command with a real gateway: the command ends at once and leaves no partial state."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.contract.gateway import TOKEN, TRAIN, Gateway, T, add_dataset
from tests.contract.job_results import complete, make_export, publish
from tests.factories import make_resolved, make_spec
from tests.support import ROOT, wait_for
from tlm_core.jobs.states import State

TLM = (sys.executable, "-m", "tlm_client")
SIZE = 120_000_000


@pytest.fixture
def url(gateway: Gateway) -> Iterator[str]:
    with gateway.served() as address:
        yield address


def tlm(url: str, *arguments: str) -> list[str]:
    return [*TLM, "--url", url, "--token", TOKEN, *arguments]


def _enable_ctrl_c() -> None:
    """Undo a shell's setting that background commands and their children ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def interrupted(command: list[str], moment: Callable[[], bool]) -> Iterator[str]:
    """Send Ctrl-C at `moment` and yield stderr. The command must exit with 130 and without a traceback."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=_enable_ctrl_c,
    )
    deadline = time.monotonic() + 60
    try:
        while not moment():
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.001)
        process.send_signal(signal.SIGINT)
        stderr = process.communicate(timeout=30)[1]
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    yield stderr


def test_interrupted_download_can_be_resumed(gateway: Gateway, url: str, tmp_path: Path) -> None:
    jobs, artifacts = gateway.parts.jobs, gateway.parts.artifacts
    jobs.submit(T, make_spec(), make_resolved())
    job = jobs.claim("a", 60)
    assert job is not None
    complete(jobs, artifacts, job, gateway.root, up_to="evaluate")
    export, out = gateway.root / "files" / "big", tmp_path / "out"
    make_export(export, size=SIZE)
    digest = hashlib.sha256((export / "model" / "weights.bin").read_bytes()).hexdigest()
    publish(jobs, artifacts, job, "export", export)

    def partial_bytes() -> int:
        return sum(part.stat().st_size for part in out.rglob("weights.bin.*.part"))

    command, before = tlm(url, "download", job.id, str(out)), 0
    for _ in range(2):
        with interrupted(command, lambda before=before: partial_bytes() > before):  # type: ignore[misc]
            assert before < partial_bytes() < SIZE
            before = partial_bytes()
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ})
    assert done.returncode == 0, done.stderr
    assert hashlib.sha256((out / "model" / "weights.bin").read_bytes()).hexdigest() == digest
    assert not list(out.rglob("*.part"))


def test_interrupted_upload_leaves_no_file_and_can_be_repeated(gateway: Gateway, url: str, tmp_path: Path) -> None:
    rows = tmp_path / "mine" / "train.csv"
    rows.parent.mkdir()
    rows.write_bytes(b"text,label\n" + b"x" * SIZE)
    command = tlm(url, "dataset", "add", "toy", str(rows))

    def temporary_files() -> list[str]:
        return [name for name in gateway.leftovers() if name.startswith(("scratch", "storage"))]

    with interrupted(command, lambda: bool(temporary_files())):
        wait_for(lambda: not temporary_files(), 20)
    assert gateway.parts.catalog.datasets(T) == ([], False)
    rows.write_text(TRAIN, encoding="utf-8")
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_job_stays_when_its_watcher_is_interrupted(gateway: Gateway, url: str) -> None:
    add_dataset(gateway, "toy", {"train": TRAIN})

    def waiting() -> bool:
        return bool(gateway.parts.jobs.list_jobs(T, limit=1)[0])

    with interrupted(tlm(url, "submit", "--dataset", "toy", "--watch"), waiting) as stderr:
        ((job,), _) = gateway.parts.jobs.list_jobs(T, limit=2)
        assert job.state is State.QUEUED
        assert not stderr or job.id in stderr
