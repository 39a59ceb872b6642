"""Our parameter names against those of the stock `transformers` classes, both ways.

A stock name with `{i}` stands for every layer. BERT keeps query, key and value apart; we hold them as one.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tlm_core.errors import InvalidRecipe
from tlm_core.training.model import Shape

MODERNBERT = {
    "encoder.tokens.weight": "model.embeddings.tok_embeddings.weight",
    "encoder.norm.weight": "model.embeddings.norm.weight",
    "encoder.layers.{i}.attention_norm.weight": "model.layers.{i}.attn_norm.weight",
    "encoder.layers.{i}.attention.qkv.weight": "model.layers.{i}.attn.Wqkv.weight",
    "encoder.layers.{i}.attention.out.weight": "model.layers.{i}.attn.Wo.weight",
    "encoder.layers.{i}.mlp_norm.weight": "model.layers.{i}.mlp_norm.weight",
    "encoder.layers.{i}.mlp_in.weight": "model.layers.{i}.mlp.Wi.weight",
    "encoder.layers.{i}.mlp_out.weight": "model.layers.{i}.mlp.Wo.weight",
    "encoder.final_norm.weight": "model.final_norm.weight",
    "task.dense.weight": "head.dense.weight",
    "task.norm.weight": "head.norm.weight",
    "task.out.weight": "classifier.weight",
    "task.out.bias": "classifier.bias",
}
MODERNBERT_VOCABULARY = {
    "vocabulary.dense.weight": "head.dense.weight",
    "vocabulary.norm.weight": "head.norm.weight",
    "vocabulary.out.weight": "model.embeddings.tok_embeddings.weight",  # tied in the published models
    "vocabulary.out.bias": "decoder.bias",
}
_BERT_LAYER = {
    "attention.out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "mlp_in": "intermediate.dense",
    "mlp_out": "output.dense",
    "mlp_norm": "output.LayerNorm",
}
BERT = {
    "encoder.tokens.weight": "bert.embeddings.word_embeddings.weight",
    "encoder.positions.weight": "bert.embeddings.position_embeddings.weight",
    "encoder.types.weight": "bert.embeddings.token_type_embeddings.weight",
    **{f"encoder.norm.{kind}": f"bert.embeddings.LayerNorm.{kind}" for kind in ("weight", "bias")},
    **{
        f"encoder.layers.{{i}}.{ours}.{kind}": f"bert.encoder.layer.{{i}}.{theirs}.{kind}"
        for ours, theirs in _BERT_LAYER.items()
        for kind in ("weight", "bias")
    },
    "task.dense.weight": "bert.pooler.dense.weight",
    "task.dense.bias": "bert.pooler.dense.bias",
    "task.out.weight": "classifier.weight",
    "task.out.bias": "classifier.bias",
}
BERT_VOCABULARY = {
    "vocabulary.dense.weight": "cls.predictions.transform.dense.weight",
    "vocabulary.dense.bias": "cls.predictions.transform.dense.bias",
    "vocabulary.norm.weight": "cls.predictions.transform.LayerNorm.weight",
    "vocabulary.norm.bias": "cls.predictions.transform.LayerNorm.bias",
    "vocabulary.out.bias": "cls.predictions.bias",
}
ROBERTA = {ours: theirs.replace("bert.", "roberta.", 1) for ours, theirs in BERT.items()} | {
    f"task.{ours}.{kind}": f"classifier.{theirs}.{kind}"
    for ours, theirs in (("dense", "dense"), ("out", "out_proj"))
    for kind in ("weight", "bias")
}
ROBERTA_VOCABULARY = {
    ours: theirs.replace("cls.predictions.transform", "lm_head").replace("LayerNorm", "layer_norm")
    for ours, theirs in BERT_VOCABULARY.items()
} | {"vocabulary.out.bias": "lm_head.bias"}
_POSITIONS = "encoder.positions.weight"
_QKV = "encoder.layers.{i}.attention.qkv"
_PARTS = ("query", "key", "value")


def _tables(shape: Shape) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """Names of encoder and task head, and of the vocabulary head."""
    if shape.rotary:
        return MODERNBERT, MODERNBERT_VOCABULARY
    return (ROBERTA, ROBERTA_VOCABULARY) if shape.skipped else (BERT, BERT_VOCABULARY)


def _parts_of(shape: Shape, layer: int, kind: str) -> list[str]:
    """Stock names of a layer's query, key and value."""
    family = "roberta" if shape.skipped else "bert"
    return [f"{family}.encoder.layer.{layer}.attention.self.{part}.{kind}" for part in _PARTS]


def _spread(table: Mapping[str, str], shape: Shape) -> dict[str, str]:
    """The table with `{i}` written out for each layer; the first layer of ModernBERT has no attention norm."""
    found = {}
    for ours, theirs in table.items():
        for i in range(shape.layers if "{i}" in ours else 1):
            if not (shape.rotary and i == 0 and ours.endswith("attention_norm.weight")):
                found[ours.replace("{i}", str(i))] = theirs.replace("{i}", str(i))
    return found


def to_stock(weights: Mapping[str, Tensor], shape: Shape) -> dict[str, Tensor]:
    """Encoder and task head under the names of the stock sequence classifier of the shape's kind."""
    table = _spread(_tables(shape)[0], shape)
    stock = {theirs: weights[ours].contiguous() for ours, theirs in table.items()}
    if not shape.rotary:
        for i in range(shape.layers):
            for kind in ("weight", "bias"):
                parts = weights[f"{_QKV.replace('{i}', str(i))}.{kind}"].chunk(3)
                for name, part in zip(_parts_of(shape, i, kind), parts, strict=True):
                    stock[name] = part.contiguous()
        places = stock[table[_POSITIONS]]
        stock[table[_POSITIONS]] = torch.cat((places.new_zeros(shape.skipped, shape.hidden), places))
    return stock


def from_stock(stock: Mapping[str, Tensor], shape: Shape) -> dict[str, Tensor]:
    """Encoder and, where it is there, vocabulary head of a published masked language model, under our names.

    Raises InvalidRecipe if the encoder is not whole.
    """
    named = {modern_name(name): tensor for name, tensor in stock.items()}
    table, heads = _tables(shape)
    encoder = {ours: theirs for ours, theirs in table.items() if ours.startswith("encoder.")}
    vocabulary = _spread(heads, shape)
    found = {ours: _lookup(named, theirs) for ours, theirs in _spread(encoder, shape).items()}
    if not shape.rotary:
        for i in range(shape.layers):
            for kind in ("weight", "bias"):
                parts = [_lookup(named, name) for name in _parts_of(shape, i, kind)]
                found[f"{_QKV.replace('{i}', str(i))}.{kind}"] = torch.cat(parts)
        found[_POSITIONS] = found[_POSITIONS][shape.skipped :]
    if all(theirs in named for theirs in vocabulary.values()):
        found |= {ours: named[theirs] for ours, theirs in vocabulary.items()}
    return {name: tensor.float() for name, tensor in found.items()}


def modern_name(name: str) -> str:
    """Early BERT files call a norm's weight and bias gamma and beta."""
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def _lookup(named: Mapping[str, Tensor], name: str) -> Tensor:
    for candidate in (name, name.split(".", 1)[1]):  # a bare encoder is saved without the model's prefix
        if candidate in named:
            return named[candidate]
    raise InvalidRecipe(
        f"the published model lacks '{name}'; model.init takes BERT, RoBERTa and ModernBERT class encoders"
    )
