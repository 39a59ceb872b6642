"""Initialization from published encoders, generated in the layout of the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    ElectraConfig,
    ElectraForMaskedLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PretrainedConfig,
    RobertaConfig,
    RobertaForMaskedLM,
)

from tests.unit.training.made import COMMON, TELLING, made_selection, made_task, run_chain, tiny
from tlm_core.errors import InvalidRecipe
from tlm_core.training.published import load, shape_of
from tlm_core.training.tokenizer import train_wordpiece, write_folder

SIZES = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
         "num_attention_heads": 2, "pad_token_id": 0}  # fmt: skip
ENDS = {"bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
KINDS: dict[str, tuple[PretrainedConfig, Any]] = {
    "Bert": (BertConfig(**SIZES, max_position_embeddings=64), BertForMaskedLM),
    "Electra": (ElectraConfig(**SIZES, embedding_size=32, max_position_embeddings=64), ElectraForMaskedLM),
    "Roberta": (RobertaConfig(**SIZES, max_position_embeddings=65, type_vocab_size=1), RobertaForMaskedLM),
    "ModernBert": (ModernBertConfig(**SIZES, **ENDS, max_position_embeddings=64), ModernBertForMaskedLM),
}


def published(folder: Path, kind: str) -> Path:
    """Write weights, config, and tokenizer like a hub repository."""
    torch.manual_seed(0)
    config, model = KINDS[kind]
    model(config).save_pretrained(folder)
    words = [*COMMON, *(word for group in TELLING for word in group)]
    write_folder(train_wordpiece(lambda: words, 300, True), folder, types=kind in ("Bert", "Electra"))
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_published_encoder_is_trained_and_exported_in_its_class(kind: str, tmp_path: Path) -> None:
    source = str(published(tmp_path / "published", kind))
    recipe = tiny(
        model__init=source, tokenizer__source=source, joint__budget__steps=2, finetune__max_steps=2,
        finetune__evaluations=1, joint__rho1=1,
    )  # fmt: skip
    task = made_task(tmp_path / "task", (24, 12, 12), pair=kind != "ModernBert")
    done = run_chain(task, made_selection(tmp_path / "selection", 40), recipe, [0], tmp_path / "work")
    config = json.loads((done["export"] / "model" / "config.json").read_text())
    assert config["architectures"] == [f"{kind}ForSequenceClassification"]
    stock = AutoModelForSequenceClassification.from_pretrained(str(done["export"] / "model"))
    assert type(stock).__name__ == config["architectures"][0]


def test_published_weights_are_loaded(tmp_path: Path) -> None:
    folder = published(tmp_path / "published", "Roberta")
    shape, given = load(str(folder), labels=3, vocab=300, max_length=48, dropout=0.0)
    stock = load_file(folder / "model.safetensors")
    assert shape.positions == 64
    assert torch.equal(given["encoder.positions.weight"], stock["roberta.embeddings.position_embeddings.weight"][1:])
    assert torch.equal(given["vocabulary.out.bias"], stock["lm_head.bias"])
    _, given = load(str(published(tmp_path / "generator", "Electra")), labels=3, vocab=300, max_length=48, dropout=0.0)
    assert "vocabulary.dense.weight" in given


def test_sharded_and_pickled_weights_are_read(tmp_path: Path) -> None:
    folder = published(tmp_path / "published", "Bert")
    sizes = {"labels": 3, "vocab": 300, "max_length": 48, "dropout": 0.0}
    _, whole = load(str(folder), **sizes)  # type: ignore[arg-type]
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    _, pickled = load(str(folder), **sizes)  # type: ignore[arg-type]
    names = sorted(tensors)
    parts = {"model-1.safetensors": names[:10], "model-2.safetensors": names[10:]}
    for part, members in parts.items():
        save_file({name: tensors[name] for name in members}, folder / part)
    index = {"weight_map": {name: part for part, members in parts.items() for name in members}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "pytorch_model.bin").unlink()
    _, split = load(str(folder), **sizes)  # type: ignore[arg-type]
    for name, tensor in whole.items():
        assert torch.equal(pickled[name], tensor) and torch.equal(split[name], tensor)


def test_encoder_without_vocabulary_head_is_loaded(tmp_path: Path) -> None:
    BertModel(KINDS["Bert"][0]).save_pretrained(tmp_path / "bare")
    _, given = load(str(tmp_path / "bare"), labels=3, vocab=300, max_length=48, dropout=0.0)
    assert "encoder.tokens.weight" in given
    assert not any(name.startswith("vocabulary.") for name in given)


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("config.json", "{", "Cannot read the config.json"),
        ("config.json", "[]", "is not a JSON object"),
        ("model.safetensors", "cut", "Cannot read the weights"),
        ("model.safetensors", None, "lacks weights. Choose a model with model.safetensors, "),
    ],
)
def test_broken_model_folder_fails_with_the_reason(
    name: str, content: str | None, complaint: str, tmp_path: Path
) -> None:
    folder = published(tmp_path / "published", "Bert")
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)
    with pytest.raises(InvalidRecipe, match=complaint):
        load(str(folder), labels=3, vocab=300, max_length=48, dropout=0.0)


@pytest.mark.parametrize("kind", KINDS)
def test_config_with_missing_or_invalid_sizes_is_refused(kind: str) -> None:
    config = KINDS[kind][0].to_dict()
    positions = () if kind == "ModernBert" else ("max_position_embeddings",)
    for key in (*SIZES.keys() - {"pad_token_id"}, *positions):
        without = {name: value for name, value in config.items() if name != key}
        with pytest.raises(InvalidRecipe, match=f"The config.json of 'hub:a/b' lacks '{key}'"):
            shape_of(without, "hub:a/b")
        with pytest.raises(InvalidRecipe, match=r"The config\.json of 'hub:a/b' has an invalid value"):
            shape_of(config | {key: None}, "hub:a/b")
