"""Starting from a published encoder (`model.init` of the recipe) instead of from scratch."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tlm_core.errors import InvalidRecipe, NotFound
from tlm_core.hub import HUB, model_folder
from tlm_core.training.model import Shape
from tlm_core.training.names import from_stock

WHOLE, INDEX, PICKLED = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"


def fetch(source: str, *more: str) -> Path:
    """Folder of `hub:ID[@REVISION]` (downloaded if need be) or of a local path, with config and weights.

    more: patterns of other files to download from the hub. Raises NotFound, and Unavailable if the hub does not answer.
    """
    folder = fetch_config(source, WHOLE, "model-*.safetensors", INDEX, *more)
    if source.startswith(HUB) and not any((folder / name).exists() for name in (WHOLE, INDEX)):
        folder = fetch_config(source, PICKLED, *more)
    return folder


def fetch_config(source: str, *more: str) -> Path:
    """Folder of `hub:ID` or of a local path with at least its config, and what fits `more`. Raises as `fetch` does."""
    folder = model_folder(source, "config.json", *more)
    if not (folder / "config.json").exists():
        raise NotFound(f"'{source}' has no config.json; give a folder in Hugging Face layout, or hub:OWNER/NAME")
    return folder


def read_config(folder: Path, source: str) -> dict[str, Any]:
    """config.json of a published model. Raises InvalidRecipe."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidRecipe(f"the config.json of '{source}' cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise InvalidRecipe(f"the config.json of '{source}' is no JSON object")
    return config


def read_weights(folder: Path, source: str) -> dict[str, Tensor]:
    """All tensors of a published model: safetensors in one file or several, else an older file of plain tensors.

    Code in a pickled file is never run. Raises InvalidRecipe if there are no weights, or none that can be read so.
    """
    try:
        if (folder / WHOLE).exists():
            return load_file(folder / WHOLE)
        if (folder / INDEX).exists():
            parts = sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
            return {name: tensor for part in parts for name, tensor in load_file(folder / Path(part).name).items()}
        if (folder / PICKLED).exists():
            return dict(torch.load(folder / PICKLED, map_location="cpu", weights_only=True))
    except (OSError, ValueError, KeyError, RuntimeError, pickle.UnpicklingError, SafetensorError) as error:
        raise InvalidRecipe(f"the weights of '{source}' cannot be read: {error}") from error
    raise InvalidRecipe(f"'{source}' has neither {WHOLE} nor {PICKLED}; only PyTorch's weights are read")


def load(source: str, *, labels: int, vocab: int, max_length: int, dropout: float) -> tuple[Shape, dict[str, Tensor]]:
    """Shape and weights (encoder, and vocabulary head if it has one) of a BERT, RoBERTa or ModernBERT class encoder.

    Raises NotFound, Unavailable, or InvalidRecipe for another architecture or a vocabulary that is not the tokenizer's.
    """
    folder = fetch(source)
    config = read_config(folder, source)
    own = shape_of(config, source)
    if config["vocab_size"] < vocab:
        raise InvalidRecipe(
            f"'{source}' knows {config['vocab_size']} tokens but the tokenizer has {vocab}; "
            "set tokenizer.source to the same model"
        )
    shape = replace(own, labels=labels, max_length=max_length, dropout=dropout)
    if shape.positions and shape.positions < max_length:
        raise InvalidRecipe(f"'{source}' has {shape.positions} positions; lower model.max_length from {max_length}")
    return shape, from_stock(read_weights(folder, source), shape)


def shape_of(config: dict[str, Any], source: str) -> Shape:
    """The shape that a published model's config tells, without labels. Raises InvalidRecipe for one we do not take."""
    readers = {"bert": _bert_shape, "roberta": _roberta_shape, "modernbert": _modernbert_shape}
    kind = config.get("model_type")
    if kind not in readers:
        raise InvalidRecipe(f"'{source}' is a '{kind}' model; model.init takes {', '.join(readers)}")
    return readers[kind](config, source)


def _common(config: dict[str, Any]) -> dict[str, Any]:
    return {
        "vocab": config["vocab_size"],
        "labels": 0,
        "layers": config["num_hidden_layers"],
        "hidden": config["hidden_size"],
        "heads": config["num_attention_heads"],
        "intermediate": config["intermediate_size"],
        "max_length": 0,
    }


def _bert_shape(config: dict[str, Any], source: str) -> Shape:
    _refuse_unlike(config, {"hidden_act": "gelu", "position_embedding_type": "absolute", "type_vocab_size": 2}, source)
    return Shape(
        "bert",
        **_common(config),
        eps=config.get("layer_norm_eps", 1e-12),
        pooling="cls",
        positions=config["max_position_embeddings"],
    )


def _roberta_shape(config: dict[str, Any], source: str) -> Shape:
    """RoBERTa is BERT with one kind of text, and positions that count on from the padding's number."""
    _refuse_unlike(config, {"hidden_act": "gelu", "position_embedding_type": "absolute", "type_vocab_size": 1}, source)
    skipped = int(config.get("pad_token_id", 1)) + 1
    return Shape(
        "bert",
        **_common(config),
        eps=config.get("layer_norm_eps", 1e-12),
        pooling="cls",
        positions=config["max_position_embeddings"] - skipped,
        skipped=skipped,
    )


def _refuse_unlike(config: dict[str, Any], wanted: dict[str, Any], source: str) -> None:
    """Raises InvalidRecipe for the first key with another value; what is not written has the library's default."""
    given = {"hidden_act": "gelu", "position_embedding_type": "absolute", "type_vocab_size": 2, **config}
    for key, value in wanted.items():
        if (found := given[key]) != value:
            raise InvalidRecipe(f"'{source}' has {key} {found!r} and not {value!r}; model.init cannot take it")


def _modernbert_shape(config: dict[str, Any], source: str) -> Shape:
    plain = not any(config.get(key) for key in ("attention_bias", "mlp_bias", "norm_bias", "classifier_bias"))
    if not plain or config.get("hidden_activation", "gelu") != "gelu":
        raise InvalidRecipe(f"'{source}' differs from ModernBERT in biases or activation; model.init cannot take it")
    every = config.get("global_attn_every_n_layers", 3)
    count = config["num_hidden_layers"]
    kinds = config.get("layer_types") or ["sliding_attention" if i % every else "full_attention" for i in range(count)]
    rope = config.get("rope_parameters") or {}
    older = {"full_attention": ("global_rope_theta", 160_000.0), "sliding_attention": ("local_rope_theta", 10_000.0)}
    theta = {kind: rope.get(kind, {}).get("rope_theta", config.get(*key)) for kind, key in older.items()}
    half = config.get("local_attention", 128) // 2
    return Shape(
        "modernbert",
        **_common(config),
        eps=config.get("norm_eps", 1e-5),
        pooling=config.get("classifier_pooling", "mean"),
        windows=tuple(None if kind == "full_attention" else half for kind in kinds),
        thetas=tuple(float(theta[kind]) for kind in kinds),
    )
