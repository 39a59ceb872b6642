"""Predictions on the models of jobs, with a cache of loaded models."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

from tlm_core.artifacts import ManifestRef
from tlm_core.artifacts.store import ArtifactStore
from tlm_core.errors import InvalidRequest
from tlm_core.serving import Model, load_model
from tlm_core.wire import Prediction


class Predictor:
    """Predicts with the models of jobs, and caches loaded models. Thread-safe.

    capacity: maximum size of all cached models in bytes. If the models exceed it, the cache drops the least recently
    used models. The last loaded model always stays.
    """

    def __init__(self, artifacts: ArtifactStore, *, capacity: int, load: Callable[[Path], Model] = load_model) -> None:
        self._artifacts = artifacts
        self._capacity = capacity
        self._load = load
        self._models: OrderedDict[str, Model] = OrderedDict()
        self._lock = threading.Lock()
        self._loading: dict[str, threading.Lock] = {}

    def predict(
        self,
        export: ManifestRef,
        texts: Sequence[str],
        pairs: Sequence[str] | None,
        min_confidence: float | None = None,
    ) -> tuple[Model, tuple[Prediction, ...]]:
        """Return the model, and one prediction for each text in order. Raises InvalidRequest, CorruptArtifact.

        export: the artifact of the model. pairs: for a model of text pairs, the second text of each pair.
        min_confidence: a text whose highest probability is lower gets no label.
        """
        model = self.model(export)
        if min_confidence is not None and not model.type.has_classes:
            raise InvalidRequest("This model predicts a number, which has no probability. Omit 'min_confidence'.")
        rows = model.probabilities(texts, pairs).tolist()
        return model, tuple(_prediction(model, row, min_confidence) for row in rows)

    def model(self, export: ManifestRef) -> Model:
        """Return the model in an artifact. Concurrent requests load the model once."""
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


def _prediction(model: Model, row: list[float], min_confidence: float | None) -> Prediction:
    """Return the prediction for one text. row: a probability for each label, or the predicted number alone."""
    if not model.type.has_classes:
        return Prediction(label=model.labels[0], value=row[0])
    best = max(range(len(row)), key=row.__getitem__)
    abstained = min_confidence is not None and row[best] < min_confidence
    return Prediction(
        label=None if abstained else model.labels[best],
        probability=row[best],
        probabilities=dict(zip(model.labels, row, strict=True)),
        abstained=abstained,
    )
