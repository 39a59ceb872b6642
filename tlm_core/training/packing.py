"""Rows of fixed length that hold several documents, separated by segment numbers.

Segment 0 is padding. The documents of a row are its segments 1, 2, ... Passages form an endless stream that is cut into
rows, so they need no padding. Task texts stay whole, because each has a label. First-fit decreasing packs them into few
rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from tlm_core.training.store import TokenStore

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Rows:
    """R packed rows of L tokens, with D whole documents.

    tokens, segments, positions, types: [R, L]. Positions count from a document's first token in the row. Types are 1 in
    the second text of a pair. documents, doc_row, doc_segment: [D], the number of each whole document in its store, its
    row, and its segment in the row. For passages, these three arrays are empty.
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
        """The number of tokens that are not padding."""
        return int(np.count_nonzero(self.segments))

    @property
    def lengths(self) -> Ints:
        """The number of tokens of each document in the rows, in order. A cut document has an entry for each row."""
        return np.bincount(self.text_of_token)

    @property
    def texts(self) -> tuple[Ints, Ints]:
        """The row and the segment of each document in the rows, in order: two arrays, each as long as `lengths`."""
        rows, columns = np.nonzero((self.segments > 0) & (self.positions == 0))
        return rows, self.segments[rows, columns]

    @property
    def text_of_token(self) -> Ints:
        """For each token that is not padding, in order: the index of its document in `texts`. Shape [real_tokens]."""
        return np.cumsum(self.positions[self.segments > 0] == 0) - 1

    def __len__(self) -> int:
        return len(self.tokens)

    def part(self, start: int, stop: int) -> Rows:
        """Return rows [start, stop) with their documents."""
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


class PassageStream:
    """An endless stream of passages, in another order in each epoch. The number of a row determines its tokens.

    length: tokens of a row. order: epoch → permutation of the store's documents. A document that is cut at the end of a
    row continues in the next row as a new segment.
    """

    def __init__(self, store: TokenStore, length: int, order: Callable[[int], Ints]) -> None:
        self._store = store
        self._length = length
        self._order = order
        self._total = len(store.tokens)
        self._loaded: tuple[int, Ints, Ints] | None = None

    def _documents(self, epoch: int) -> tuple[Ints, Ints]:
        """Return an epoch's documents in order, and the position after each document. Several threads may call it."""
        loaded = self._loaded
        if loaded is None or loaded[0] != epoch:
            documents = self._order(epoch)
            self._loaded = loaded = (epoch, documents, np.cumsum(self._store.lengths[documents]))
        return loaded[1:]

    def _pieces(self, start: int, count: int) -> list[tuple[int, npt.NDArray[np.uint16 | np.uint32]]]:
        """Return positions [start, start + count) of the stream as (document, tokens), one entry per document."""
        pieces = []
        while count:
            epoch, within = divmod(start, self._total)
            documents, ends = self._documents(epoch)
            place = int(np.searchsorted(ends, within, side="right"))
            while count and place < len(documents):
                document = int(documents[place])
                tokens = self._store[document]
                skip = within - (int(ends[place]) - len(tokens))
                tokens = tokens[skip : skip + count]
                pieces.append((document, tokens))
                within += len(tokens)
                start += len(tokens)
                count -= len(tokens)
                place += 1
        return pieces

    def rows(self, first: int, count: int) -> Rows:
        """Return rows [first, first + count) of the stream."""
        size = self._length
        if not count:
            return self.rows(first, 1).part(0, 0)
        pieces = self._pieces(first * size, count * size)
        lengths = np.array([len(tokens) for _, tokens in pieces])
        flat = np.concatenate([tokens for _, tokens in pieces]).astype(np.int64)
        piece = np.repeat(np.arange(len(pieces)), lengths)
        begins = np.repeat(np.cumsum(lengths) - lengths, lengths)
        here = np.arange(count * size)
        row_begin = here - here % size
        segments = piece - piece[row_begin] + 1
        positions = here - np.maximum(begins, row_begin)
        shape, none = (count, size), np.zeros(0, dtype=np.int64)
        tokens, types = flat.reshape(shape), np.zeros(shape, dtype=np.int64)
        return Rows(tokens, segments.reshape(shape), positions.reshape(shape), types, none, none, none)

    def texts(self, first: int, count: int) -> int:
        """Return the number of texts in rows [first, first + count). A passage in two rows counts as two texts."""
        size = self._length
        lengths = [len(tokens) for _, tokens in self._pieces(first * size, count * size)]
        return len(np.union1d(np.arange(count) * size, np.cumsum(lengths)[:-1]))

    def documents(self, first: int, count: int) -> list[int]:
        """Return the numbers of the passages in rows [first, first + count), in order."""
        return [document for document, _ in self._pieces(first * self._length, count * self._length)]


def first_fit(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Return bins of indices into `lengths`, each with a total length of at most `size` (first-fit decreasing)."""
    bins: list[list[int]] = []
    room: list[int] = []
    for item in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        index = next((index for index, free in enumerate(room) if lengths[item] <= free), len(bins))
        if index == len(bins):
            bins.append([])
            room.append(size)
        bins[index].append(item)
        room[index] -= lengths[item]
    return bins


def pack(
    store: TokenStore,
    documents: Ints,
    length: int,
    second: Ints | None = None,
    pad: int = 0,
    bins: Sequence[Sequence[int]] | None = None,
) -> Rows:
    """Pack whole documents of the store, each of at most `length` tokens, into rows of `length` tokens.

    documents: numbers in the store. second: the token of each document in the store at which the second text of a pair
    begins; None for single texts. bins: for each row, indices into `documents`; by default those of `first_fit`.
    """
    if bins is None:
        bins = first_fit(store.lengths[documents].tolist(), length)
    texts = {member: store[int(documents[member])] for members in bins for member in members}
    shape = (len(bins), length)
    tokens = np.full(shape, pad, dtype=np.int64)
    segments, positions, types = (np.zeros(shape, dtype=np.int64) for _ in range(3))
    places = []
    for row, members in enumerate(bins):
        begin = 0
        for segment, member in enumerate(members, start=1):
            end = begin + len(texts[member])
            tokens[row, begin:end] = texts[member]
            segments[row, begin:end] = segment
            positions[row, begin:end] = np.arange(end - begin)
            if second is not None:
                types[row, begin + int(second[documents[member]]) : end] = 1
            places.append((int(documents[member]), row, segment))
            begin = end
    index = np.array(places, dtype=np.int64).reshape(-1, 3).T
    return Rows(tokens, segments, positions, types, *index)
