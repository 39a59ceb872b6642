"""Texts that are equal, ignoring case, white space and Unicode form."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class TextScan:
    """Keys and word counts of texts, (rows,) int64. Within one process, equal texts have equal keys."""

    keys: NDArray[np.int64]
    words: NDArray[np.int64]


def scan(text: pa.ChunkedArray, text_pair: pa.ChunkedArray | None = None) -> TextScan:
    """Return keys and word counts of a string column (pyarrow, chunked); the texts of a pair count together.

    Nulls count as empty texts. A key is a 64-bit hash, so a million texts need 8 MB. The chance that two of a million
    different texts share a key is below one in a million.
    """
    rows = len(text)
    keys, words = np.empty(rows, dtype=np.int64), np.empty(rows, dtype=np.int64)
    seconds = _values(text_pair) if text_pair is not None else None
    for index, value in enumerate(_values(text)):
        parts = _folded(value)
        count = len(parts)
        folded = " ".join(parts)
        key: str | tuple[str, str] = folded
        if seconds is not None:
            other = _folded(next(seconds))
            count += len(other)
            key = (folded, " ".join(other))
        keys[index] = hash(key)
        words[index] = count
    return TextScan(keys, words)


def _values(column: pa.ChunkedArray) -> Iterator[str | None]:
    for chunk in column.chunks:
        for start in range(0, len(chunk), 10_000):
            yield from chunk.slice(start, 10_000).to_pylist()


def _folded(text: str | None) -> list[str]:
    if text is None:
        return []
    if text.isascii():
        return text.lower().split()
    return unicodedata.normalize("NFC", text).casefold().split()


def is_among(keys: NDArray[np.int64], others: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return a mask (rows,): True where a key is also in `others`."""
    if not len(others):
        return np.zeros(len(keys), dtype=np.bool_)
    ordered = np.sort(others)
    places = np.minimum(np.searchsorted(ordered, keys), len(ordered) - 1)
    return ordered[places] == keys


def count_distinct(keys: NDArray[np.int64]) -> int:
    """Number of different keys."""
    return int(np.count_nonzero(np.diff(np.sort(keys)))) + 1 if len(keys) else 0
