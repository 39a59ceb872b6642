"""Vectors and frequencies of tokens, counted on the training text, for `model.init: counts`.

A short run from random weights needs its first third to learn the frequency of each token, and which tokens occur in
the same contexts. Counting yields both in seconds. The vectors are the leading eigenvectors of the tokens' positive
pointwise mutual information (Levy and Goldberg 2014), by subspace iteration (Halko et al. 2011).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.sparse as sparse  # type: ignore[import-untyped]

from tlm_core.training.store import TokenStore

Floats = npt.NDArray[np.float32]

MAX_TOKENS = 5_000_000
WINDOW = 5
# A pair of tokens has the weight 1 / distance. In units of 1/60, all weights are integers, so sums are exact.
UNIT = 60
# Tokens and matrix rows per block. Blocks limit the memory of all arrays except the counts.
BLOCK_TOKENS, BLOCK_ROWS = 500_000, 512
SMOOTHING = 0.75
OVERSAMPLING = 16
ITERATIONS = 3


@dataclass(frozen=True)
class Counted:
    """The result of `count`. log_frequency: [V], natural logarithm of each token's share of all tokens.

    vectors: [V, dim], zero for tokens without a neighbor. flops: cost of counting.
    """

    log_frequency: Floats
    vectors: Floats
    flops: float


def count(stores: Sequence[TokenStore], size: int, specials: Sequence[int], dim: int) -> Counted:
    """Return `Counted` for the first MAX_TOKENS tokens of the stores. specials: ignored ids. dim: width of vectors."""
    frequency = np.zeros(size)
    pairs = sparse.csr_matrix((size, size), dtype=np.int32)
    for tokens, owner in _blocks(stores):
        frequency += np.bincount(tokens, minlength=size)
        pairs = pairs + _pairs(tokens, owner, size, specials)
    frequency[list(specials)] = 0.0
    pairs = pairs + pairs.T
    association = _association(pairs, size)
    smooth = frequency + 0.5  # no token gets the probability 0
    return Counted(
        log_frequency=np.log(smooth / smooth.sum()).astype(np.float32),
        vectors=_leading(association, dim),
        flops=_flops(association.nnz, size, dim + OVERSAMPLING),
    )


def _blocks(stores: Sequence[TokenStore]) -> Iterator[tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]]:
    """Yield blocks of whole documents: their tokens, and the document number of each token.

    Stop at MAX_TOKENS tokens over all stores.
    """
    budget = MAX_TOKENS
    for store in stores:
        documents = int(np.searchsorted(store.offsets, budget, side="right")) - 1
        end = int(store.offsets[documents])
        budget -= end
        marks = np.searchsorted(store.offsets[: documents + 1], np.arange(0, end, BLOCK_TOKENS), side="right") - 1
        for first, last in itertools.pairwise([*marks.tolist(), documents]):
            tokens = np.asarray(store.tokens[store.offsets[first] : store.offsets[last]]).astype(np.int32)
            yield tokens, np.repeat(np.arange(first, last, dtype=np.int32), np.diff(store.offsets[first : last + 1]))


def _pairs(
    tokens: npt.NDArray[np.int32], owner: npt.NDArray[np.int32], size: int, specials: Sequence[int]
) -> sparse.csr_matrix:
    """Return how often token j occurs up to WINDOW tokens after token i, weighted by UNIT / distance: [V, V]."""
    special = np.isin(tokens, np.array(specials))
    total = sparse.csr_matrix((size, size), dtype=np.int32)
    for distance in range(1, WINDOW + 1):
        first, second = slice(None, -distance), slice(distance, None)
        both = (owner[first] == owner[second]) & ~special[first] & ~special[second]
        left, right = tokens[first][both], tokens[second][both]
        weights = np.full(len(left), UNIT // distance, dtype=np.int32)
        total = total + sparse.coo_matrix((weights, (left, right)), shape=(size, size)).tocsr()
    return total


def _association(pairs: sparse.csr_matrix, size: int) -> sparse.csr_matrix:
    """Return the positive pointwise mutual information of token pairs, [V, V]. SMOOTHING lowers it for rare tokens."""
    if not pairs.nnz:
        return pairs.astype(np.float32)
    row = np.asarray(pairs.sum(axis=1)).ravel() + 1e-9
    log_probability = SMOOTHING * np.log(row)
    log_probability -= np.log(np.exp(log_probability).sum())
    information = np.empty(pairs.nnz, dtype=np.float32)
    for first in range(0, size, BLOCK_ROWS):
        bounds = pairs.indptr[first : first + BLOCK_ROWS + 1]
        here = slice(bounds[0], bounds[-1])
        own = np.repeat(log_probability[first : first + BLOCK_ROWS], np.diff(bounds))
        information[here] = np.log(pairs.data[here] / row.sum()) - own - log_probability[pairs.indices[here]]
    np.maximum(information, 0, out=information)
    association = sparse.csr_matrix((information, pairs.indices, pairs.indptr), pairs.shape)
    association.eliminate_zeros()
    return association


def _leading(matrix: sparse.csr_matrix, dim: int) -> Floats:
    """Return the leading eigenvectors of a symmetric matrix [V, V], scaled by sqrt(abs(eigenvalue)): [V, dim]."""
    size = matrix.shape[0]
    wide = min(size, dim + OVERSAMPLING)
    basis = np.random.default_rng(0).standard_normal((size, wide)).astype(np.float32)
    for _ in range(ITERATIONS):
        basis = np.linalg.qr(matrix @ basis)[0]
    values, turn = np.linalg.eigh(basis.T @ (matrix @ basis))
    best = np.argsort(-np.abs(values), kind="stable")[:dim]
    vectors: Floats = np.zeros((size, dim), dtype=np.float32)
    vectors[:, : len(best)] = basis @ turn[:, best] * np.sqrt(np.abs(values[best]))
    vectors[np.diff(matrix.indptr) == 0] = 0.0  # Tokens without a neighbor have only rounding errors as values.
    return vectors


def _flops(entries: int, size: int, wide: int) -> float:
    products = 2.0 * entries * wide * (ITERATIONS + 1)
    return products + 4.0 * size * wide * wide * ITERATIONS + 2.0 * size * wide * wide * 2
