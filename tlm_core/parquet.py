"""Local Parquet files, read in batches."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow.parquet as pq

BUFFER = 1 << 20


def open_parquet(path: Path) -> pq.ParquetFile:
    """Open a file whose `iter_batches` needs memory for one batch. Raises the errors of pyarrow.

    By default Arrow prefetches every row group and holds all of them until the file is closed. That suits slow remote
    storage; on a local disk it copies the file into memory.
    """
    import pyarrow.parquet as pq

    return pq.ParquetFile(path, pre_buffer=False, buffer_size=BUFFER)
