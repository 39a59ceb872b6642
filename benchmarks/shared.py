"""Common parts of benchmarks: the folders of the checkout and of the real data, folders to write once, processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import remark
from tlm_core.errors import NotFound

ROOT = Path(__file__).resolve().parents[1]


def shared_data() -> Path:
    """Return the folder with `tasks/` and `corpus/`. Raises NotFound if it does not exist."""
    folder = Path(os.environ.get("TLM_SHARED_DATA") or ROOT.parent / "shared" / "data")
    if not (folder / "tasks").is_dir():
        raise NotFound(f"No real data at {folder}. Set TLM_SHARED_DATA to a folder with tasks/ and corpus/.")
    return folder


def write_once(folder: Path, write: Callable[[Path], object]) -> Path:
    """Return `folder`. If it does not exist, let `write` create a temporary folder, and rename it to `folder`."""
    if not folder.exists():
        temporary = folder.with_name(f"{folder.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        temporary.rename(folder)
    return folder


def program(module: str, *arguments: object) -> list[str]:
    """Return the command line of a benchmark module, such as `training.step`."""
    return [sys.executable, "-m", f"benchmarks.{module}", *map(str, arguments)]


def result_of(command: Sequence[str], **options: Any) -> Any:
    """Run a process and return the value in its last line of output, which is JSON. options: see `subprocess.run`."""
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, **options)
    return json.loads(process.stdout.splitlines()[-1])


def run_programs(programs: Sequence[Sequence[str]], environment: Mapping[str, str] | None = None) -> int:
    """Run each program in its own process, also after one failed. Return 1 if a program failed, or else 0."""
    failed = []
    for command in programs:
        name, start = " ".join(command[2:]), time.monotonic()
        if subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode:
            failed.append(name)
        remark(f"{name} took {time.monotonic() - start:.0f} s")
    if failed:
        remark(f"failed: {', '.join(failed)}")
    return 1 if failed else 0
