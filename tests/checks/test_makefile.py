"""`make setup` states its size and its time, and recovers from an interrupted set-up."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support import ROOT, skip_or_fail


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with the Makefile and a Python that creates environments without pip and then fails.

    Debian's Python does so without python3-venv. Each call appends a line to `calls`.
    """
    if shutil.which("make") is None:
        skip_or_fail("make is missing")
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "requirements-dev.txt").touch()
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$@" >> calls\npython3 -m venv --without-pip .venv\nexit 1\n', encoding="utf-8")
    python.chmod(0o755)
    return tmp_path


def test_setup_recreates_an_environment_without_pip(folder: Path) -> None:
    for _ in range(2):
        result = subprocess.run(
            ["make", "setup", "PYTHON=./python"], cwd=folder, capture_output=True, text=True, check=False
        )
        assert result.returncode != 0
        assert "No module named pip" not in result.stdout + result.stderr
    assert (folder / "calls").read_text(encoding="utf-8") == "-m venv .venv\n" * 2


def test_demo_states_the_download_before_it_starts(folder: Path) -> None:
    command = ["make", "-n", "--no-print-directory", "demo"]  # make in make prints folders
    planned = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout
    first = planned.splitlines()[0]
    assert first.startswith("echo") and "downloads 3.3 GB" in first and "tlm_client.demo" in planned


def test_setup_prints_its_time_if_it_did_work(folder: Path) -> None:
    programs = folder / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name in ("python", "uv"):
        (programs / name).write_text("#!/bin/sh\nsleep 1\n", encoding="utf-8")
        (programs / name).chmod(0o755)
    command = ["make", "--no-print-directory", "setup"]
    first, second = (
        subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout for _ in range(2)
    )
    assert re.search(r"^Set-up took (?!0:00)\d+:\d\d \(minutes:seconds\)\.$", first, re.MULTILINE)
    assert "took" not in second


@pytest.mark.parametrize("code", [0, 3])
def test_setup_prints_its_steps_and_fails_with_the_installer(folder: Path, code: int) -> None:
    programs = folder / ".venv" / "bin"
    programs.mkdir(parents=True)
    uv = f"#!/bin/sh\necho 'Downloading torch' >&2\necho ' + torch==2.0' >&2\nexit {code}\n"
    for name, script in (("python", "#!/bin/sh\n"), ("uv", uv)):
        (programs / name).write_text(script, encoding="utf-8")
        (programs / name).chmod(0o755)
    result = subprocess.run(["make", "setup"], cwd=folder, capture_output=True, text=True, check=False)
    assert (result.returncode != 0) == (code != 0)
    assert "Set-up, step 2 of 3: download" in result.stdout and "Downloading torch" in result.stdout
    assert " + torch" not in result.stdout
