"""The search for near duplicates of earlier passages, by MinHash (Broder 1997). The state is on disk.

Two passages are near duplicates if the estimated Jaccard index of their word triples (shingles) is at least 0.8.
The estimate uses 128 minima of hashes, in 16 bands of 8. The search compares only passages with at least one equal
band. A pair with a Jaccard index of 0.8 is compared with probability 0.95, and a pair with 0.9 almost always.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tlm_core.artifacts import storage_errors
from tlm_core.corpus.leaks import grams, tokens
from tlm_core.errors import MissingDependency

THRESHOLD = 0.8
_MINIMA = 128
_BANDS = 16
_SHINGLE = 3
_SEED = 1
_AT_ONCE = 2_000  # texts in memory with their shingles, which need many times the size of the texts
_RUN = 1_000_000  # keys in memory; more keys are written to a file
_MOST = 16  # limit on the passages to compare for a band in a file; only very frequent texts exceed the limit

Keys = NDArray[np.uint64]
Owners = NDArray[np.uint32]


class NearDuplicates:
    """A filter for near duplicates. Its memory does not grow with the number of passages.

    folder: holds the state, about 700 bytes per passage. The caller deletes the folder. If the folder has the state of
    an earlier process, pass the same texts again from the start. For these texts, stored answers replace the search.
    dropped: number of near duplicates so far. seconds: duration of the search in this process so far.

    Raises MissingDependency, StorageFull, StorageUnavailable.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.perf_counter) -> None:
        self._minima = _library()
        self._folder = folder
        self._signature_file, self._answer_file = folder / "signatures", folder / "answers"
        self._clock = clock
        self._kept = 0
        self._runs = 0
        self._pending: list[tuple[Keys, Owners]] = []
        self.dropped = 0
        self.seconds = 0.0
        with storage_errors("detecting near duplicates"):
            folder.mkdir(parents=True, exist_ok=True)
            self._answered = self._resume()

    def select_new(self, texts: Sequence[str]) -> NDArray[np.bool_]:
        """Return a mask [texts]: True for each text without a near duplicate among all texts selected so far."""
        begun = self._clock()
        with storage_errors("detecting near duplicates"):
            earlier, self._answered = np.split(self._answered, [len(texts)])
            parts = [
                self._select_new(texts[start : start + _AT_ONCE]) for start in range(len(earlier), len(texts), _AT_ONCE)
            ]
        is_new = np.concatenate([earlier, *parts])
        self.dropped += len(texts) - int(is_new.sum())
        self.seconds += self._clock() - begun
        return is_new

    def _select_new(self, texts: Sequence[str]) -> NDArray[np.bool_]:
        signatures = self._signatures(texts)
        bands = _band_keys(signatures)
        earlier = self._earlier(bands)
        here: dict[int, list[int]] = {}
        is_new = np.ones(len(texts), np.bool_)
        for number, keys in enumerate(bands.tolist()):
            signature = signatures[number]
            rivals = sorted({rival for key in keys for rival in here.get(key, ())})
            alike = number in earlier and _alike(signature, earlier[number])
            if alike or (rivals and _alike(signature, signatures[rivals])):
                is_new[number] = False
                continue
            for key in keys:
                here.setdefault(key, []).append(number)
        # Signatures are written before answers, so that after a crash each selected text has its signature.
        _append(self._signature_file, signatures[is_new])
        _append(self._answer_file, is_new)
        self._index(bands[is_new])
        return is_new

    def _resume(self) -> NDArray[np.bool_]:
        """Return an earlier process's stored mask [texts] of complete batches. Index its selected passages again."""
        stored = np.fromfile(self._answer_file, np.bool_) if self._answer_file.exists() else np.zeros(0, np.bool_)
        batches = stored[: len(stored) // _AT_ONCE * _AT_ONCE].reshape(-1, _AT_ONCE)
        _cut(self._answer_file, batches.nbytes)
        _cut(self._signature_file, int(batches.sum()) * _MINIMA * np.dtype(np.uint32).itemsize)
        for rows in batches.sum(axis=1).tolist():
            self._index(_band_keys(self._stored(slice(self._kept, self._kept + rows))))
        return batches.ravel()

    def _signatures(self, texts: Sequence[str]) -> NDArray[np.uint32]:
        """Return the smallest hashes of each text's shingles, [texts, minima]. A text below 3 words is one shingle."""
        shingles = []
        for text in texts:
            words = tokens(text)
            shingles.append([" ".join(gram) for gram in grams(words, _SHINGLE)] or [" ".join(words) or text])
        return np.array(self._minima(shingles), np.uint32).reshape(len(texts), _MINIMA)

    def _earlier(self, bands: Keys) -> dict[int, NDArray[np.uint32]]:
        """Return row index in `bands` → signatures [passages, minima] of the indexed passages with an equal band.

        A row is omitted if no indexed passage has a band equal to one of its bands.
        """
        wanted, passages = bands.ravel(), np.repeat(np.arange(len(bands)), _BANDS)
        order = np.argsort(wanted)
        wanted, passages = wanted[order], passages[order]
        rivals_of: dict[int, set[int]] = {}
        for keys, owners in self._known():
            lefts, rights = (np.searchsorted(keys, wanted, side=side) for side in ("left", "right"))
            for hit in np.flatnonzero(rights > lefts).tolist():
                rows = owners[lefts[hit] : min(rights[hit], lefts[hit] + _MOST)]
                rivals_of.setdefault(int(passages[hit]), set()).update(rows.tolist())
        if not rivals_of:
            return {}
        every = np.unique(np.concatenate([list(rows) for rows in rivals_of.values()]))
        stored = self._stored(every)
        return {number: stored[np.searchsorted(every, sorted(rows))] for number, rows in rivals_of.items()}

    def _stored(self, rows: slice | NDArray[np.uint32]) -> NDArray[np.uint32]:
        return np.memmap(self._signature_file, np.uint32, "r").reshape(-1, _MINIMA)[rows]

    def _known(self) -> Iterator[tuple[Keys, Owners]]:
        yield from self._pending
        for run in range(self._runs):
            # A new mapping of the files for each search releases the memory of the previous search.
            keys, owners = (np.load(self._folder / f"{name}-{run}.npy", mmap_mode="r") for name in ("keys", "owners"))
            yield keys, owners

    def _index(self, bands: Keys) -> None:
        owners = np.repeat(np.arange(self._kept, self._kept + len(bands), dtype=np.uint32), _BANDS)
        self._kept += len(bands)
        self._pending.append(_sorted(bands.ravel(), owners))
        if sum(len(keys) for keys, _ in self._pending) >= _RUN:
            keys, owners = _sorted(*(np.concatenate(parts) for parts in zip(*self._pending, strict=True)))
            np.save(self._folder / f"keys-{self._runs}.npy", keys)
            np.save(self._folder / f"owners-{self._runs}.npy", owners)
            self._runs += 1
            self._pending.clear()


def _append(path: Path, values: NDArray[np.uint32] | NDArray[np.bool_]) -> None:
    with open(path, "ab") as handle:
        handle.write(values.tobytes())
        handle.flush()
        os.fsync(handle.fileno())


def _cut(path: Path, size: int) -> None:
    with open(path, "ab") as handle:
        handle.truncate(size)


def _alike(signature: NDArray[np.uint32], others: NDArray[np.uint32]) -> bool:
    return bool(((others == signature).mean(axis=1) >= THRESHOLD).any())


def _sorted(keys: Keys, owners: Owners) -> tuple[Keys, Owners]:
    order = np.argsort(keys, kind="stable")
    return keys[order], owners[order]


def _band_keys(signatures: NDArray[np.uint32]) -> Keys:
    """Return a hash for each band of each signature, [passages, bands].

    The hash includes the number of the band, so equal minima match only in the same band.
    """
    size = _MINIMA // _BANDS
    keys = np.empty((len(signatures), _BANDS), np.uint64)
    for band in range(_BANDS):
        mixed = np.full(len(signatures), band + 1, np.uint64)
        for column in range(band * size, (band + 1) * size):
            # FNV-1a on words of 32 bits. The shift mixes high bits into low bits, which the product does not.
            mixed = (mixed ^ signatures[:, column]) * np.uint64(0x100000001B3)
            mixed ^= mixed >> np.uint64(29)
        keys[:, band] = mixed
    return keys


def _library() -> Callable[[list[list[str]]], Sequence[Sequence[int]]]:
    try:
        from rensa import RMinHash  # type: ignore[import-untyped, unused-ignore]
    except ImportError as error:
        raise MissingDependency(
            "Detecting near duplicates needs the package rensa. Install it where the loader runs, or set "
            "near_duplicates to 'keep'."
        ) from error
    return lambda shingles: RMinHash.digests_from_token_sets(shingles, _MINIMA, _SEED)
