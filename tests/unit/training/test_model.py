"""The model against the stock classes, which are an independent reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

from tlm_core.errors import InvalidRecipe, NotFound
from tlm_core.training import published
from tlm_core.training.architectures import architecture_of, scratch_shape
from tlm_core.training.model import TaskModel, initialize
from tlm_core.training.packing import pack
from tlm_core.training.recipe import Model
from tlm_core.training.store import StoreWriter, TokenStore

VOCAB = 60
MODERNBERT = ModernBertConfig(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=4,
    num_attention_heads=2,
    max_position_embeddings=64,
    local_attention=8,
    pad_token_id=0,
    cls_token_id=2,
    bos_token_id=2,
    sep_token_id=3,
    eos_token_id=3,
)
BERT = BertConfig(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=64,
    pad_token_id=0,
)
ROBERTA = RobertaConfig(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=66,
    type_vocab_size=1,
    pad_token_id=1,
)


@pytest.fixture
def store(tmp_path: Path) -> TokenStore:
    random = np.random.default_rng(0)
    with StoreWriter(tmp_path, "made", VOCAB) as writer:
        writer.add([random.integers(5, VOCAB, size).tolist() for size in (30, 12, 20, 7, 3, 25, 32, 9)])
    return TokenStore(tmp_path, "made")


def scattered(model: TaskModel) -> TaskModel:
    """Move the weights far from their initial values, so that an error changes the result."""
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=random))
    return model.eval()


def published_folder(folder: Path, stock: Any) -> Path:
    stock.save_pretrained(folder)
    return folder


def hidden_of(model: TaskModel, store: TokenStore, documents: list[int], length: int = 32) -> dict[int, torch.Tensor]:
    """Return the hidden states of each document, from packed rows."""
    rows = pack(store, np.array(documents), length)
    arrays = (rows.tokens, rows.segments, rows.positions, rows.types)
    with torch.inference_mode():
        hidden = model.encoder(*map(torch.from_numpy, arrays))
    states = {}
    for number, row, segment in zip(rows.documents, rows.doc_row, rows.doc_segment, strict=True):
        states[int(number)] = hidden[row][torch.from_numpy(rows.segments[row] == segment)]
    return states


@pytest.mark.parametrize("architecture", ["modernbert", "bert"])
def test_packed_document_has_the_same_hidden_states_as_alone(architecture: str, store: TokenStore) -> None:
    recipe = Model(architecture=architecture, layers=2, hidden=32, heads=2, intermediate=48, max_length=32)
    model = TaskModel(scratch_shape(recipe, VOCAB, 3))
    initialize(model, seed=0)
    scattered(model)
    together = hidden_of(model, store, list(range(8)))
    for number in range(8):
        alone = hidden_of(model, store, [number])[number]
        torch.testing.assert_close(together[number], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("config", "cls"),
    [(MODERNBERT, ModernBertForMaskedLM), (BERT, BertForMaskedLM), (ROBERTA, RobertaForMaskedLM)],
)
def test_published_encoder_matches_its_stock_class(config: Any, cls: Any, store: TokenStore, tmp_path: Path) -> None:
    torch.manual_seed(0)
    stock = cls(config).eval()
    with torch.no_grad():
        for parameter in stock.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    folder = published_folder(tmp_path / "published", stock)
    shape, given = published.load(str(folder), labels=3, vocab=VOCAB, max_length=32, dropout=0.0)
    model = TaskModel(shape)
    missing, unexpected = model.load_state_dict(given, strict=False)
    tied = {"vocabulary.out.weight"} if architecture_of(shape).tied else set()
    assert set(missing) - tied == {name for name, _ in model.named_parameters() if name.startswith("task.")}
    assert not unexpected
    model.eval()
    hidden = hidden_of(model, store, list(range(8)))
    for number, states in hidden.items():
        tokens = torch.tensor(np.asarray(store[number], dtype=np.int64))[None]
        with torch.inference_mode():
            logits = stock(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits[0]
            torch.testing.assert_close(model.vocabulary(states), logits, atol=1e-4, rtol=1e-4)


def test_old_bert_weight_names_are_read(tmp_path: Path) -> None:
    stock = BertForMaskedLM(BERT)
    folder = published_folder(tmp_path / "published", stock)
    tensors = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in stock.state_dict().items()
        if name != "cls.predictions.decoder.weight"
    }
    save_file({name: value.clone() for name, value in tensors.items()}, folder / "model.safetensors")
    _, given = published.load(str(folder), labels=3, vocab=VOCAB, max_length=32, dropout=0.0)
    assert torch.equal(given["encoder.norm.weight"], stock.bert.embeddings.LayerNorm.weight)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"model_type": "gpt2"}, "'gpt2' model. Choose .* architectures: modernbert, bert, electra, roberta"),
        ({"model_type": "roberta"}, "has type_vocab_size 2"),
        ({"vocab_size": 10}, "Set tokenizer.source to the same model"),
        ({"hidden_act": "relu"}, "has hidden_act 'relu'"),
        ({"max_position_embeddings": 8}, "Lower model.max_length"),
    ],
)
def test_unsupported_encoder_fails_with_the_reason(change: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    folder = published_folder(tmp_path / "published", BertForMaskedLM(BERT))
    config = (folder / "config.json").read_text()
    import json

    (folder / "config.json").write_text(json.dumps({**json.loads(config), **change}))
    with pytest.raises(InvalidRecipe, match=complaint):
        published.load(str(folder), labels=3, vocab=VOCAB, max_length=32, dropout=0.0)


def test_folder_without_a_model_raises_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"config\.json"):
        published.load(str(tmp_path), labels=3, vocab=VOCAB, max_length=32, dropout=0.0)


def test_initial_weights_depend_on_seed_and_tensor_name() -> None:
    recipe = Model(layers=2, hidden=32, heads=2, intermediate=48)
    first, again, other, wider = (TaskModel(scratch_shape(recipe, VOCAB, labels)) for labels in (3, 3, 3, 9))
    for model, seed in ((first, 1), (again, 1), (other, 2), (wider, 1)):
        initialize(model, seed)
    assert all(torch.equal(p, again.get_parameter(name)) for name, p in first.named_parameters())
    name = "encoder.layers.1.mlp_in.weight"
    weight = first.get_parameter(name)
    assert torch.equal(weight, again.get_parameter(name))
    assert torch.equal(weight, wider.get_parameter(name))
    assert not torch.equal(weight, other.get_parameter(name))
