"""Local Parquet files, read in batches."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow.parquet as pq

BUFFER = 1 << 20


def open_parquet(path: Path) -> pq.ParquetFile:
    """Return an open Parquet file. Its `iter_batches` holds only one batch in memory. Raises the errors of pyarrow.

    By default Arrow prefetches every row group and holds all of them until the file is closed. Prefetching helps with
    slow remote storage, but it copies the whole file into memory.
    """
    import pyarrow.parquet as pq

    return pq.ParquetFile(path, pre_buffer=False, buffer_size=BUFFER)
