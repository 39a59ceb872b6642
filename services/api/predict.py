"""Predictions on exported models: ONNX and the tokenizer file, without torch."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tlm_core.artifacts import ArtifactStore, ManifestRef
from tlm_core.errors import CorruptArtifact, InvalidRequest
from tlm_core.tasks.metrics import SINGLE_LABEL
from tlm_core.tasks.types import TASK_TYPES, TaskType

if TYPE_CHECKING:
    from onnxruntime import InferenceSession
    from tokenizers import Encoding, Tokenizer

_BATCH = 32  # windows


@dataclass(frozen=True)
class Model:
    """A loaded classifier. labels: in the order of the model's outputs; pair: each row has two texts.

    size: bytes of its files. type: without classes the only output is the target, and `labels` holds its name.
    windows: at most so many of a long text are read."""

    session: InferenceSession
    tokenizer: Tokenizer
    labels: tuple[str, ...]
    pair: bool
    size: int
    type: TaskType = TASK_TYPES[SINGLE_LABEL]
    windows: int = 1
    pad: int = 0

    def probabilities(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> NDArray[np.float32]:
        """Return the probabilities of each text, (texts, labels); for a regression model its predictions, (texts, 1).

        Row i belongs to texts[i] (and pairs[i]). Batching changes results only by rounding."""
        if not texts:
            return np.zeros((0, len(self.labels)), np.float32)
        from tlm_core.training.tokenizer import windows_of

        encoded = self.tokenizer.encode_batch(list(texts) if pairs is None else list(zip(texts, pairs, strict=True)))
        cut = [windows_of(encoding, self.windows)[0] for encoding in encoded]
        result = np.empty((len(texts), len(self.labels)), np.float32)
        # Batch texts of equally many windows and similar length, because padding costs as much time as text.
        order = sorted(range(len(texts)), key=lambda i: (len(cut[i]), len(cut[i][0].ids)))
        for count, group in groupby(order, key=lambda i: len(cut[i])):
            members = list(group)
            for start in range(0, len(members), size := max(1, _BATCH // count)):
                batch = members[start : start + size]
                result[batch] = self._run([cut[i] for i in batch])
        return result

    def _run(self, texts: Sequence[Sequence[Encoding]]) -> NDArray[np.float32]:
        """Return the outputs of texts that have equally many windows."""
        shape = (len(texts), len(texts[0]), max(len(window.ids) for windows in texts for window in windows))
        columns = {name: np.zeros(shape, np.int64) for name in ("input_ids", "attention_mask", "token_type_ids")}
        columns["input_ids"][:] = self.pad
        for text, windows in enumerate(texts):
            for place, window in enumerate(windows):
                columns["input_ids"][text, place, : len(window)] = window.ids
                columns["attention_mask"][text, place, : len(window)] = 1
                columns["token_type_ids"][text, place, : len(window)] = window.type_ids
        # The graph reads [batch, windows, length]; that of an older export reads [batch, length].
        inputs = {node.name: len(node.shape) for node in self.session.get_inputs()}
        arrays = {name: columns[name][:, 0] if axes == 2 else columns[name] for name, axes in inputs.items()}
        logits = self.session.run(None, arrays)[0]
        if not self.type.has_classes:
            return np.asarray(logits, np.float32)
        scaled = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(scaled / scaled.sum(axis=1, keepdims=True), np.float32)


def load_model(folder: Path) -> Model:
    """Load the classifier in an export artifact: `model.onnx`, `labels.json`, `model/`. Raises CorruptArtifact."""
    from onnxruntime import InferenceSession, SessionOptions
    from tokenizers import Tokenizer

    from tlm_core.training.tokenizer import cut_into_windows

    try:
        metadata = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
        config = json.loads((folder / "model" / "config.json").read_text(encoding="utf-8"))
        tokenizer = Tokenizer.from_file(str(folder / "model" / "tokenizer.json"))
        pad = int(config["pad_token_id"])
        windows = int(metadata.get("windows", 1))  # of older exports
        cut_into_windows(tokenizer, int(metadata["max_length"]), windows)
        tokenizer.no_padding()
        labels, pair = tuple(str(label) for label in metadata["labels"]), bool(metadata["pair"])
        size = sum((folder / name).stat().st_size for name in ("model.onnx", "model/tokenizer.json"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptArtifact(f"The exported model cannot be read ({error}). Run the job again.") from error
    options = SessionOptions()
    options.log_severity_level = 3
    session = InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    task_type = TASK_TYPES[str(metadata.get("task_type", SINGLE_LABEL))]
    return Model(session, tokenizer, labels, pair, size, task_type, windows, pad)


class Predictor:
    """Caches recently used models. Thread-safe.

    capacity: bytes of all cached models; beyond it the least recently used are dropped, except the one in use.
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
        """The labels, and probabilities of shape (texts, labels). Raises InvalidRequest, CorruptArtifact.

        In regression there is one label, the target's name, and its values replace the probabilities."""
        model = self.model(export)
        if model.pair and pairs is None:
            raise InvalidRequest("This model classifies pairs of texts. Send the second texts as 'pairs'.")
        if not model.pair and pairs is not None:
            raise InvalidRequest("This model classifies single texts. Omit 'pairs'.")
        if pairs is not None and len(pairs) != len(texts):
            raise InvalidRequest(f"The request has {len(texts)} texts but {len(pairs)} pairs. Send one pair per text.")
        return model.labels, model.probabilities(texts, pairs)

    def model(self, export: ManifestRef) -> Model:
        """The model of an export artifact. Concurrent requests load it once."""
        with self._lock:
            if model := self._models.get(export.digest):
                self._models.move_to_end(export.digest)
                return model
            loading = self._loading.setdefault(export.digest, threading.Lock())
        with loading:
            with self._lock:
                model = self._models.get(export.digest)
            if model is None:
                model = self._load(self._artifacts.localize(export))
                with self._lock:
                    self._models[export.digest] = model
                    self._loading.pop(export.digest, None)
                    while len(self._models) > 1 and sum(m.size for m in self._models.values()) > self._capacity:
                        self._models.popitem(last=False)
            return model
