"""Models of the original TLM release (`yxchar/tlm-TASK-SCALE-scale`) as folders that stock `transformers` loads.

The release stores the state of a custom class: a BERT encoder without pooler (`bert.*`), a masked language modeling
head (`cls.*`), and a task head on the first token: `cls_layer.0`, GELU, `cls_layer.2` (src/model.py of the release).
BERT's stock classifier has a pooler with tanh, so it cannot compute this head. ELECTRA's stock classifier is the same
encoder with exactly this head.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from tlm_core.errors import InvalidRequest, NotFound
from tlm_core.hub import TOKENIZER
from tlm_core.tasks.known import KNOWN_TASKS, KnownTask
from tlm_core.training.names import modern_name
from tlm_core.training.published import fetch, fetch_config, read_config, read_weights

_HEAD = {"cls_layer.0.": "classifier.dense.", "cls_layer.2.": "classifier.out_proj."}
_NAME = re.compile(r"tlm-(?P<task>.+)-(?P<scale>small|medium|large)-scale")
_LENGTH = 128  # maximum text length in the release's scripts, except for one task


def stock_form(source: str, folder: Path) -> Path | None:
    """Convert the model into `folder` and return it; return None if the model does not have the release's layout.

    Raises NotFound, Unavailable, and InvalidRequest for a broken model.
    """
    # Stock classifiers name another class, so their weights need not be read.
    if read_config(fetch_config(source), source).get("architectures") != ["BertForMaskedLM"]:
        return None
    if not any(name.startswith("cls_layer.") for name in read_weights(fetch(source), source)):
        return None
    return convert(source, folder)


def convert(source: str, folder: Path, labels: Sequence[str] | None = None) -> Path:
    """Write a model of the release's layout, from `hub:ID` or a local folder, as a stock classifier; return `folder`.

    labels: names in the order of the head's outputs; by default their numbers, as in the release's datasets.
    Raises NotFound, Unavailable, and InvalidRequest for a model of another layout or with another number of labels.
    """
    from transformers import AutoTokenizer

    original = fetch(source, *TOKENIZER)
    config = read_config(original, source)
    tensors = _renamed(read_weights(original, source), source)
    outputs = len(tensors["classifier.out_proj.weight"])
    labels = [str(number) for number in range(outputs)] if labels is None else list(labels)
    if len(labels) != outputs:
        raise InvalidRequest(
            f"'{source}' has {outputs} labels, but {len(labels)} names were given. Give {outputs} names."
        )
    folder.mkdir(parents=True, exist_ok=True)
    _electra(config, labels, source).save_pretrained(folder)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(original), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise NotFound(f"Cannot load the tokenizer of '{source}': {error}") from error
    task = known(source)
    tokenizer.model_max_length = min(task.max_length if task else _LENGTH, config["max_position_embeddings"])
    tokenizer.save_pretrained(str(folder))
    (folder / "README.md").write_text(_card(source, labels, task), encoding="utf-8")
    return folder


def known(source: str) -> KnownTask | None:
    """Return the task of the paper that a released model was trained for, from the model's name."""
    match = _name_parts(source)
    return KNOWN_TASKS.get(match["task"]) if match else None


def _name_parts(source: str) -> re.Match[str] | None:
    """Match task and scale in the name of a folder or of a hub id, without its revision."""
    return _NAME.fullmatch(source.rstrip("/").rsplit("/", 1)[-1].partition("@")[0])


def _renamed(release: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Return encoder and task head under ELECTRA's names. Raises InvalidRequest if either is missing."""
    stock: dict[str, Tensor] = {}
    for name, tensor in release.items():
        name = modern_name(name)
        head = next((prefix for prefix in _HEAD if name.startswith(prefix)), None)
        if head:
            stock[name.replace(head, _HEAD[head])] = tensor.float().contiguous()
        elif name.startswith("bert.") and not name.endswith("position_ids") and ".pooler." not in name:
            stock[name.replace("bert.", "electra.", 1)] = tensor.float().contiguous()
    required = {f"{head}{kind}" for head in _HEAD.values() for kind in ("weight", "bias")}
    missing = sorted((required | {"electra.embeddings.word_embeddings.weight"}) - stock.keys())
    if missing:
        raise InvalidRequest(
            f"'{source}' is not a model of the TLM release: it has no weight for {missing[0]}. "
            "A stock classifier needs no conversion."
        )
    return stock


def _electra(config: Mapping[str, Any], labels: Sequence[str], source: str) -> Any:
    """Return the ELECTRA configuration of the release's BERT. Raises InvalidRequest for another encoder."""
    from transformers import ElectraConfig

    if config.get("model_type") != "bert" or config.get("position_embedding_type", "absolute") != "absolute":
        raise InvalidRequest(f"'{source}' is not a plain BERT, as all models of the TLM release are.")
    fields = (
        "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act",
        "hidden_dropout_prob", "attention_probs_dropout_prob", "max_position_embeddings", "type_vocab_size",
        "layer_norm_eps", "pad_token_id",
    )  # fmt: skip
    return ElectraConfig(
        architectures=["ElectraForSequenceClassification"],
        embedding_size=config["hidden_size"],
        id2label=dict(enumerate(labels)),
        label2id={label: number for number, label in enumerate(labels)},
        **{name: config[name] for name in fields if name in config},
    )


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
