"""Token stores: the tokens of all documents in one memory-mapped file, and the offset of each document.

A store NAME has two files: `NAME.tokens.npy` (uint16 or uint32, [tokens]) and `NAME.offsets.npy` (int64, [documents +
1]). Writing takes one pass and bounded memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tlm_core.errors import CorruptArtifact

Ints = npt.NDArray[np.int64]


class ArrayWriter:
    """Appends to a one-dimensional `.npy` file whose length is not known in advance."""

    def __init__(self, path: Path, dtype: npt.DTypeLike) -> None:
        self._dtype = np.dtype(dtype)
        self._count = 0
        self._file = open(path, "wb")  # noqa: SIM115 - closed by close()
        self._header()

    def _header(self) -> None:
        # NumPy pads the header, so that a larger length of the first axis fits into the same space.
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": (self._count,)}
        np.lib.format.write_array_header_1_0(self._file, header)

    def append(self, values: Sequence[int] | npt.NDArray[np.integer]) -> None:
        block = np.asarray(values, dtype=self._dtype)
        self._file.write(block.tobytes())
        self._count += block.size

    def close(self) -> None:
        self._file.seek(0)
        self._header()
        self._file.close()


class StoreWriter:
    """Writes a store in batches. Use it as a context manager."""

    def __init__(self, folder: Path, name: str, vocab_size: int) -> None:
        self._tokens = ArrayWriter(folder / f"{name}.tokens.npy", np.uint16 if vocab_size <= 1 << 16 else np.uint32)
        self._offsets = ArrayWriter(folder / f"{name}.offsets.npy", np.int64)
        self._offsets.append([0])
        self.total = 0

    def add(self, documents: Sequence[Sequence[int]]) -> None:
        lengths = np.fromiter(map(len, documents), dtype=np.int64, count=len(documents))
        self._tokens.append(np.fromiter(chain.from_iterable(documents), np.int64, int(lengths.sum())))
        self._offsets.append(self.total + np.cumsum(lengths))
        self.total += int(lengths.sum())

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, *_error: object) -> None:
        self._tokens.close()
        self._offsets.close()


class TokenStore:
    """Reads a token store. The token ids of all documents are memory-mapped."""

    def __init__(self, folder: Path, name: str) -> None:
        self.tokens: npt.NDArray[np.uint16 | np.uint32] = np.load(folder / f"{name}.tokens.npy", mmap_mode="r")
        self.offsets: Ints = np.load(folder / f"{name}.offsets.npy", mmap_mode="r")
        if int(self.offsets[-1]) != len(self.tokens):
            raise CorruptArtifact(f"The token store '{name}' is truncated. Retry the job: tlm retry JOB.")

    @classmethod
    def joined(cls, stores: Sequence[TokenStore]) -> TokenStore:
        """Return the documents of all stores, in order. A single store stays memory-mapped; several are copied."""
        store = copy(stores[0])
        for other in stores[1:]:
            store.offsets = np.concatenate([store.offsets, other.offsets[1:] + len(store.tokens)])
            store.tokens = np.concatenate([store.tokens, other.tokens])
        return store

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def first(self, count: int) -> TokenStore:
        """Return a store of the first `count` documents."""
        store = copy(self)
        store.offsets = self.offsets[: count + 1]
        return store

    def __getitem__(self, index: int) -> npt.NDArray[np.uint16 | np.uint32]:
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    @property
    def lengths(self) -> Ints:
        return np.diff(self.offsets)
