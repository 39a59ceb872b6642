"""Fetch files from addresses of fsspec (`s3://…`, `gs://…`, `https://…`)."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tlm_core.artifacts import storage_errors, temporary_folder
from tlm_core.corpus.files import SUPPORTED, Notify, format_of
from tlm_core.errors import InvalidRequest, MissingDependency, TLMError
from tlm_core.wording import counted

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_ADDRESS = re.compile(r"[a-z][a-z0-9+.:-]*://", re.IGNORECASE)


def is_address(source: str) -> bool:
    """Return whether `source` is an address, not a path."""
    return bool(_ADDRESS.match(source))


@contextmanager
def _remote_errors(action: str) -> Iterator[None]:
    """Translate the errors of a file system. Errors that a retry does not solve become InvalidRequest."""
    try:
        with storage_errors(action):
            yield
    except TLMError as error:
        if isinstance(error.__cause__, PermissionError):
            message = f"Failed {action}: access is denied ({error.__cause__}). Check the address and its permissions."
            raise InvalidRequest(message) from error
        raise
    except Exception as error:  # every protocol has its own exceptions
        message = f"Failed {action}: {type(error).__name__}: {error}. Check the address and its permissions."
        raise InvalidRequest(message) from error


class RemoteFile(NamedTuple):
    """A file at an address. scratch: folder for local copies; None: the temporary folder of the system."""

    fs: AbstractFileSystem
    path: str
    scratch: Path | None

    @contextmanager
    def local(self) -> Iterator[Path]:
        """Yield the path of a local copy, which is deleted at the end. Raises the errors of `list_remote`."""
        from tlm_core.pulse import TransferPulse

        with temporary_folder(self.scratch or Path(tempfile.gettempdir()), f"fetching {self.path}") as folder:
            copy = folder / Path(self.path).name
            with _remote_errors(f"fetching {self.path}"):
                self.fs.get_file(self.path, str(copy), callback=TransferPulse())
            yield copy


def list_remote(address: str, note: Notify, scratch: Path | None) -> list[RemoteFile]:
    """Return the readable files at `address`, a file or a folder, sorted by name.

    Raises InvalidRequest if there is no readable file or access is denied, MissingDependency if the protocol needs a
    package that is not installed, NotFound, StorageUnavailable.
    """
    import fsspec

    try:
        fs, path = fsspec.core.url_to_fs(address)
    except ImportError as error:
        raise MissingDependency(f"Reading {address} needs a package that is not installed: {error}") from error
    except ValueError as error:
        raise InvalidRequest(f"Invalid address '{address}': {error}. Use a protocol such as s3 or https.") from error
    with _remote_errors(f"listing {address}"):
        paths = [path] if fs.isfile(path) else sorted(fs.find(path))
    files = [name for name in paths if format_of(Path(name))]
    if not files:
        raise InvalidRequest(f"'{address}' contains no file of a supported type. {SUPPORTED}")
    if len(files) < len(paths):
        note(f"{address}: skipped {counted(len(paths) - len(files), 'file')} of other types")
    return [RemoteFile(fs, name, scratch) for name in files]
