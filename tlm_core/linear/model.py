"""A linear model on TF-IDF of word and character n-grams."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tlm_core.json_files import read_json
from tlm_core.linear.ngrams import FAMILIES, Alphabet, Ngrams, Row, Sequences
from tlm_core.tasks.task import Task

if TYPE_CHECKING:
    import scipy.sparse as sp  # type: ignore[import-untyped, unused-ignore]

ALPHABET, WEIGHTS = "ngrams.json", "linear.npz"
_PART = 2_000_000  # ids whose n-grams are counted at once

Floats = NDArray[np.float32]


def read_alphabet(folder: Path) -> Alphabet:
    """Return the alphabet of the linear model in a folder."""
    ids = read_json(folder / ALPHABET)
    marks, start_words = tuple(ids.get("marks", ())), ids.get("start_words", 0)
    nfc = ids.get("nfc", False)  # earlier models do not normalize texts
    return Alphabet(tuple(ids["words"]), tuple(ids["characters"]), start_words, marks, nfc)


def rows_of(task: Task, split: str) -> list[Row]:
    """Return the texts of a split: for each row, a tuple of one text or of two."""
    texts, pairs = task.texts(split), task.text_pairs(split)
    return [(text,) for text in texts] if pairs is None else list(zip(texts, pairs, strict=True))


@dataclass(frozen=True)
class Features:
    """TF-IDF of n-grams: sublinear frequency, smoothed inverse document frequency, and unit length of each family.

    ngrams: the n-grams of each family. idf: the inverse document frequencies of each family, [features].
    """

    alphabet: Alphabet
    ngrams: tuple[Ngrams, ...]
    idf: tuple[Floats, ...]

    @classmethod
    def learn(cls, rows: Sequence[Row], families: Iterable[str], start_words: int = 0) -> tuple[Features, Sequences]:
        """Choose the n-grams of train rows. Return the features and the encoded rows. start_words: see `Alphabet`."""
        alphabet = Alphabet.learn(rows, start_words)
        sequences = alphabet.sequences(rows)
        ngrams = tuple(Ngrams.learn(sequences, family, alphabet.spaces) for family in families)
        alphabet = alphabet.only(np.concatenate([ids.ravel() for of_family in ngrams for ids in of_family.pool()]))
        idf = tuple(_inverse_frequency(of_family, sequences) for of_family in ngrams)
        return cls(alphabet, ngrams, idf), sequences

    def only(self, families: int) -> Features:
        """Return the features of the first `families` families of n-grams, in the order of `FAMILIES`."""
        return Features(self.alphabet, self.ngrams[:families], self.idf[:families])

    def __len__(self) -> int:
        return sum(map(len, self.ngrams))

    def word_names(self) -> list[str]:
        """Return the n-gram of each word feature, such as `we show`. Word features precede character features.

        If the n-gram comes from an extra part of a row, the name of this part follows: `we (first words)`.
        """
        words, places = {}, {}
        for name, of_part in zip(self.alphabet.part_names, self.alphabet.words, strict=True):
            for word, number in of_part.items():
                words[number], places[number] = word, f" ({name})" if name else ""
        return [
            " ".join(words[number] for number in ids) + places[ids[0]]
            for of_order in self.ngrams[0].pool()
            for ids in of_order.tolist()
        ]

    def encode(self, rows: Sequence[Row]) -> sp.csr_matrix:
        """Return the values of the features in `rows`, [rows, features]."""
        return self.matrix(self.alphabet.sequences(rows))

    def matrix(self, sequences: Sequences) -> sp.csr_matrix:
        """Return the values of the features in encoded rows, [rows, features]."""
        import scipy.sparse as sp  # type: ignore[import-untyped, unused-ignore]

        parts = [self._matrix(part) for part in sequences.parts(_PART)]
        return sp.vstack(parts).tocsr() if parts else sp.csr_matrix((0, len(self)), dtype=np.float32)

    def _matrix(self, sequences: Sequences) -> sp.csr_matrix:
        import scipy.sparse as sp  # type: ignore[import-untyped, unused-ignore]

        families = []
        for ngrams, idf in zip(self.ngrams, self.idf, strict=True):
            counts = ngrams.counts(sequences)
            counts.data = (1 + np.log(counts.data)) * idf[counts.indices]
            squares = counts.copy()
            squares.data **= 2
            length = np.sqrt(np.asarray(squares.sum(axis=1)).ravel())
            families.append(sp.diags(1 / np.where(length > 0, length, 1)) @ counts)
        return sp.hstack(families).tocsr().astype(np.float32)


def _inverse_frequency(ngrams: Ngrams, sequences: Sequences) -> Floats:
    rows = np.zeros(len(ngrams), np.int64)
    for part in sequences.parts(_PART):
        rows += np.bincount(ngrams.counts(part).indices, minlength=len(ngrams))
    return (np.log((1 + len(sequences)) / (1 + rows)) + 1).astype(np.float32)


@dataclass(frozen=True)
class LinearModel:
    """Features and one weight vector for each label. weights: [features, outputs]; bias: [outputs]."""

    features: Features
    weights: Floats
    bias: Floats

    def outputs(self, rows: Sequence[Row]) -> Floats:
        """Return the margins of each label, or the predicted regression targets, [rows, outputs]."""
        return self.outputs_of(self.features.encode(rows))

    def outputs_of(self, matrix: sp.csr_matrix) -> Floats:
        """Return the outputs [rows, outputs] from the values of the features [rows, features]."""
        return np.asarray(matrix @ self.weights, np.float32) + self.bias

    def write(self, folder: Path) -> None:
        """Write the alphabet to `ngrams.json` and the arrays to `linear.npz`."""
        features = self.features
        (folder / ALPHABET).write_text(json.dumps(asdict(features.alphabet), ensure_ascii=False), encoding="utf-8")
        arrays: dict[str, NDArray[np.generic]] = {"weights": self.weights, "bias": self.bias}
        for ngrams, idf in zip(features.ngrams, features.idf, strict=True):
            arrays[f"{ngrams.family}.idf"] = idf
            arrays |= {f"{ngrams.family}.{order}": keys for order, keys in enumerate(ngrams.keys)}
        np.savez_compressed(folder / WEIGHTS, allow_pickle=False, **arrays)

    @classmethod
    def read(cls, folder: Path) -> LinearModel:
        """Return the model that `write` wrote to `folder`."""
        alphabet = read_alphabet(folder)
        with np.load(folder / WEIGHTS) as arrays:
            families = [name.removesuffix(".idf") for name in arrays if name.endswith(".idf")]
            keys = {name: [arrays[f"{name}.{order}"] for order in range(len(FAMILIES[name]))] for name in families}
            ngrams = tuple(Ngrams(name, tuple(keys[name]), tuple(alphabet.spaces)) for name in families)
            idf = tuple(arrays[f"{family}.idf"] for family in families)
            return cls(Features(alphabet, ngrams, idf), arrays["weights"], arrays["bias"])
