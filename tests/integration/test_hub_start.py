"""`hub:ID` of a recipe from the cache of the hub library, without a network."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import BertConfig, BertForMaskedLM

from tests.unit.training.made import made_task, tiny
from tests.unit.training.test_published import SIZES
from tlm_core.errors import InvalidRecipe, NotFound, Unavailable
from tlm_core.stages import PREPARE
from tlm_core.training.local import compute
from tlm_core.training.params import NOT_CACHED, PrepareParams
from tlm_core.training.prepared import Prepared
from tlm_core.training.published import load
from tlm_core.training.recipe import resolve
from tlm_core.training.tokenizer import load_published, train_wordpiece, write_folder

COMMIT = "a" * 40


def test_encoder_comes_from_the_cache_or_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = tmp_path / "hub" / "models--made--encoder"
    snapshot = repository / "snapshots" / COMMIT
    BertForMaskedLM(BertConfig(**SIZES)).save_pretrained(snapshot)
    write_folder(train_wordpiece(lambda: ["some text"], 300, lowercase=True), snapshot, types=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for source in ("hub:made/encoder", f"hub:made/encoder@{COMMIT}"):
        shape, parameters = load(source, labels=3, vocab=300, max_length=48, dropout=0.0)
        assert shape.layers == 2 and "vocabulary.dense.weight" in parameters
        assert sorted(load_published(source, tmp_path / "copy")[1]) == ["cls", "mask", "pad", "sep", "unk"]
    for name in ("made/encoder@none", "made/missing"):
        with pytest.raises(Unavailable, match=f"Cannot fetch the model 'hub:{name}' now"):
            load(f"hub:{name}", labels=3, vocab=300, max_length=48, dropout=0.0)


def test_own_tokenizer_replaces_one_that_the_hub_does_not_provide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    task, source = {"task": made_task(tmp_path / "task")}, "hub:made/missing or own"
    with pytest.raises(Unavailable, match="Cannot fetch the model 'hub:made/missing' now"):
        params = PrepareParams.of(tiny(tokenizer__source="hub:made/missing"))
        compute(PREPARE, task, params, tmp_path / "refused")
    meta = compute(PREPARE, task, PrepareParams.of(tiny(tokenizer__source=source)), tmp_path / "prepared")
    assert not NOT_CACHED.isdisjoint(meta)
    (warning,) = Prepared(tmp_path / "prepared").facts["warnings"]
    assert warning.startswith("An own tokenizer of 300 tokens replaces a published one. Cannot fetch")


def test_hub_id_never_reads_a_local_folder(tmp_path: Path) -> None:
    write_folder(train_wordpiece(lambda: ["some text"], 300, lowercase=True), tmp_path / "own", types=True)
    with pytest.raises(NotFound, match="Invalid hub model"):
        load_published(f"hub:{tmp_path / 'own'}", tmp_path / "copy")
    for key in ("model.init", "tokenizer.source"):
        with pytest.raises(InvalidRecipe, match=key):
            resolve("fast", "tiny", {key: f"hub:{tmp_path / 'own'}"})
