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

from tlm_core.errors import NotFound, StorageFull, StorageUnavailable, TLMError

# The disk is full, the quota is used up, or the file exceeds a limit of the file system or the process.
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Error numbers of a fault of the file system. Faults of a connection have other numbers.
OF_STORAGE = frozenset((*NO_SPACE, errno.EACCES, errno.EROFS, errno.EIO))


def storage_fault(error: BaseException | None) -> OSError | None:
    """Return the first OSError of a file system among `error` and its chain of causes and contexts, or None."""
    outermost = error
    while error is not None:
        # A policy of the kernel can deny a connection. The PermissionError of a denied connection names no file.
        is_denied = error is not outermost and isinstance(error, PermissionError) and error.filename is None
        if isinstance(error, OSError) and error.errno in OF_STORAGE and not is_denied:
            return error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None


@contextmanager
def storage_errors(action: str) -> Iterator[None]:
    """Translate each OSError inside the block into NotFound, StorageFull or StorageUnavailable.

    An error of a library is translated too, if a fault of the file system caused the error. action: follows "Failed"
    in the message, such as "writing the dataset".
    """
    try:
        yield
    except FileNotFoundError as error:
        raise NotFound(f"Failed {action}: {error.filename or error} does not exist. Check the path.") from error
    except TLMError:
        raise
    except Exception as error:
        fault = storage_fault(error) or error
        if not isinstance(fault, OSError):
            raise
        raise storage_error(action, fault) from error


def storage_error(action: str, fault: OSError) -> StorageFull | StorageUnavailable:
    """Return StorageFull if `fault.errno` is in NO_SPACE, else StorageUnavailable. action: see `storage_errors`."""
    if fault.errno in NO_SPACE:
        reason = fault.strerror or fault
        return StorageFull(f"Failed {action}: no space left on the storage ({reason}). Free some space and try again.")
    return StorageUnavailable(f"Failed {action}: {fault}. Check the disk or the storage, and try again.")


@contextmanager
def temporary_folder(parent: Path, action: str) -> Iterator[Path]:
    """Yield a new folder under `parent`, and delete it when the block ends. Raises StorageFull or StorageUnavailable.

    action: see `storage_errors`.
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
    """Yield a file to write. If the block raises no error, sync the file to disk, then rename it to `path`."""
    partial = path.with_suffix(".part")
    with open(partial, "wb") as handle:
        yield handle
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(partial, path)
