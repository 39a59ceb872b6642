"""What several tests share: real data, loud skips."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest

ROOT = Path(__file__).resolve().parent.parent


def skip_or_fail(reason: str) -> NoReturn:
    """Skip, saying why; where CI=true a skip would hide a gap, so there it is a failure."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"would be skipped elsewhere, but CI must run it: {reason}")
    pytest.skip(reason)


def shared_data() -> Path:
    """Folder with the real tasks and corpus: TLM_SHARED_DATA, else ../shared/data beside the checkout."""
    folder = Path(os.environ.get("TLM_SHARED_DATA") or ROOT.parent / "shared" / "data")
    if not (folder / "tasks").is_dir():
        skip_or_fail(f"no real data at {folder}; set TLM_SHARED_DATA to a folder with tasks/ and corpus/")
    return folder


@contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """Writes beyond `size` bytes of a file fail as on a full disk, in this process and while it lasts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def files_under(folder: Path) -> Iterator[Path]:
    """Files below `folder` while a service works in it: unlike `rglob`, it bears that folders vanish underway."""
    for place, _, names in os.walk(folder):
        yield from (Path(place, name) for name in names)


def wait_for(look: Callable[[], Any], seconds: float = 10.0) -> Any:
    """What `look` answers, once that is something. It is asked again and again for so long."""
    deadline = time.monotonic() + seconds
    while not (answer := look()):
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.01)
    return answer
