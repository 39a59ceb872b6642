"""The file by which the service recognizes its storage. Otherwise an empty mount point would look like a new storage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from tlm_core.errors import StorageUnavailable

MARK = ".tlm-storage"
WRITE_SECONDS = 100.0  # time limit of a write to a remote storage, plus one second for each MiB


def deadline(fs: AbstractFileSystem, size: int) -> dict[str, float]:
    """Return the option that limits the time of a write of `size` bytes to a remote storage.

    The timeouts of storage clients do not limit the wait for the server's permission to send.
    """
    return {"timeout": WRITE_SECONDS + size / 2**20} if fs.async_impl else {}


def check_mark(fs: AbstractFileSystem, root: str, is_new: Callable[[], bool], *, create: bool) -> None:
    """Raise StorageUnavailable if `root` is not the service's storage, which has the file MARK.

    is_new: returns whether nothing was ever written to the storage. create: mark a new storage.
    A storage with folders but without a mark comes from an earlier release, so the function marks this storage.
    """
    if isinstance(fs, LocalFileSystem) and Path(root, MARK).is_file():
        return  # Each write runs this check, so it avoids listing the root, which has many entries.
    try:
        entries = fs.ls(root, detail=True, refresh=True)
    except FileNotFoundError:
        entries = []
    if any(str(entry["name"]).endswith(f"/{MARK}") for entry in entries):
        return
    has_folders = any(entry["type"] == "directory" for entry in entries)
    if not has_folders and not is_new():
        raise StorageUnavailable(
            f"{root} is not the storage of this service: the file {MARK} is missing. Mount the storage there or "
            "correct the setting 'storage'. If the content of the storage is lost, create an empty file "
            f"{MARK} there."
        )
    if has_folders or create:
        if isinstance(fs, LocalFileSystem):
            Path(root).mkdir(parents=True, exist_ok=True)
        body = b"The service recognizes its storage by this file.\n"
        fs.pipe_file(f"{root}/{MARK}", body, **deadline(fs, len(body)))
