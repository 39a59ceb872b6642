"""Rows of fixed length that hold several documents, kept apart by a segment number.

A row is `length` tokens. Segment 0 is padding; the documents of a row are its segments 1, 2, ...
Retrieved text is one endless stream cut into rows, so it needs no padding. Task texts stay whole, since
each carries a label: they are fitted into as few rows as first-fit-decreasing finds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tlm_core.training.store import TokenStore

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Rows:
    """Packed rows; R rows of L tokens, D labelled documents.

    tokens, segments, positions, types: [R, L]. positions count from a document's first token in the row;
    types are 1 in the second text of a pair. documents, doc_row, doc_segment: [D], the number of each
    whole document in its store, the row it lies in and its segment there; empty for cut streams.
    """

    tokens: Ints
    segments: Ints
    positions: Ints
    types: Ints
    documents: Ints
    doc_row: Ints
    doc_segment: Ints

    @property
    def real_tokens(self) -> int:
        """Tokens that are not padding."""
        return int(np.count_nonzero(self.segments))

    def __len__(self) -> int:
        return len(self.tokens)

    def part(self, start: int, stop: int) -> Rows:
        """Rows [start, stop) with the documents that lie in them."""
        inside = (self.doc_row >= start) & (self.doc_row < stop)
        return replace(
            self,
            tokens=self.tokens[start:stop],
            segments=self.segments[start:stop],
            positions=self.positions[start:stop],
            types=self.types[start:stop],
            documents=self.documents[inside],
            doc_row=self.doc_row[inside] - start,
            doc_segment=self.doc_segment[inside],
        )


def _empty() -> Ints:
    return np.zeros(0, dtype=np.int64)


class PassageStream:
    """Passages end to end, each epoch in its own order; rows are cut from it by position alone.

    order: epoch → permutation of the store's documents. A document that a row's end cuts goes on in the
    next row as a segment of its own.
    """

    def __init__(self, store: TokenStore, length: int, order: Callable[[int], Ints]) -> None:
        self._store = store
        self._length = length
        self._order = order
        self._total = len(store.tokens)
        self._epoch = -1
        self._documents = _empty()
        self._ends = _empty()

    def _load(self, epoch: int) -> None:
        if epoch != self._epoch:
            self._documents = self._order(epoch)
            self._ends = np.cumsum(self._store.lengths[self._documents])
            self._epoch = epoch

    def _pieces(self, start: int, count: int) -> list[tuple[int, npt.NDArray[Any]]]:
        """(document, tokens) pieces that cover stream positions [start, start + count)."""
        pieces = []
        while count:
            epoch, within = divmod(start, self._total)
            self._load(epoch)
            place = int(np.searchsorted(self._ends, within, side="right"))
            while count and place < len(self._documents):
                document = int(self._documents[place])
                tokens = self._store[document]
                skip = within - (int(self._ends[place]) - len(tokens))
                tokens = tokens[skip : skip + count]
                pieces.append((document, tokens))
                within += len(tokens)
                start += len(tokens)
                count -= len(tokens)
                place += 1
        return pieces

    def rows(self, first: int, count: int) -> Rows:
        """Rows [first, first + count) of the stream."""
        size = self._length
        pieces = self._pieces(first * size, count * size)
        lengths = np.array([len(tokens) for _, tokens in pieces])
        flat = np.concatenate([tokens for _, tokens in pieces]).astype(np.int64)
        piece = np.repeat(np.arange(len(pieces)), lengths)
        begins = np.repeat(np.cumsum(lengths) - lengths, lengths)
        here = np.arange(count * size)
        row_begin = here - here % size
        segments = piece - piece[row_begin] + 1
        positions = here - np.maximum(begins, row_begin)
        shape = (count, size)
        return Rows(
            tokens=flat.reshape(shape),
            segments=segments.reshape(shape),
            positions=positions.reshape(shape),
            types=np.zeros(shape, dtype=np.int64),
            documents=_empty(),
            doc_row=_empty(),
            doc_segment=_empty(),
        )

    def documents(self, first: int, count: int) -> list[int]:
        """Numbers of the passages that rows [first, first + count) touch, in order."""
        return [document for document, _ in self._pieces(first * self._length, count * self._length)]


def first_fit(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Bins of at most `size` that hold all items, longest first (equal ones in their order)."""
    bins: list[list[int]] = []
    room: list[int] = []
    for item in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        for index, left in enumerate(room):
            if lengths[item] <= left:
                bins[index].append(item)
                room[index] -= lengths[item]
                break
        else:
            bins.append([item])
            room.append(size - lengths[item])
    return bins


def pack(store: TokenStore, documents: Ints, length: int, second: Ints | None = None, pad: int = 0) -> Rows:
    """Fit whole documents of the store into rows of `length`; each is at most `length` tokens long.

    second: for text pairs, where the second text of each document of the store begins.
    """
    texts = [store[int(document)] for document in documents]
    bins = first_fit([len(text) for text in texts], length)
    shape = (len(bins), length)
    tokens = np.full(shape, pad, dtype=np.int64)
    segments, positions, types = (np.zeros(shape, dtype=np.int64) for _ in range(3))
    found, doc_row, doc_segment = [], [], []
    for row, members in enumerate(bins):
        begin = 0
        for segment, member in enumerate(members, start=1):
            end = begin + len(texts[member])
            tokens[row, begin:end] = texts[member]
            segments[row, begin:end] = segment
            positions[row, begin:end] = np.arange(end - begin)
            if second is not None:
                types[row, begin + int(second[documents[member]]) : end] = 1
            found.append(int(documents[member]))
            doc_row.append(row)
            doc_segment.append(segment)
            begin = end
    index = [np.array(values, dtype=np.int64) for values in (found, doc_row, doc_segment)]
    return Rows(tokens, segments, positions, types, *index)
