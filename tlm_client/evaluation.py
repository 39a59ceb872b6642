"""Score models on this machine. Importing this module imports torch and transformers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from tlm_client.console import Session
from tlm_core.errors import InvalidDataset, InvalidRequest
from tlm_core.hub import TOKENIZER
from tlm_core.names import HUB
from tlm_core.serving import MODEL, load_model
from tlm_core.tasks.metrics import score
from tlm_core.tasks.options import DatasetOptions
from tlm_core.tasks.task import SPLITS, Task
from tlm_core.tasks.validate import load_task
from tlm_core.training.published import fetch
from tlm_core.training.release import stock_form

_LONGEST = 512
# (texts, second texts or None) → array (texts, labels) of outputs. A regression model has one output.
Outputs = Callable[[Sequence[str], Sequence[str] | None], NDArray[np.float32]]


def load_stock(source: str) -> tuple[list[str], Outputs]:
    """Return the labels of a stock classifier, and the function that computes its outputs.

    source: a folder, or `hub:ID`. No code from the hub runs. A model of the original TLM release is converted first.
    Raises NotFound, InvalidRequest, and Unavailable if the hub does not answer.
    """
    disable_progress_bar()  # tlm has its own progress display
    try:
        with tempfile.TemporaryDirectory(prefix="tlm-release-") as folder:
            name = str(stock_form(source, Path(folder)) or fetch(source, *TOKENIZER))
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
            model = AutoModelForSequenceClassification.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InvalidRequest(
            f"Cannot load the model '{source}' ({error}). Name a folder from `tlm download`, or a stock classifier."
        ) from error
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device).eval()
    # RoBERTa leaves the positions up to that of the padding unused.
    skipped = getattr(getattr(model.base_model, "embeddings", None), "padding_idx", -1) + 1
    positions = getattr(model.config, "max_position_embeddings", _LONGEST) - skipped
    longest = min(tokenizer.model_max_length, positions)

    def outputs(texts: Sequence[str], pairs: Sequence[str] | None) -> NDArray[np.float32]:
        inputs = (list(texts),) if pairs is None else (list(texts), list(pairs))
        encoded = tokenizer(*inputs, truncation=True, max_length=longest, padding=True, return_tensors="pt")
        with torch.inference_mode():
            logits: torch.Tensor = model(**encoded.to(device)).logits
        return logits.float().cpu().numpy()

    return [model.config.id2label[label] for label in range(model.config.num_labels)], outputs


def _load(source: str, task: Task) -> tuple[list[str], Outputs]:
    """Return the labels of a model, and the function that computes its outputs.

    source: a folder of `tlm download`, or a stock model, which reads single texts and text pairs. Raises InvalidRequest
    if a downloaded model and the task differ in text pairs, and what `load_stock` raises.
    """
    folder = Path(source)
    if not (folder / MODEL).is_file():
        return load_stock(source)
    returned = load_model(folder)
    if returned.pair != task.pair:
        inputs = ("single texts", "text pairs")
        problem = f"The dataset has {inputs[task.pair]}, but the model reads {inputs[returned.pair]}."
        raise InvalidRequest(f"{problem} Use a model that was trained on {inputs[task.pair]}.")
    return list(returned.labels), returned.probabilities


def task_of(dataset: str, session: Session) -> Task:
    """Return the task of a dataset: a folder or file, `hub:ID`, or the name or id of an uploaded dataset.

    Raises InvalidDataset, NotFound or Unavailable.
    """
    if dataset.startswith(HUB) or Path(dataset).exists():
        try:
            return load_task(dataset)[0]
        except InvalidDataset as error:
            if any(fault.code == "missing_column" for fault in error.faults):
                raise error.followed_by(
                    "To set a column, upload the dataset with `tlm dataset add`, then pass the name of the dataset."
                ) from error
            raise
    with tempfile.TemporaryDirectory(prefix="tlm-dataset-") as folder, session.client() as client:
        uploaded = client.dataset(dataset)
        files = client.download_dataset(uploaded.id, Path(folder))
        return load_task({file.name.split(".")[0]: file for file in files}, DatasetOptions(**uploaded.options))[0]


def _only(place: str, labels: Sequence[str], others: Sequence[str]) -> str:
    """Return " Only in the model: a, b." with up to 20 labels that `others` lacks, or "". place: such as "model"."""
    missing = [label for label in labels if label not in others]
    return f" Only in the {place}: {', '.join(missing[:20])}." if missing else ""


def evaluate_model(
    source: str,
    task: Task,
    *,
    split: str = "test",
    batch: int = 64,
    on_progress: Callable[[int, int], object] = lambda _done, _total: None,
) -> dict[str, Any]:
    """Return the scores of a stock model or a returned model on one split: the dict of `tlm_core.tasks.metrics.score`.

    Labels of model and task match by name. on_progress: receives the numbers of finished rows and of all rows. Raises
    InvalidRequest for an unknown split, or if model and task differ in labels, task type or use of text pairs.
    """
    if split not in SPLITS:
        raise InvalidRequest(f"Unknown split '{split}'. Valid splits: {', '.join(SPLITS)}.")
    labels, outputs_of = _load(source, task)
    if task.type.has_classes == (len(labels) == 1):
        other = "one number" if task.type.has_classes else "one of several labels"
        raise InvalidRequest(
            f"The dataset has {task.type.target}s, but the model predicts {other}. Use a model of the same task type."
        )
    if task.type.has_classes and set(labels) != set(task.labels):
        raise InvalidRequest(
            f"The labels of model and dataset differ.{_only('model', labels, task.labels)}"
            f"{_only('dataset', task.labels, labels)} Use a model that was trained on the labels of the dataset."
        )
    texts, pairs = task.texts(split), task.text_pairs(split)
    outputs = []
    for start in range(0, len(texts), batch):
        part = slice(start, start + batch)
        outputs.append(outputs_of(texts[part], pairs[part] if pairs is not None else None))
        on_progress(min(start + batch, len(texts)), len(texts))
    predicted = task.type.predict(np.concatenate(outputs))
    if task.type.has_classes:
        predicted = np.array([task.labels.index(label) for label in labels])[predicted]
    return score(task.targets(split), predicted, len(task.labels), task.metric, repeated=task.repeated(split))
