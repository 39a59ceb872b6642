"""The passages of a corpus version in the storage, and the records of its load."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from services.retriever.bulk import LoadCursor
from services.retriever.indexes import CorpusKey, LoadingIndex
from tlm_core.artifacts.store import ArtifactStore, deadline
from tlm_core.corpus.passages import Passage
from tlm_core.errors import CorruptArtifact, NotFound

_COLUMNS = list(Passage._fields)
_BATCH = 2_000
_BUFFER = 1 << 20


class CorpusFiles:
    """The Parquet files in the storage folder of a corpus version. Without files, the constructor raises NotFound.

    The methods raise StorageUnavailable, and CorruptArtifact if a file is incomplete or lacks a field of `Passage`.
    """

    def __init__(self, store: ArtifactStore, folder: str) -> None:
        self._store = store
        with store.errors(f"listing {folder}"):
            self._paths = sorted(store.fs.glob(store.path(folder, "*.parquet")))
            if not self._paths:
                raise NotFound(f"No Parquet files in {folder}. Upload the corpus again.")

    def count(self) -> int:
        """Return the number of passages. Reads only the metadata of the files."""
        total = 0
        for path in self._paths:
            with self._open(path) as file:
                total += int(file.metadata.num_rows)
        return total

    def batches(self, skip: int = 0) -> Iterator[list[Passage]]:
        """Yield lists of up to 2,000 passages, in order. Omit the first `skip` passages of the corpus."""
        for path in self._paths:
            with self._open(path) as file:
                for group in range(file.metadata.num_row_groups):
                    rows = file.metadata.row_group(group).num_rows
                    if rows <= skip:
                        skip -= rows
                        continue
                    # A call with all row groups would open all of them, with their buffers, at once.
                    for batch in file.iter_batches(_BATCH, row_groups=[group], columns=_COLUMNS):
                        remaining, skip = batch.slice(skip), max(0, skip - batch.num_rows)
                        columns = [remaining[name].to_pylist() for name in _COLUMNS]
                        yield [Passage(*row) for row in zip(*columns, strict=True)]

    @contextmanager
    def _open(self, path: str) -> Iterator[pq.ParquetFile]:
        with self._store.errors(f"reading {path}"), self._store.fs.open(path, "rb") as handle:
            try:
                # With a buffer, pyarrow reads row groups of any size in small blocks.
                file = pq.ParquetFile(handle, buffer_size=_BUFFER)
                missing = [name for name in _COLUMNS if name not in file.schema_arrow.names]
                if missing:
                    raise CorruptArtifact(f"{path} lacks the columns {missing}. Upload the corpus again.")
                yield file
            except pa.ArrowInvalid as error:
                message = f"{path} is not a complete Parquet file: {error}. Upload the corpus again."
                raise CorruptArtifact(message) from error


class _Source(BaseModel):
    folder: str
    language: str


class _Progress(BaseModel):
    index: str
    cursor: LoadCursor


class LoadRecords:
    """Stores source and progress of loads in `TENANT/indexes/NAME/VERSION.json` and `VERSION.progress.json`.

    Raises NotFound, StorageFull, StorageUnavailable.
    """

    def __init__(self, store: ArtifactStore) -> None:
        self._store = store

    def save_source(self, key: CorpusKey, folder: str, language: str) -> None:
        """Record folder and language of the passages of `key`, so that a lost index can be built again."""
        self._write(self._path(key, ".json"), _Source(folder=folder, language=language))

    def source(self, key: CorpusKey) -> tuple[str, str]:
        """Return (folder, language) of the passages of `key`. Raises NotFound if `key` was never loaded."""
        body = self._read(self._path(key, ".json"))
        if body is None:
            raise NotFound(f"The {key}, was never loaded. Upload the corpus.")
        source = _Source.model_validate_json(body)
        return source.folder, source.language

    def save_progress(self, key: CorpusKey, index: LoadingIndex) -> None:
        """Record the progress of the load of `index`."""
        self._write(self._path(key, ".progress.json"), _Progress(index=index.identity, cursor=index.cursor))

    def progress(self, key: CorpusKey, identity: str | None = None) -> LoadCursor:
        """Return the recorded progress of the load of `key`, or the start of the corpus if no progress is recorded.

        identity: id of an index. If set, ignore the progress of other indexes, such as deleted indexes of `key`.
        """
        body = self._read(self._path(key, ".progress.json"))
        if not body:
            return LoadCursor()
        progress = _Progress.model_validate_json(body)
        return progress.cursor if identity is None or (identity and progress.index == identity) else LoadCursor()

    def delete(self, key: CorpusKey) -> None:
        """Delete the records of `key`, if there are any."""
        with self._store.errors(f"deleting the records of the corpus {key.name}@{key.version}"):
            for ending in (".json", ".progress.json"):
                with suppress(FileNotFoundError):
                    self._store.fs.rm_file(self._path(key, ending))

    def _path(self, key: CorpusKey, ending: str) -> str:
        tenant, name, version = (quote(part, safe="") for part in key)
        return self._store.path(tenant, "indexes", name, f"{version}{ending}")

    def _read(self, path: str) -> bytes | None:
        try:
            with self._store.errors(f"reading {path}"):
                return bytes(self._store.fs.cat_file(path))
        except NotFound:
            return None

    def _write(self, path: str, record: BaseModel) -> None:
        body = record.model_dump_json().encode()
        with self._store.errors(f"writing {path}", writes=True):
            self._store.fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
            if not self._store.local:  # object stores write a file completely or not at all
                self._store.fs.pipe_file(path, body, **deadline(self._store.fs, len(body)))
                return
            partial = f"{path}.{uuid.uuid4().hex}.part"
            Path(partial).write_bytes(body)
            os.replace(partial, path)
