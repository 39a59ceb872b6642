"""Models of the original TLM release (`yxchar/tlm-TASK-SCALE-scale`) as folders that stock `transformers` loads.

The release keeps the state of a class of its own: a BERT encoder without pooler (`bert.*`), its masked language model's
head (`cls.*`), and the task's head on the first token, `cls_layer.0`, GELU, `cls_layer.2` (src/model.py of the
release). BERT's stock classifier ends its pooler in tanh and so cannot answer as the release does; ELECTRA's stock
classifier is the same encoder with just that head.
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
# Longest text of the release's runs but for one task (its scripts).
_LENGTH = 128


def stock_form(source: str, folder: Path) -> Path | None:
    """The model converted into `folder` if it is of the release's layout, None if it is of another.

    Raises NotFound, Unavailable, and InvalidRequest for a broken one.
    """
    # Stock classifiers name a class of their own; only where this one stands need the weights be looked at.
    if read_config(fetch_config(source), source).get("architectures") != ["BertForMaskedLM"]:
        return None
    if not any(name.startswith("cls_layer.") for name in read_weights(fetch(source), source)):
        return None
    return convert(source, folder)


def convert(source: str, folder: Path, labels: Sequence[str] | None = None) -> Path:
    """Write `hub:ID` or a local folder of the release's layout as a stock sequence classifier; returns `folder`.

    labels: names in the order of the head's outputs; by default their numbers, as in the release's data sets.
    Raises NotFound, Unavailable, and InvalidRequest for a model of another layout or with another number of labels.
    """
    from transformers import AutoTokenizer

    found = fetch(source, *TOKENIZER)
    config = read_config(found, source)
    tensors = _renamed(read_weights(found, source), source)
    outputs = len(tensors["classifier.out_proj.weight"])
    labels = [str(number) for number in range(outputs)] if labels is None else list(labels)
    if len(labels) != outputs:
        raise InvalidRequest(f"'{source}' tells {outputs} labels apart, not {len(labels)}; name as many")
    folder.mkdir(parents=True, exist_ok=True)
    _electra(config, labels, source).save_pretrained(folder)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(found), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise NotFound(f"the tokenizer of '{source}' cannot be loaded: {error}") from error
    task = known(source)
    tokenizer.model_max_length = min(task.max_length if task else _LENGTH, config["max_position_embeddings"])
    tokenizer.save_pretrained(str(folder))
    (folder / "README.md").write_text(_card(source, labels, task), encoding="utf-8")
    return folder


def known(source: str) -> KnownTask | None:
    """The task of the paper that a model was trained for, by the name that the release gave it."""
    match = _named(source)
    return KNOWN_TASKS.get(match["task"]) if match else None


def _named(source: str) -> re.Match[str] | None:
    """Task and scale in the name of a hub id (a revision left out) or of a folder."""
    return _NAME.fullmatch(source.rstrip("/").rsplit("/", 1)[-1].partition("@")[0])


def _renamed(release: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Encoder and task head under ELECTRA's names. Raises InvalidRequest if the head or the encoder is not there."""
    stock: dict[str, Tensor] = {}
    for name, tensor in release.items():
        name = modern_name(name)
        head = next((prefix for prefix in _HEAD if name.startswith(prefix)), None)
        if head:
            stock[name.replace(head, _HEAD[head])] = tensor.float().contiguous()
        elif name.startswith("bert.") and not name.endswith("position_ids") and ".pooler." not in name:
            stock[name.replace("bert.", "electra.", 1)] = tensor.float().contiguous()
    wanted = {f"{head}{kind}" for head in _HEAD.values() for kind in ("weight", "bias")}
    missing = sorted((wanted | {"electra.embeddings.word_embeddings.weight"}) - stock.keys())
    if missing:
        raise InvalidRequest(
            f"'{source}' is no model of the TLM release (it lacks what would become {missing[0]}); "
            "a stock classifier needs no conversion"
        )
    return stock


def _electra(config: Mapping[str, Any], labels: Sequence[str], source: str) -> Any:
    """ELECTRA's configuration of the release's BERT. Raises InvalidRequest where the two cannot agree."""
    from transformers import ElectraConfig

    if config.get("model_type") != "bert" or config.get("position_embedding_type", "absolute") != "absolute":
        raise InvalidRequest(f"'{source}' is no plain BERT, as all models of the release are")
    kept = (
        "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act",
        "hidden_dropout_prob", "attention_probs_dropout_prob", "max_position_embeddings", "type_vocab_size",
        "layer_norm_eps", "pad_token_id",
    )  # fmt: skip
    return ElectraConfig(
        architectures=["ElectraForSequenceClassification"],
        embedding_size=config["hidden_size"],
        id2label=dict(enumerate(labels)),
        label2id={label: number for number, label in enumerate(labels)},
        **{name: config[name] for name in kept if name in config},
    )


def _card(source: str, labels: Sequence[str], task: KnownTask | None) -> str:
    scale = _named(source)
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-classification",
        "---",
        f"# {source.removeprefix('hub:')}, converted",
        "",
        "A model of the TLM release (arXiv 2111.04130) under the names of ElectraForSequenceClassification, which has",
        "the same encoder and the same head; no weight was changed. Its terms are those of the original.",
        "",
        f"Labels: {', '.join(labels)} (the release numbers them).",
    ]
    if task and scale:
        lines += ["", f"Score that its authors give: {task.released[scale['scale']]} ({task.metric}, {task.title})."]
    return "\n".join([*lines, ""])
