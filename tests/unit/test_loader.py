"""The loader's watch over its own progress."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest

from services.loader import __main__ as loader
from services.loader.__main__ import watch
from tlm_core.pulse import PULSE


@pytest.fixture
def waiting() -> Iterator[threading.Thread]:
    """A thread that runs until the test ends."""
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    yield thread
    end.set()
    thread.join()


def test_load_that_hangs_ends_the_process(waiting: threading.Thread, tmp_path: Path) -> None:
    heartbeat = tmp_path / "heartbeat"
    assert not watch(waiting, threading.Event(), heartbeat, beat=0.01, hang=0.1)
    assert heartbeat.exists()


def test_load_that_advances_is_watched_until_the_stop(waiting: threading.Thread, tmp_path: Path) -> None:
    stop, results = threading.Event(), list[bool]()
    watcher = threading.Thread(target=lambda: results.append(watch(waiting, stop, tmp_path / "heartbeat", 0.01, 0.5)))
    watcher.start()
    for _ in range(20):
        PULSE.advance()
        time.sleep(0.05)
    stop.set()
    watcher.join()
    assert results == [True]


def test_start_deletes_files_and_downloads_of_an_earlier_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TLM_LOADER_STORAGE", str(tmp_path / "storage"))
    monkeypatch.setenv("TLM_LOADER_SCRATCH", str(tmp_path))
    stop = threading.Event()
    stop.set()
    monkeypatch.setattr(loader, "stopped_by_signals", lambda: stop)
    monkeypatch.setattr(loader, "set_up_logging", Mock())
    monkeypatch.setattr(loader, "LoadWorker", Mock())
    for name in ("work", "hub", "near"):
        (tmp_path / name).mkdir()
    loader.main()
    assert [path.name for path in tmp_path.iterdir()] == ["near"]
