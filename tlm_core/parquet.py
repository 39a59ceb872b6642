"""Parquet files on this machine's disk, read piece by piece."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow.parquet as pq

BUFFER = 1 << 20


def open_parquet(path: Path) -> pq.ParquetFile:
    """A file whose `iter_batches` takes memory by the batch, however large the file is. Raises as pyarrow does.

    As it comes, Arrow fetches every row group ahead and keeps all of them until the file is closed: that serves slow
    storage, and on a disk it is a copy of the file in memory.
    """
    import pyarrow.parquet as pq

    return pq.ParquetFile(path, pre_buffer=False, buffer_size=BUFFER)
