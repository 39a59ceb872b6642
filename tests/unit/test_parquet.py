"""Parquet files are read with memory for a batch, not for the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tlm_core.parquet import BUFFER, open_parquet

ROWS, BYTES = 2_000, 1_000


def write_groups(path: Path, groups: int) -> Path:
    """Row groups of ROWS texts that hardly compress."""
    random = np.random.default_rng(0)
    with pq.ParquetWriter(path, pa.schema({"row": pa.int64(), "text": pa.string()})) as writer:
        for group in range(groups):
            texts = [random.bytes(BYTES // 2).hex() for _ in range(ROWS)]
            writer.write_table(pa.table({"row": np.arange(group * ROWS, (group + 1) * ROWS), "text": texts}))
    return path


def test_all_rows_come_in_their_order(tmp_path: Path) -> None:
    with open_parquet(write_groups(tmp_path / "a.parquet", 3)) as file:
        batches = list(file.iter_batches(300))
        assert max(batch.num_rows for batch in batches) <= 300
        assert pa.Table.from_batches(batches).equals(file.read())


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = write_groups(tmp_path / "a.parquet", 16)
    size = path.stat().st_size
    assert size > 16 * ROWS * BYTES / 2
    before, most = pa.total_allocated_bytes(), 0
    with open_parquet(path) as file:
        for _ in file.iter_batches(100):
            most = max(most, pa.total_allocated_bytes() - before)
    assert most < 4 * BUFFER + size / 16 < size / 2
