"""Temporary working folders below a scratch folder that several processes of a machine share."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tlm_core.artifacts.store import drop_untouched

log = logging.getLogger(__name__)

_DOWNLOAD_SECONDS = 14 * 24 * 3600.0


@contextmanager
def work_folder(scratch: Path, name: str) -> Iterator[Path]:
    """Yield an empty folder, and delete it when the block ends. First delete the folders of killed processes.

    If no other process works in `scratch`, also delete models from the hub that no stage used for 14 days. In
    containers, `hub` in `scratch` is HF_HOME. A process holds a lock on its folder. The system releases the lock when
    the process ends, for any reason.
    """
    root = scratch / "work"
    root.mkdir(parents=True, exist_ok=True)
    with ExitStack() as lock:
        with _locked(root):  # Otherwise another process could delete the new folder before it is locked.
            _sweep(root)
            if not any(root.iterdir()):  # Otherwise another process may read or download a model.
                drop_untouched(scratch / "hub" / "hub", _DOWNLOAD_SECONDS)
            work = root / f"{name}-{uuid.uuid4().hex[:8]}"
            work.mkdir()
            lock.enter_context(_locked(work))
        try:
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _sweep(root: Path) -> None:
    for folder in root.iterdir():
        try:
            with _locked(folder, wait=False):
                log.info("Deleting %s, which a killed process left behind", folder)
                shutil.rmtree(folder, ignore_errors=True)
        except (BlockingIOError, FileNotFoundError, PermissionError):
            continue  # Its process runs, has just deleted it, or belongs to another user.


@contextmanager
def _locked(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """Lock a folder inside the block. If the folder is locked, wait, or raise BlockingIOError if `wait` is False."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
