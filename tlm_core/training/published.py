"""Starting from a published encoder (`model.init` of the recipe) instead of from scratch."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from tlm_core.errors import InvalidRecipe, NotFound
from tlm_core.training.model import Shape
from tlm_core.training.names import from_stock


def fetch(source: str) -> Path:
    """Folder of `hub:ID` (downloaded if need be) or of a local path. Raises NotFound."""
    if not source.startswith("hub:"):
        folder = Path(source)
        if not (folder / "config.json").exists():
            raise NotFound(f"'{source}' has no config.json; model.init wants a folder in Hugging Face layout")
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        files = ["config.json", "model.safetensors"]
        return Path(snapshot_download(source.removeprefix("hub:"), allow_patterns=files))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise NotFound(f"the model '{source}' cannot be loaded: {error}") from error


def load(source: str, *, labels: int, vocab: int, max_length: int, dropout: float) -> tuple[Shape, dict[str, Tensor]]:
    """Shape and weights (encoder, and vocabulary head if it has one) of a BERT or ModernBERT class encoder.

    Raises NotFound, or InvalidRecipe for another architecture or a vocabulary that is not the tokenizer's.
    """
    folder = fetch(source)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if not (folder / "model.safetensors").exists():
        raise InvalidRecipe(f"'{source}' has no model.safetensors; only safetensors weights are read")
    readers = {"bert": _bert_shape, "modernbert": _modernbert_shape}
    kind = config.get("model_type")
    if kind not in readers:
        raise InvalidRecipe(f"'{source}' is a '{kind}' model; model.init takes bert and modernbert")
    if config["vocab_size"] < vocab:
        raise InvalidRecipe(
            f"'{source}' knows {config['vocab_size']} tokens but the tokenizer has {vocab}; "
            "set tokenizer.source to the same model"
        )
    shape = replace(readers[kind](config, source), labels=labels, max_length=max_length, dropout=dropout)
    if shape.positions and shape.positions < max_length:
        raise InvalidRecipe(f"'{source}' has {shape.positions} positions; lower model.max_length from {max_length}")
    return shape, from_stock(load_file(folder / "model.safetensors"), shape)


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
    if config.get("hidden_act", "gelu") != "gelu" or config.get("position_embedding_type", "absolute") != "absolute":
        raise InvalidRecipe(f"'{source}' differs from BERT in activation or positions; model.init cannot take it")
    return Shape(
        "bert",
        **_common(config),
        eps=config.get("layer_norm_eps", 1e-12),
        pooling="cls",
        positions=config["max_position_embeddings"],
    )


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
