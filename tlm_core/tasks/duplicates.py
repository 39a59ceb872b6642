"""Find equal texts. Texts that differ only in case, white space or Unicode form (NFC or NFD) count as equal."""

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
    """The key and the number of words of each text, [rows]. Within one process, equal texts have equal keys."""

    keys: NDArray[np.int64]
    words: NDArray[np.int64]


def scan(text: pa.ChunkedArray, text_pair: pa.ChunkedArray | None = None) -> TextScan:
    """Return the key and the number of words of each text in a string column, or of each pair of two columns.

    Null counts as an empty text. A key is a 64-bit hash, so a million texts need 8 MB. The probability that two of a
    million different texts have the same key is below one in a million.
    """
    columns = [text] if text_pair is None else [text, text_pair]
    keys, words = np.empty(len(text), dtype=np.int64), np.empty(len(text), dtype=np.int64)
    for index, texts in enumerate(zip(*map(_values, columns), strict=True)):
        folded = [_folded(each) for each in texts]
        keys[index] = hash(tuple(map(" ".join, folded)))
        words[index] = sum(map(len, folded))
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
