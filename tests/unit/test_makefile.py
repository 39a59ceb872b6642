"""The Makefile's set-up goes on where an earlier one broke off."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support import ROOT, skip_or_fail


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the Makefile, nothing to install, and a Python that makes environments without pip, and fails.

    As Debian's does where python3-venv is missing. It leaves a line in `calls` each time.
    """
    if shutil.which("make") is None:
        skip_or_fail("no make")
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "requirements-dev.txt").touch()
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$@" >> calls\npython3 -m venv --without-pip .venv\nexit 1\n', encoding="utf-8")
    python.chmod(0o755)
    return tmp_path


def test_an_environment_without_pip_is_made_again(folder: Path) -> None:
    for _ in range(2):
        done = subprocess.run(
            ["make", "setup", "PYTHON=./python"], cwd=folder, capture_output=True, text=True, check=False
        )
        assert done.returncode != 0
        assert "No module named pip" not in done.stdout + done.stderr
    assert (folder / "calls").read_text(encoding="utf-8") == "-m venv .venv\n" * 2
