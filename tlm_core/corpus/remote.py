"""Files behind an address that fsspec understands (`s3://…`, `gs://…`, `https://…`), one on this machine at a time."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tlm_core.artifacts import storage_errors
from tlm_core.corpus.files import Say, format_of
from tlm_core.errors import InvalidRequest, MissingDependency, TLMError

_ADDRESS = re.compile(r"[a-z][a-z0-9+.:-]*://", re.IGNORECASE)


def is_address(source: str) -> bool:
    """Whether `source` is an address, not a path."""
    return bool(_ADDRESS.match(source))


@contextmanager
def _reached(what: str) -> Iterator[None]:
    """Translate what a file system raises: where waiting does not help, InvalidRequest."""
    try:
        with storage_errors(what):
            yield
    except TLMError as error:
        if isinstance(error.__cause__, PermissionError):
            raise InvalidRequest(
                f"{what}: no right to read it ({error.__cause__}); check address and rights"
            ) from error
        raise
    except Exception as error:  # each protocol's package has its own: no credentials, a refusal by HTTP
        raise InvalidRequest(f"{what}: {type(error).__name__}: {error}; check address and rights") from error


class Remote(NamedTuple):
    """The files to read of an address."""

    fs: Any
    paths: list[str]

    def files(self) -> Iterator[Path]:
        """Each file, fetched when it is asked for and removed at the next one. Raises as `find_remote`."""
        for path in self.paths:
            with tempfile.TemporaryDirectory(prefix="tlm-source-") as folder:
                local = Path(folder) / Path(path).name
                with _reached(f"fetching {path}"):
                    self.fs.get_file(path, str(local))
                yield local


def find_remote(address: str, say: Say) -> Remote:
    """What is to be read of a file or folder at `address`, by name.

    Raises InvalidRequest if nothing readable is there or it may not be read, MissingDependency if its protocol needs a
    package that is not installed, NotFound, StorageUnavailable.
    """
    import fsspec

    try:
        fs, path = fsspec.core.url_to_fs(address)
    except ImportError as error:
        raise MissingDependency(f"reading {address} needs a package that is not installed: {error}") from error
    except ValueError as error:
        raise InvalidRequest(f"'{address}' is no address that can be read: {error}; check its beginning") from error
    with _reached(f"looking into {address}"):
        found = [path] if fs.isfile(path) else sorted(fs.find(path))
    files = [name for name in found if format_of(Path(name))]
    if not files:
        raise InvalidRequest(f"at '{address}' there is no jsonl, csv, tsv, parquet, txt, md or rst file")
    if len(files) < len(found):
        say(f"{address}: left out {len(found) - len(files)} files of other kinds")
    return Remote(fs, files)
