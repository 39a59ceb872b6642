"""Files behind an address that fsspec understands (`s3://…`, `gs://…`, `https://…`), one on this machine at a time."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tlm_core.artifacts import storage_errors
from tlm_core.corpus.files import Say, format_of
from tlm_core.errors import InvalidRequest, MissingDependency

_ADDRESS = re.compile(r"[a-z][a-z0-9+.:-]*://", re.IGNORECASE)


def is_address(source: str) -> bool:
    """Whether `source` is an address, not a path."""
    return bool(_ADDRESS.match(source))


class Remote(NamedTuple):
    """The files to read of an address."""

    fs: Any
    paths: list[str]

    def files(self) -> Iterator[Path]:
        """Each file, fetched when it is asked for and removed at the next one. Raises StorageUnavailable."""
        for path in self.paths:
            with tempfile.TemporaryDirectory(prefix="tlm-source-") as folder:
                local = Path(folder) / Path(path).name
                with storage_errors(f"fetching {path}"):
                    self.fs.get_file(path, str(local))
                yield local


def find_remote(address: str, say: Say) -> Remote:
    """What is to be read of a file or folder at `address`, by name.

    Raises InvalidRequest if nothing readable is there, MissingDependency if its protocol needs a package that is not
    installed, StorageUnavailable.
    """
    import fsspec

    try:
        fs, path = fsspec.core.url_to_fs(address)
    except ImportError as error:
        raise MissingDependency(f"reading {address} needs a package that is not installed: {error}") from error
    except ValueError as error:
        raise InvalidRequest(f"'{address}' is no address that can be read: {error}; check its beginning") from error
    with storage_errors(f"looking into {address}"):
        found = [path] if fs.isfile(path) else sorted(fs.find(path))
    files = [name for name in found if format_of(Path(name))]
    if not files:
        raise InvalidRequest(f"at '{address}' there is no jsonl, csv, tsv, parquet, txt, md or rst file")
    if len(files) < len(found):
        say(f"{address}: left out {len(found) - len(files)} files of other kinds")
    return Remote(fs, files)
