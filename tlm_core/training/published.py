"""Load the published encoder that the recipe key `model.init` names."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tlm_core.errors import InvalidRecipe, NotFound
from tlm_core.hub import model_folder
from tlm_core.json_files import read_json
from tlm_core.names import HUB
from tlm_core.training.architectures import ARCHITECTURES, Shape
from tlm_core.training.names import from_stock

WEIGHTS, INDEX, PICKLED = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"


def fetch(source: str, *patterns: str) -> Path:
    """Return the folder with config and weights of a published model: `hub:ID[@REVISION]`, or a local path.

    patterns: further files to download. Raises NotFound, and Unavailable if the hub does not answer.
    """
    folder = fetch_config(source, WEIGHTS, "model-*.safetensors", INDEX, *patterns)
    if source.startswith(HUB) and not any((folder / name).exists() for name in (WEIGHTS, INDEX)):
        folder = fetch_config(source, PICKLED, *patterns)
    return folder


def fetch_config(source: str, *patterns: str) -> Path:
    """Return the folder of a model's config and of the files that match `patterns`. Raises the errors of `fetch`."""
    folder = model_folder(source, "config.json", *patterns)
    if not (folder / "config.json").exists():
        raise NotFound(f"'{source}' has no config.json. Give a folder in Hugging Face layout, or hub:OWNER/NAME.")
    return folder


def read_config(folder: Path, source: str) -> dict[str, Any]:
    """Return the config.json of a published model. Raises InvalidRecipe if the file is not a readable JSON object."""
    try:
        config = read_json(folder / "config.json")
    except (OSError, ValueError) as error:
        raise InvalidRecipe(f"Cannot read the config.json of '{source}' ({error}). Check the file.") from error
    if not isinstance(config, dict):
        raise InvalidRecipe(f"The config.json of '{source}' is not a JSON object. Check the file.")
    return config


def read_weights(folder: Path, source: str) -> dict[str, Tensor]:
    """Return the tensors of a published model by name, from one or several safetensors files or from a PyTorch file.

    This function never runs code from a pickled file. Raises InvalidRecipe for missing or unreadable weights.
    """
    try:
        if (folder / WEIGHTS).exists():
            return load_file(folder / WEIGHTS)
        if (folder / INDEX).exists():
            parts = sorted(set(read_json(folder / INDEX)["weight_map"].values()))
            return {name: tensor for part in parts for name, tensor in load_file(folder / Path(part).name).items()}
        if (folder / PICKLED).exists():
            return dict(torch.load(folder / PICKLED, map_location="cpu", weights_only=True))
    except (OSError, ValueError, KeyError, RuntimeError, pickle.UnpicklingError, SafetensorError) as error:
        raise InvalidRecipe(f"Cannot read the weights of '{source}' ({error}). Check the files.") from error
    raise InvalidRecipe(f"'{source}' lacks weights. Choose a model with {WEIGHTS}, {INDEX} or {PICKLED}.")


def load(source: str, *, labels: int, vocab: int, max_length: int, dropout: float) -> tuple[Shape, dict[str, Tensor]]:
    """Return shape and weights of a published encoder under our names, with the vocabulary head if the model has one.

    Raises NotFound, Unavailable, and InvalidRecipe for an unsupported architecture, unreadable files, a vocabulary that
    is too small, or too few positions.
    """
    folder = fetch(source)
    config = read_config(folder, source)
    shape = replace(shape_of(config, source), labels=labels, max_length=max_length, dropout=dropout)
    if shape.vocab < vocab:
        raise InvalidRecipe(
            f"'{source}' has a vocabulary of {shape.vocab} tokens, but the tokenizer has {vocab}. "
            "Set tokenizer.source to the same model."
        )
    if shape.positions and shape.positions < max_length:
        raise InvalidRecipe(
            f"'{source}' has only {shape.positions} positions. "
            f"Lower model.max_length from {max_length} to at most {shape.positions}."
        )
    return shape, from_stock(read_weights(folder, source), shape)


def shape_of(config: dict[str, Any], source: str) -> Shape:
    """Return the shape of a published model, with 0 labels. Raises InvalidRecipe if the config is not supported."""
    name = str(config.get("model_type"))
    if name not in ARCHITECTURES:
        raise InvalidRecipe(
            f"'{source}' is a '{config.get('model_type')}' model. Choose a model of one of these architectures: "
            f"{', '.join(ARCHITECTURES)}."
        )
    architecture = ARCHITECTURES[name]
    try:
        shape = architecture.published_shape(config)
        for key, (value, supported) in architecture.fixed_values(config).items():
            if value != supported:
                raise InvalidRecipe(f"'{source}' has {key} {value!r}. Choose a model with {key} {supported!r}.")
        return shape
    except KeyError as error:
        raise InvalidRecipe(f"The config.json of '{source}' lacks {error}. Check the file.") from error
    except (TypeError, ValueError) as error:
        raise InvalidRecipe(f"The config.json of '{source}' has an invalid value ({error}). Check the file.") from error
