"""Folders for work under way, below a scratch folder that the processes of a machine may share."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

log = logging.getLogger(__name__)


@contextmanager
def work_folder(scratch: Path, name: str) -> Iterator[Path]:
    """A new empty folder, gone afterwards. First those go that processes which were killed have left.

    A lock on each folder says that its process lives; the system takes the lock away however the process ends.
    """
    root = scratch / "work"
    root.mkdir(parents=True, exist_ok=True)
    with ExitStack() as lock:
        with _locked(root):  # or a folder that is made, but not locked yet, would look like one that was left
            _sweep(root)
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
                log.info("%s was left by a process that was killed, and is removed", folder)
                shutil.rmtree(folder, ignore_errors=True)
        except (BlockingIOError, FileNotFoundError, PermissionError):
            continue  # its process lives, has just removed it, or is another user's


@contextmanager
def _locked(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """Raises BlockingIOError if another holds the lock and it is not to be waited for."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
