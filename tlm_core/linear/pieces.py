"""The file with the pieces of passages that a self-trained model learned from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

_PIECES = "pieces.parquet"


def write_pieces(folder: Path, texts: Sequence[str], probabilities: NDArray[np.float32]) -> None:
    """Write pieces of passages with the probabilities of their labels, [pieces, labels]."""
    column = pa.FixedSizeListArray.from_arrays(pa.array(probabilities.reshape(-1)), probabilities.shape[1])
    pq.write_table(pa.table({"text": pa.array(texts, pa.string()), "probabilities": column}), folder / _PIECES)


def read_pieces(folder: Path) -> tuple[list[str], NDArray[np.float32]]:
    """Return the texts and the probabilities [pieces, labels] that `write_pieces` wrote."""
    table = pq.read_table(folder / _PIECES)
    texts, column = table["text"].to_pylist(), table["probabilities"].combine_chunks()
    return texts, column.flatten().to_numpy().reshape(len(texts), column.type.list_size)
