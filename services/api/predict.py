"""Predictions on the models of jobs, with a cache of loaded models."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tlm_core.artifacts import ArtifactStore, ManifestRef
from tlm_core.errors import InvalidRequest
from tlm_core.serving import Model, load_model


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
