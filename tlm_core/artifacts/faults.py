"""Translate the errors of a file system into the project's errors, and write to local folders."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from tlm_core.errors import NotFound, StorageFull, StorageUnavailable

# The disk is full, the quota is used up, or the file exceeds a limit of the file system or the process.
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# These numbers mean a fault of the file system, not of a connection.
OF_STORAGE = frozenset((*NO_SPACE, errno.EACCES, errno.EROFS, errno.EIO))


@contextmanager
def storage_errors(action: str) -> Iterator[None]:
    """Raise NotFound, StorageFull or StorageUnavailable for an OSError inside the block.

    action: follows "Failed" in the message, such as "writing the dataset".
    """
    try:
        yield
    except FileNotFoundError as error:
        raise NotFound(f"Failed {action}: {error.filename or error} does not exist.") from error
    except OSError as error:
        if error.errno in NO_SPACE:
            reason = error.strerror or error
            raise StorageFull(
                f"Failed {action}: no space left on the storage ({reason}). Free some space and try again."
            ) from error
        raise StorageUnavailable(f"Failed {action}: {error}. Check the disk or the storage, and try again.") from error


@contextmanager
def temporary_folder(parent: Path, action: str) -> Iterator[Path]:
    """Create a new folder under `parent`, and delete it at exit. Raises StorageFull or StorageUnavailable.

    action: what the caller does, for error messages.
    """
    folder = parent / uuid.uuid4().hex
    with storage_errors(action):
        folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def synced(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing. It appears at `path`, complete and synced, when the block ends."""
    partial = path.with_suffix(".part")
    with open(partial, "wb") as handle:
        yield handle
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(partial, path)
