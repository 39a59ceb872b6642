"""The mark by which the service recognizes its storage. Without it, an empty mount point looks like a new storage."""

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


class StorageMark:
    """The file MARK in the root of a storage. The first write creates it.

    is_new: returns whether nothing was ever written to the storage. A storage with folders but without a mark comes
    from an earlier release; `check` adds the mark.
    """

    def __init__(self, fs: AbstractFileSystem, root: str, is_new: Callable[[], bool]) -> None:
        self._fs = fs
        self._root = root
        self._is_new = is_new

    def check(self, *, create: bool = False) -> None:
        """Raise StorageUnavailable if the root is not this service's storage. create: mark a new storage."""
        if isinstance(self._fs, LocalFileSystem) and Path(self._root, MARK).is_file():
            return  # Each write runs this check, so it avoids listing the root, which has many entries.
        try:
            entries = self._fs.ls(self._root, detail=True, refresh=True)
        except FileNotFoundError:
            entries = []
        if any(str(entry["name"]).endswith(f"/{MARK}") for entry in entries):
            return
        has_folders = any(entry["type"] == "directory" for entry in entries)
        if not has_folders and not self._is_new():
            raise StorageUnavailable(
                f"{self._root} is not the storage of this service: the file {MARK} is missing. Mount the storage there "
                "or correct the setting 'storage'. If the content of the storage is lost, create an empty file "
                f"{MARK} there."
            )
        if has_folders or create:
            if isinstance(self._fs, LocalFileSystem):
                Path(self._root).mkdir(parents=True, exist_ok=True)
            body = b"The service recognizes its storage by this file.\n"
            self._fs.pipe_file(f"{self._root}/{MARK}", body, **deadline(self._fs, len(body)))
