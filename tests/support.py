"""Helpers that several tests share: real data, skips, and waiting."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pyarrow.parquet as pq
import pytest

from services.common.metrics import REGISTRY
from tlm_core.corpus.passages import Passage

ROOT = Path(__file__).resolve().parent.parent


def skip_or_fail(reason: str) -> NoReturn:
    """Skip the test with a reason. With CI=true, fail instead, since a skip would hide a gap."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"CI must not skip this test: {reason}")
    pytest.skip(reason)


def shared_data() -> Path:
    """Return the folder with the real tasks and corpus: TLM_SHARED_DATA, else ../shared/data beside the checkout."""
    folder = Path(os.environ.get("TLM_SHARED_DATA") or ROOT.parent / "shared" / "data")
    if not (folder / "tasks").is_dir():
        skip_or_fail(f"no real data at {folder}; set TLM_SHARED_DATA to a folder with tasks/ and corpus/")
    return folder


@contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """Limit the files of this process to `size` bytes; longer writes fail as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def files_under(folder: Path) -> Iterator[Path]:
    """Yield the files below `folder`. Unlike `rglob`, it allows a service to delete folders meanwhile."""
    for parent, _, names in os.walk(folder):
        yield from (Path(parent, name) for name in names)


def counted(name: str, **labels: str) -> float:
    """Return the value of a metric of this process, or 0. labels: its labels."""
    return REGISTRY.get_sample_value(name, labels) or 0.0


def wait_for(condition: Callable[[], Any], seconds: float = 30.0) -> Any:
    """Call `condition` until it returns a true value, and return that value. Fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"the condition was false for {seconds:g} s"
        time.sleep(0.01)
    return value


def passages_in(folder: Path) -> list[Passage]:
    """Return the passages of a corpus folder in their order."""
    files = sorted(folder.glob("passages-*.parquet"))
    return [Passage(**row) for path in files for row in pq.read_table(path, columns=list(Passage._fields)).to_pylist()]
