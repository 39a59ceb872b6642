"""Reading a corpus version's passages from the storage, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tlm_core.artifacts import ArtifactStore, storage_errors
from tlm_core.corpus.passages import Passage
from tlm_core.errors import CorruptArtifact, NotFound

_COLUMNS = ["id", "text", "source"]
_BATCH = 2_000


class CorpusFiles:
    """The Parquet files of one corpus version below the storage root.

    Raises NotFound if there are none, CorruptArtifact if one is no Parquet file of passages, StorageUnavailable.
    """

    def __init__(self, store: ArtifactStore, folder: str) -> None:
        self._store = store
        with storage_errors(f"listing {folder}"):
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

    def batches(self) -> Iterator[list[Passage]]:
        """All passages in order."""
        for path in self._paths:
            with self._parquet(path) as file:
                for batch in file.iter_batches(_BATCH, columns=_COLUMNS):
                    columns = [batch[name].to_pylist() for name in _COLUMNS]
                    yield [Passage(*row) for row in zip(*columns, strict=True)]

    @contextmanager
    def _parquet(self, path: str) -> Iterator[Any]:
        with storage_errors(f"reading {path}"), self._store.fs.open(path, "rb") as handle:
            try:
                file = pq.ParquetFile(handle)
            except pa.ArrowInvalid as error:
                raise CorruptArtifact(f"{path} is no whole Parquet file ({error}); upload the corpus again") from error
            missing = [name for name in _COLUMNS if name not in file.schema_arrow.names]
            if missing:
                raise CorruptArtifact(f"{path} lacks the columns {missing}; passages have {_COLUMNS}")
            yield file
