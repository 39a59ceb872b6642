"""Reading a corpus version's passages from the storage, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tlm_core.artifacts import ArtifactStore
from tlm_core.corpus.passages import Passage
from tlm_core.errors import CorruptArtifact, NotFound

_COLUMNS = ["id", "text", "source"]
_BATCH = 2_000
_BUFFER = 1 << 20


class CorpusFiles:
    """The Parquet files of one corpus version below the storage root.

    Raises NotFound if there are none, CorruptArtifact if one is no Parquet file of passages, StorageUnavailable.
    """

    def __init__(self, store: ArtifactStore, folder: str) -> None:
        self._store = store
        with store.errors(f"listing {folder}"):
            self._paths = sorted(store.fs.glob(store.path(folder, "*.parquet")))
            if not self._paths:
                raise NotFound(f"there are no Parquet files in {folder}; upload the corpus again")

    def count(self) -> int:
        """Passages in all files, as their footers say."""
        total = 0
        for path in self._paths:
            with self._parquet(path) as file:
                total += int(file.metadata.num_rows)
        return total

    def batches(self, skip: int = 0) -> Iterator[list[Passage]]:
        """All passages in order but the first `skip`; what is skipped is not read."""
        for path in self._paths:
            with self._parquet(path) as file:
                groups: list[int] = []
                for number in range(file.metadata.num_row_groups):
                    rows = file.metadata.row_group(number).num_rows
                    if groups or skip < rows:
                        groups.append(number)
                    else:
                        skip -= rows
                # Asked for together, row groups would all be open, with their buffers, at once.
                for number in groups:
                    for batch in file.iter_batches(_BATCH, row_groups=[number], columns=_COLUMNS):
                        kept, skip = batch.slice(skip), max(0, skip - batch.num_rows)
                        columns = [kept[name].to_pylist() for name in _COLUMNS]
                        yield [Passage(*row) for row in zip(*columns, strict=True)]

    @contextmanager
    def _parquet(self, path: str) -> Iterator[Any]:
        with self._store.errors(f"reading {path}"), self._store.fs.open(path, "rb") as handle:
            try:
                # Buffered, so that a row group of any size is read by pieces.
                file = pq.ParquetFile(handle, buffer_size=_BUFFER)
                missing = [name for name in _COLUMNS if name not in file.schema_arrow.names]
                if missing:
                    raise CorruptArtifact(f"{path} lacks the columns {missing}; passages have {_COLUMNS}")
                yield file
            except pa.ArrowInvalid as error:
                raise CorruptArtifact(f"{path} is no whole Parquet file ({error}); upload the corpus again") from error
