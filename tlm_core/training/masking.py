"""Masking for masked language modeling: which tokens to predict, and what replaces them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from tlm_core.training.packing import Rows
from tlm_core.training.randomness import Stream, random_at

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
NOT_MASKED = -1


@dataclass(frozen=True)
class Vocabulary:
    """The token ids that masking needs. size: number of all ids. specials: ids of all special tokens."""

    size: int
    pad: int
    mask: int
    specials: tuple[int, ...]

    @cached_property
    def ordinary(self) -> Ints:
        """All ids that are not special, [V - specials]."""
        return np.setdiff1d(np.arange(self.size), np.array(self.specials))


def mask_rows(
    rows: Rows, vocabulary: Vocabulary, rate: float, seed: int, step: int, *, first: int = 0
) -> tuple[Ints, Ints]:
    """Return tokens and targets, both [R, L]. The target of a token that is not predicted is NOT_MASKED.

    In each row, draw as many tokens as `drawn_of` returns, or all ordinary tokens if these are fewer. Of the drawn
    tokens, 80 % become [MASK], 10 % become a random ordinary token, and 10 % do not change (Devlin et al. 2019, section
    3.1). The place of a token in the step determines its random numbers, so a worker can draw for its rows alone.
    first: number of the step's rows before `rows`.
    """
    random = random_at(seed, Stream.MASK, step)
    shape, ordinary = rows.tokens.shape, vocabulary.ordinary
    maskable = (rows.segments > 0) & ~np.isin(rows.tokens, np.array(vocabulary.specials))
    random.bit_generator.advance(first * shape[1])  # type: ignore[attr-defined]
    draws, kind, place, _ = np.moveaxis(random.random((*shape, 4)), -1, 0)  # a counter yields four numbers
    other = ordinary[(place * len(ordinary)).astype(np.int64)]
    drawn = maskable & _lowest(draws, maskable, drawn_of((rows.segments > 0).sum(axis=1), rate))
    tokens = np.where(drawn & (kind < 0.8), vocabulary.mask, rows.tokens)
    tokens = np.where(drawn & (kind >= 0.9), other, tokens)
    return tokens, np.where(drawn, rows.tokens, NOT_MASKED)


def bag_of_words(rows: Rows, targets: Ints, weights: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the factor of each token in the bag-of-words loss, [R, L]. See `objective.bag_of_words_sum`.

    weights: [V], the importance of each token of the vocabulary. The factors of a text are proportional to the weights
    of its tokens, and their sum is the text's number of masked tokens. So a text counts as much as in the MLM loss.
    """
    real, text = rows.segments > 0, rows.text_of_token
    weight = weights[rows.tokens[real]]
    masked, total = (np.bincount(text, values) for values in (targets[real] != NOT_MASKED, weight))
    factors = np.zeros(rows.tokens.shape, dtype=np.float32)
    factors[real] = weight * (masked / total.clip(min=1e-9))[text]
    return factors


def drawn_of(tokens: Ints, rate: float) -> Ints:
    """Return how many tokens to draw in each row: the share `rate` of `tokens` [R], rounded down."""
    return (tokens * rate).astype(np.int64)


def _lowest(draws: npt.NDArray[np.float64], maskable: Flags, counts: Ints) -> Flags:
    """Return a mask [R, L] of the `counts` lowest draws among the maskable tokens of each row."""
    order = np.where(maskable, draws, 2.0).argsort(axis=1, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(order.shape[1])[None], axis=1)
    return ranks < counts[:, None]
