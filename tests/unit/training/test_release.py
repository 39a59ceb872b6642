"""Models of the original TLM release, read from generated files of its layout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertForSequenceClassification

from tests.unit.training.made_release import VOCABULARY, made_release
from tlm_core.errors import InvalidRequest, NotFound
from tlm_core.training.published import load
from tlm_core.training.release import convert, known, stock_form


def test_converted_release_computes_the_same_logits(tmp_path: Path) -> None:
    release = made_release(tmp_path / "tlm-sciie-small-scale")
    folder = convert(str(release.folder), tmp_path / "stock")
    model, info = AutoModelForSequenceClassification.from_pretrained(str(folder), output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids = torch.randint(5, len(VOCABULARY), (4, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 7:] = mask[3, 3:] = 0
    with torch.inference_mode():
        logits = model.eval()(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(logits, release.logits(ids, mask), atol=1e-5, rtol=1e-5)


def test_released_labels_are_numbers_by_default(tmp_path: Path) -> None:
    release = made_release(tmp_path / "release")
    numbered = json.loads((convert(str(release.folder), tmp_path / "a") / "config.json").read_text())
    named = json.loads((convert(str(release.folder), tmp_path / "b", ["x", "y", "z"]) / "config.json").read_text())
    assert numbered["id2label"] == {"0": "0", "1": "1", "2": "2"}
    assert named["label2id"] == {"x": 0, "y": 1, "z": 2}
    with pytest.raises(InvalidRequest, match="has 3 labels, but 2 names"):
        convert(str(release.folder), tmp_path / "c", ["x", "y"])


def test_converted_tokenizer_truncates_like_the_release(tmp_path: Path) -> None:
    release = made_release(tmp_path / "tlm-sciie-small-scale")
    tokenizer = AutoTokenizer.from_pretrained(str(convert(str(release.folder), tmp_path / "stock")))
    assert tokenizer.model_max_length == 40  # the model's own positions are fewer than the release's 128
    assert tokenizer("good films")["input_ids"] == [2, 5, 10, 13, 3]


def test_release_is_read_from_safetensors_and_pickled_weights(tmp_path: Path) -> None:
    release = made_release(tmp_path / "release")
    first = convert(str(release.folder), tmp_path / "first")
    (release.folder / "pytorch_model.bin").unlink()
    save_file({name: t.clone() for name, t in release.tensors.items()}, release.folder / "model.safetensors")
    second = convert(str(release.folder), tmp_path / "second")
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()


def test_code_in_pickled_weights_never_runs(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return Path.touch, (tmp_path / "run",)

    release = made_release(tmp_path / "release")
    torch.save({"cls_layer.0.weight": Trap()}, release.folder / "pytorch_model.bin")
    with pytest.raises(InvalidRequest, match="Cannot read"):
        convert(str(release.folder), tmp_path / "stock")
    assert not (tmp_path / "run").exists()


def test_only_models_of_the_release_are_converted(tmp_path: Path) -> None:
    release = made_release(tmp_path / "release")
    assert stock_form(str(release.folder), tmp_path / "stock") == tmp_path / "stock"
    stock = tmp_path / "classifier"
    BertForSequenceClassification(release.config).save_pretrained(stock)
    assert stock_form(str(stock), tmp_path / "other") is None
    with pytest.raises(InvalidRequest, match="is not a model of the TLM release"):
        convert(str(stock), tmp_path / "other")
    with pytest.raises(NotFound, match=r"no config\.json"):
        convert(str(tmp_path / "nowhere"), tmp_path / "other")


def test_released_model_name_gives_its_task() -> None:
    task = known("hub:yxchar/tlm-rct-20k-medium-scale")
    assert task is not None
    assert (task.name, task.max_length) == ("rct-20k", 128)
    assert known("hub:yxchar/tlm-rct-20k-medium-scale@main") == task, "the name does not include the revision"
    assert known("hub:someone/else") is None


def test_released_model_can_initialize_training(tmp_path: Path) -> None:
    release = made_release(tmp_path / "release")
    shape, given = load(str(release.folder), labels=3, vocab=len(VOCABULARY), max_length=40, dropout=0.0)
    assert shape.layers == 2
    assert torch.equal(given["encoder.tokens.weight"], release.tensors["bert.embeddings.word_embeddings.weight"])
    assert torch.equal(given["vocabulary.out.bias"], release.tensors["cls.predictions.bias"])
