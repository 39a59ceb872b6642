from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tlm_core.training.masking import NOT_MASKED, Vocabulary, bag_of_words, mask_rows
from tlm_core.training.packing import Rows
from tlm_core.training.prepared import draw
from tlm_core.training.randomness import Stream, permutation, random_at

VOCABULARY = Vocabulary(size=100, pad=0, mask=4, specials=(0, 1, 2, 3, 4))


@pytest.fixture
def rows() -> Rows:
    random = np.random.default_rng(0)
    tokens = random.integers(5, 100, (64, 128))
    tokens[:, 0], tokens[:, 60], tokens[:, 100:] = 2, 3, 0
    segments = np.ones_like(tokens)
    segments[:, 100:] = 0
    none = np.zeros(0, dtype=np.int64)
    return Rows(tokens, segments, np.zeros_like(tokens), np.zeros_like(tokens), none, none, none)


def test_specials_and_padding_are_never_masked_or_substituted(rows: Rows) -> None:
    tokens, targets = mask_rows(rows, VOCABULARY, 0.9, seed=1, step=1)
    barred = np.isin(rows.tokens, VOCABULARY.specials) | (rows.segments == 0)
    assert (targets[barred] == NOT_MASKED).all() and (tokens[barred] == rows.tokens[barred]).all()
    put = tokens[targets != NOT_MASKED]
    assert set(np.unique(put[put < 5])) == {VOCABULARY.mask}


def test_masked_tokens_split_80_10_10(rows: Rows) -> None:
    tokens, targets = mask_rows(rows, VOCABULARY, 0.3, seed=1, step=1)
    masked = targets != NOT_MASKED
    assert masked.sum() / (64 * 98) == pytest.approx(0.3, abs=0.02)
    assert (targets[masked] == rows.tokens[masked]).all()
    hidden = (tokens[masked] == VOCABULARY.mask).mean()
    unchanged = (tokens[masked] == rows.tokens[masked]).mean()
    assert hidden == pytest.approx(0.8, abs=0.03)
    assert unchanged == pytest.approx(0.1, abs=0.02)


def test_mask_depends_on_seed_and_step(rows: Rows) -> None:
    first = mask_rows(rows, VOCABULARY, 0.3, seed=1, step=7)
    again = mask_rows(rows, VOCABULARY, 0.3, seed=1, step=7)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    for seed, step in ((2, 7), (1, 8)):
        assert not np.array_equal(first[1], mask_rows(rows, VOCABULARY, 0.3, seed=seed, step=step)[1])


def test_mask_draws_the_same_share_of_each_row(rows: Rows) -> None:
    tokens, targets = mask_rows(rows, VOCABULARY, 0.3, seed=1, step=7)
    masked = targets != NOT_MASKED
    assert set(masked.sum(axis=1)) == {30}, "of the 100 tokens of each row"
    assert not masked[:, [0, 60]].any() and not masked[:, 100:].any()
    assert (masked.sum(axis=0)[1:60] > 5).all(), "every place is drawn"
    assert (tokens[masked] == VOCABULARY.mask).mean() == pytest.approx(0.8, abs=0.03)
    other = (tokens != rows.tokens) & (tokens != VOCABULARY.mask)
    assert tokens[other].min() == 5 and tokens[other].max() == 99
    part = mask_rows(rows.part(20, 30), VOCABULARY, 0.3, seed=1, step=7, first=20)
    assert np.array_equal(part[0], tokens[20:30]) and np.array_equal(part[1], targets[20:30])


def test_mask_does_not_depend_on_the_text(rows: Rows) -> None:
    other = replace(rows, tokens=np.where(rows.tokens > 4, 5, rows.tokens))
    masked = mask_rows(rows, VOCABULARY, 0.3, seed=1, step=7)[1] != NOT_MASKED
    assert np.array_equal(masked, mask_rows(other, VOCABULARY, 0.3, seed=1, step=7)[1] != NOT_MASKED)


def test_ordinary_tokens_are_computed_once() -> None:
    assert VOCABULARY.ordinary is VOCABULARY.ordinary
    assert np.array_equal(VOCABULARY.ordinary, np.arange(5, 100))


def test_each_text_has_its_masked_tokens_as_sum_of_factors(rows: Rows) -> None:
    segments, positions = rows.segments.copy(), np.tile(np.arange(128), (64, 1))
    segments[:, 60:100], positions[:, 60:] = 2, np.arange(68)
    rows = replace(rows, segments=segments, positions=positions)
    _, targets = mask_rows(rows, VOCABULARY, 0.3, seed=1, step=1)
    weights = np.linspace(0, 1, VOCABULARY.size, dtype=np.float32)
    weights[list(VOCABULARY.specials)] = 0
    factors = bag_of_words(rows, targets, weights)
    for place in (slice(0, 60), slice(60, 100)):
        masked = (targets[:, place] != NOT_MASKED).sum(axis=1)
        np.testing.assert_allclose(factors[:, place].sum(axis=1), masked, rtol=1e-5)
    assert not factors[rows.segments == 0].any() and not factors[np.isin(rows.tokens, VOCABULARY.specials)].any()
    row, (low, high) = factors[0], rows.tokens[0, 1:3]
    assert row[2] * weights[low] == pytest.approx(row[1] * weights[high], rel=1e-5)


def test_streams_differ_and_accept_large_seeds() -> None:
    drawn = {random_at(2**63, stream, 3).integers(2**62) for stream in Stream}
    assert len(drawn) == len(Stream)


def test_batches_cover_whole_epochs() -> None:
    items = np.concatenate([draw(5, Stream.TASK, 10, number, 4)[0] for number in range(5)])
    assert sorted(items[:10]) == sorted(items[10:]) == list(range(10))
    assert np.array_equal(items[:10], permutation(5, Stream.TASK, 0, 10))


def test_a_batch_larger_than_the_data_spans_epochs() -> None:
    assert np.bincount(draw(5, Stream.TASK, 3, 0, 8)[0], minlength=3).tolist() in ([2, 3, 3], [3, 2, 3], [3, 3, 2])
