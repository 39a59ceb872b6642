from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.unit.training.made import made_prepared, tiny
from tlm_core.training import counts
from tlm_core.training.counts import count
from tlm_core.training.encoder_stages import build
from tlm_core.training.params import PrepareParams
from tlm_core.training.prepared import Prepared
from tlm_core.training.store import StoreWriter, TokenStore


def store_of(folder: Path, documents: list[list[int]]) -> TokenStore:
    with StoreWriter(folder, "made", 100) as writer:
        writer.add(documents)
    return TokenStore(folder, "made")


def test_tokens_with_similar_contexts_get_similar_vectors(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    groups = [range(5, 15), range(15, 25), range(25, 35)]
    documents = [[1, *random.choice(groups[k % 3], 20).tolist(), 2] for k in range(300)]
    vectors = count([store_of(tmp_path, documents)], 40, (1, 2), 8).vectors
    unit = vectors[5:35] / np.linalg.norm(vectors[5:35], axis=1, keepdims=True)
    like = unit @ unit.T
    same = np.kron(np.eye(3), np.ones((10, 10))) > 0
    assert like[same].mean() > 0.8 and abs(like[~same].mean()) < 0.2
    assert not vectors[[0, 1, 2, 36]].any()


def test_frequencies_exclude_specials_and_are_never_zero(tmp_path: Path) -> None:
    counted = count([store_of(tmp_path, [[1, 5, 5, 5, 6, 2]])], 10, (1, 2), 4)
    chance = np.exp(counted.log_frequency)
    assert chance.sum() == pytest.approx(1.0)
    assert chance[5] / chance[6] == pytest.approx(3.5 / 1.5)
    assert chance[1] == chance[9] == pytest.approx(0.5 / chance[6] * chance[6] / (4 + 0.5 * 10))


def test_tokens_of_two_documents_are_not_neighbors(tmp_path: Path) -> None:
    vectors = count([store_of(tmp_path, [[5], [6], [7, 8]])], 10, (1,), 4).vectors
    assert not vectors[[5, 6]].any() and vectors[[7, 8]].any()


def test_counting_stops_at_the_token_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counts, "MAX_TOKENS", 10)
    counted = count([store_of(tmp_path, [[5, 6, 7, 8]] * 9)], 10, (1,), 4)
    assert np.exp(counted.log_frequency[5]) == pytest.approx((2 + 0.5) / (8 + 0.5 * 10)), "two of nine documents"


def test_block_size_does_not_change_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    store = store_of(tmp_path, [random.integers(3, 40, length).tolist() for length in (5, 0, 90, 1, 17, 3, 44)])
    whole = count([store, store], 40, (1,), 8)
    monkeypatch.setattr(counts, "BLOCK_TOKENS", 13)
    monkeypatch.setattr(counts, "BLOCK_ROWS", 7)
    counted = count([store, store], 40, (1,), 8)
    assert counted.flops == whole.flops
    assert np.array_equal(counted.vectors, whole.vectors) and np.array_equal(counted.log_frequency, whole.log_frequency)


def test_counted_vectors_are_rotated_by_the_seed(tmp_path: Path) -> None:
    recipe = tiny(model__init="counts")
    prepared = Prepared(made_prepared(tmp_path, recipe))
    first, second = (build(recipe.model, prepared, seed) for seed in (0, 1))
    log_frequency, vectors = prepared.counted()
    assert torch.equal(first.vocabulary.out.bias, torch.from_numpy(log_frequency))
    known = np.linalg.norm(vectors, axis=1) > 1e-6
    assert known.sum() > 100
    unit = vectors[known] / np.linalg.norm(vectors[known], axis=1, keepdims=True)
    for model in (first, second):
        weight = model.encoder.tokens.weight.detach().numpy()[known]
        own = weight / np.linalg.norm(weight, axis=1, keepdims=True)
        np.testing.assert_allclose(own @ own.T, unit @ unit.T, atol=1e-4)
        assert torch.equal(model.vocabulary.out.weight[torch.from_numpy(known)], torch.from_numpy(weight))
    assert not torch.allclose(first.encoder.tokens.weight, second.encoder.tokens.weight)


def test_prepare_depends_on_the_width_only_when_it_counts() -> None:
    assert PrepareParams.of(tiny()) == PrepareParams.of(tiny(model__hidden=64))
    counting = [PrepareParams.of(tiny(model__init="counts", model__hidden=h)) for h in (32, 64)]
    assert counting[0] != counting[1]


def test_prepare_reports_its_cost(tmp_path: Path) -> None:
    plain = Prepared(made_prepared(tmp_path / "plain", tiny())).facts["cost"]
    counted = Prepared(made_prepared(tmp_path / "counted", tiny(model__init="counts"))).facts["cost"]
    assert plain["flops"] == 0 and counted["flops"] > 0
    assert counted["tokens"] == plain["tokens"] > 0 and counted["seconds"] > 0
