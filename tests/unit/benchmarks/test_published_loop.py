"""The rebuilt published loop does what the release is described to do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import BertConfig

from benchmarks.training import published_loop
from benchmarks.training.published_loop import IGNORED, LENGTH, Collator, PublishedLoop, PublishedModel
from tests.unit.training.made import made_prepared, tiny
from tlm_core.training.masking import Vocabulary

WORDS = Vocabulary(size=200, pad=0, mask=4, specials=(0, 1, 2, 3, 4))


def test_the_collator_masks_each_example_at_15_percent_with_80_10_10() -> None:
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    examples = []
    for _ in range(200):
        ids = random.integers(5, 200, LENGTH)
        ids[0], ids[100], ids[101:] = 2, 3, 0
        examples.append({"ids": ids, "mask": (ids > 0).astype(np.int64), "label": 1})
    batch = Collator(WORDS)(examples)
    before = torch.from_numpy(np.stack([example["ids"] for example in examples]))
    drawn, ordinary = batch["targets"] != IGNORED, before > 4
    assert not (drawn & ~ordinary).any()
    assert torch.equal(batch["targets"][drawn], before[drawn])
    assert torch.equal(batch["ids"][~drawn], before[~drawn])
    share = drawn.sum() / ordinary.sum()
    masked = (batch["ids"][drawn] == WORDS.mask).float().mean()
    unchanged = (batch["ids"][drawn] == before[drawn]).float().mean()
    assert abs(share - 0.15) < 0.01
    assert abs(masked - 0.8) < 0.03
    assert abs(unchanged - 0.1) < 0.03


def test_model_returns_vocabulary_logits_everywhere_and_label_logits_once() -> None:
    config = BertConfig(
        vocab_size=200, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=3
    )
    model = PublishedModel(config).eval()
    ids = torch.randint(5, 200, (2, 7), generator=torch.Generator().manual_seed(0))
    words, labels = model(ids, torch.ones_like(ids))
    assert words.shape == (2, 7, 200)
    assert labels.shape == (2, 3)
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight


def test_every_thousandth_batch_is_a_task_batch_with_both_losses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (published_loop.RHO1, published_loop.RHO2) == (999, 20)
    monkeypatch.setattr(published_loop, "RHO1", 2)
    monkeypatch.setattr(published_loop, "prepared", lambda: made_prepared(tmp_path, tiny()))
    loop = PublishedLoop(bf16=False, shape=(1, 16, 2, 16), batch=4)
    seen: list[tuple[bool, bool, float, float]] = []
    original = PublishedLoop.loss

    def recorded(loop: PublishedLoop, batch: dict[str, torch.Tensor], is_task: bool) -> torch.Tensor:
        loss = original(loop, batch, is_task)
        words, labels = loop._model(batch["ids"], batch["mask"])
        expected = F.cross_entropy(words.flatten(0, 1), batch["targets"].flatten(), ignore_index=IGNORED)
        if is_task:
            expected = 20 / 21 * expected + F.cross_entropy(labels, batch["label"]) / 21
        seen.append((is_task, bool((batch["label"] >= 0).all()), loss.item(), expected.item()))
        return loss

    monkeypatch.setattr(PublishedLoop, "loss", recorded)
    loop.run(9)
    assert [is_task for is_task, *_ in seen] == [False, False, True] * 3
    assert [labeled for _, labeled, *_ in seen] == [False, False, True] * 3
    for *_, loss, expected in seen:
        assert loss == pytest.approx(expected, rel=1e-5)
