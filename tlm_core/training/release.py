"""Conversion of models of the original TLM release (`yxchar/tlm-TASK-SCALE-scale`) to stock classifiers.

A released model has a BERT encoder without pooler (`bert.*`), a masked language modeling head (`cls.*`), and a task
head on the first token (`cls_layer.0`, GELU, `cls_layer.2`). BERT's stock classifier cannot compute this task head,
because it has a pooler with tanh. ELECTRA's stock classifier has BERT's encoder and exactly this task head.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from tlm_core.errors import InvalidRequest, NotFound
from tlm_core.hub import TOKENIZER
from tlm_core.tasks.known import KNOWN_TASKS, KnownTask
from tlm_core.training.architectures import Shape, architecture_of
from tlm_core.training.architectures.base import with_bias
from tlm_core.training.names import from_stock, to_stock
from tlm_core.training.published import fetch, fetch_config, read_config, read_weights, shape_of

_HEAD = {"task.dense": "cls_layer.0", "task.out": "cls_layer.2"}
_NAME = re.compile(r"tlm-(?P<task>.+)-(?P<scale>small|medium|large)-scale")
_LENGTH = 128  # maximum tokens of a text in the release's scripts, except for one task


def stock_form(source: str, folder: Path) -> Path | None:
    """Convert a model of the TLM release to a stock classifier in `folder`. Return `folder`, or None for another model.

    Raises NotFound, Unavailable if the hub does not answer, and InvalidRequest for a broken model.
    """
    # The config of a stock classifier names another class, so this function does not read its weights.
    if read_config(fetch_config(source), source).get("architectures") != ["BertForMaskedLM"]:
        return None
    if not any(name.startswith("cls_layer.") for name in read_weights(fetch(source), source)):
        return None
    return convert(source, folder)


def convert(source: str, folder: Path, labels: Sequence[str] | None = None) -> Path:
    """Write a released model, from `hub:ID` or a local folder, as a stock classifier. Return `folder`.

    labels: names in the order of the head's outputs; by default their numbers, as in the datasets of the release.
    Raises NotFound, Unavailable, and InvalidRequest for a model of another layout or with another number of labels.
    """
    from transformers import AutoTokenizer

    original = fetch(source, *TOKENIZER)
    config = read_config(original, source)
    shape, weights = _as_electra(config, read_weights(original, source), source)
    labels = [str(number) for number in range(shape.labels)] if labels is None else list(labels)
    if len(labels) != shape.labels:
        raise InvalidRequest(
            f"'{source}' has {shape.labels} labels, but {len(labels)} names were given. Give {shape.labels} names."
        )
    folder.mkdir(parents=True, exist_ok=True)
    ids = {"pad": config.get("pad_token_id", 0)}
    architecture_of(shape).stock_config(shape, labels, ids).save_pretrained(folder)
    save_file(to_stock(weights, shape), folder / "model.safetensors", metadata={"format": "pt"})
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(original), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise NotFound(f"Cannot load the tokenizer of '{source}': {error}. Check its tokenizer files.") from error
    task = known(source)
    tokenizer.model_max_length = min(task.max_length if task else _LENGTH, config["max_position_embeddings"])
    tokenizer.save_pretrained(str(folder))
    (folder / "README.md").write_text(_card(source, labels, task), encoding="utf-8")
    return folder


def known(source: str) -> KnownTask | None:
    """Return the task in the name of a released model, such as `tlm-sciie-small-scale`; None for another name."""
    match = _name_parts(source)
    return KNOWN_TASKS.get(match["task"]) if match else None


def _name_parts(source: str) -> re.Match[str] | None:
    """Return a match with the groups `task` and `scale` of a released model's folder or hub id; else None."""
    return _NAME.fullmatch(source.rstrip("/").rsplit("/", 1)[-1].partition("@")[0])


def _as_electra(
    config: Mapping[str, Any], release: Mapping[str, Tensor], source: str
) -> tuple[Shape, dict[str, Tensor]]:
    """Return a released model as ELECTRA: shape, and weights by our names. Raises InvalidRequest for other models."""
    head = {ours: release.get(theirs) for ours, theirs in with_bias(_HEAD).items()}
    if config.get("model_type") != "bert" or any(tensor is None for tensor in head.values()):
        raise InvalidRequest(
            f"'{source}' is not a model of the TLM release. Expected a BERT with the weights "
            f"{', '.join(_HEAD.values())}. If transformers loads the model as a classifier, use it without conversion."
        )
    shape = shape_of(dict(config), source)
    weights = from_stock(release, shape) | {name: tensor.float() for name, tensor in head.items() if tensor is not None}
    labels, dropout = len(weights["task.out.weight"]), config.get("hidden_dropout_prob", 0.1)
    return replace(shape, architecture="electra", labels=labels, dropout=dropout), weights


def _card(source: str, labels: Sequence[str], task: KnownTask | None) -> str:
    scale = _name_parts(source)
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-classification",
        "---",
        f"# {source.removeprefix('hub:')}, converted",
        "",
        "A model of the TLM release (arXiv 2111.04130) in the form of ElectraForSequenceClassification, which has the",
        "same encoder and the same head. No weight was changed. The license of the original applies.",
        "",
        f"Labels: {', '.join(labels)} (numbers in the release).",
    ]
    if task and scale:
        lines += ["", f"Score in the paper: {task.released[scale['scale']]} ({task.metric}, {task.title})."]
    return "\n".join([*lines, ""])
