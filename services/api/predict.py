"""Predictions on exported models: ONNX and the tokenizer file, without torch."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tlm_core.artifacts import ArtifactStore, ManifestRef
from tlm_core.errors import CorruptArtifact, InvalidRequest
from tlm_core.tasks.metrics import SINGLE_LABEL
from tlm_core.tasks.types import TASK_TYPES, TaskType

if TYPE_CHECKING:
    from onnxruntime import InferenceSession
    from tokenizers import Tokenizer

_BATCH = 32


@dataclass(frozen=True)
class Model:
    """An exported classifier, ready to run. labels: in the order of the model's outputs; pair: takes two texts a row.

    size: bytes of its files. type: without classes the one output is a value, which `labels` names."""

    session: InferenceSession
    tokenizer: Tokenizer
    labels: tuple[str, ...]
    pair: bool
    size: int
    type: TaskType = TASK_TYPES[SINGLE_LABEL]

    def probabilities(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> NDArray[np.float32]:
        """(texts, labels) probabilities, or (texts, 1) values of a regression model, one row per text (and pair).

        A text alone or in a batch gives the same result except for rounding."""
        if not texts:
            return np.zeros((0, len(self.labels)), np.float32)
        rows = list(texts) if pairs is None else list(zip(texts, pairs, strict=True))
        # Texts of like length side by side: padding costs as much time as text.
        order = sorted(range(len(rows)), key=lambda i: len(texts[i]) + (len(pairs[i]) if pairs else 0))
        found = np.empty((len(rows), len(self.labels)), np.float32)
        for start in range(0, len(order), _BATCH):
            chosen = order[start : start + _BATCH]
            found[chosen] = self._run([rows[i] for i in chosen])
        return found

    def _run(self, rows: Sequence[Any]) -> NDArray[np.float32]:
        encoded = self.tokenizer.encode_batch(rows)
        columns = {
            "input_ids": np.array([e.ids for e in encoded], np.int64),
            "attention_mask": np.array([e.attention_mask for e in encoded], np.int64),
            "token_type_ids": np.array([e.type_ids for e in encoded], np.int64),
        }
        wanted = {one.name for one in self.session.get_inputs()}
        logits = self.session.run(None, {name: array for name, array in columns.items() if name in wanted})[0]
        if not self.type.has_classes:
            return np.asarray(logits, np.float32)
        scaled = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(scaled / scaled.sum(axis=1, keepdims=True), np.float32)


def load_model(folder: Path) -> Model:
    """The classifier in an export artifact: `model.onnx`, `labels.json` and `model/`. Raises CorruptArtifact."""
    from onnxruntime import InferenceSession, SessionOptions
    from tokenizers import Tokenizer

    try:
        facts = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
        config = json.loads((folder / "model" / "config.json").read_text(encoding="utf-8"))
        tokenizer = Tokenizer.from_file(str(folder / "model" / "tokenizer.json"))
        pad = int(config["pad_token_id"])
        tokenizer.enable_truncation(int(facts["max_length"]), strategy="longest_first")
        tokenizer.enable_padding(pad_id=pad, pad_token=tokenizer.id_to_token(pad))
        labels, pair = tuple(str(label) for label in facts["labels"]), bool(facts["pair"])
        size = sum((folder / name).stat().st_size for name in ("model.onnx", "model/tokenizer.json"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptArtifact(f"the exported model cannot be read ({error}); run the job again") from error
    options = SessionOptions()
    options.log_severity_level = 3
    session = InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    return Model(session, tokenizer, labels, pair, size, TASK_TYPES[str(facts.get("task_type", SINGLE_LABEL))])


class Predictor:
    """Keeps models that were used lately ready, the least lately used one leaving first when they grow too large.

    capacity: bytes of all models together; the one in use may be larger alone. Thread-safe.
    """

    def __init__(self, artifacts: ArtifactStore, *, capacity: int, load: Callable[[Path], Model] = load_model) -> None:
        self._artifacts = artifacts
        self._capacity = capacity
        self._load = load
        self._models: OrderedDict[str, Model] = OrderedDict()
        self._lock = threading.Lock()
        self._loading: dict[str, threading.Lock] = {}

    def predict(
        self, export: ManifestRef, texts: Sequence[str], pairs: Sequence[str] | None
    ) -> tuple[tuple[str, ...], NDArray[np.float32]]:
        """The labels, and (texts, labels) probabilities; a single label names a regression target, whose
        predicted value replaces the probability. Raises InvalidRequest, CorruptArtifact."""
        model = self.model(export)
        if model.pair and pairs is None:
            raise InvalidRequest("this model takes two texts a row; give the second ones as 'pairs'")
        if not model.pair and pairs is not None:
            raise InvalidRequest("this model takes single texts; leave 'pairs' out")
        if pairs is not None and len(pairs) != len(texts):
            raise InvalidRequest(f"there are {len(texts)} texts but {len(pairs)} pairs; give one pair for each text")
        return model.labels, model.probabilities(texts, pairs)

    def model(self, export: ManifestRef) -> Model:
        """The model of an export artifact; loaded once, by whoever asks first."""
        with self._lock:
            if found := self._models.get(export.digest):
                self._models.move_to_end(export.digest)
                return found
            loading = self._loading.setdefault(export.digest, threading.Lock())
        with loading:
            with self._lock:
                found = self._models.get(export.digest)
            if found is None:
                found = self._load(self._artifacts.localize(export))
                with self._lock:
                    self._models[export.digest] = found
                    self._loading.pop(export.digest, None)
                    while len(self._models) > 1 and sum(m.size for m in self._models.values()) > self._capacity:
                        self._models.popitem(last=False)
            return found
