"""Models for predictions: loaded once, evicted by size, the same answer alone or in a batch."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from services.api.predict import Predictor
from tests.contract.job_results import make_export
from tlm_core.artifacts import ManifestRef
from tlm_core.artifacts.store import ArtifactStore
from tlm_core.errors import CorruptArtifact, InvalidRequest
from tlm_core.serving import Model, load_model


@pytest.fixture
def artifacts(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "storage"), tmp_path / "cache")


def exported(artifacts: ArtifactStore, tmp_path: Path, name: str, **how: Any) -> ManifestRef:
    folder = tmp_path / f"made-{name}"
    make_export(folder, **how)
    return artifacts.write(f"default/{name}", folder, artifact=name, stage="export")


def test_batching_does_not_change_probabilities(artifacts: ArtifactStore, tmp_path: Path) -> None:
    model = load_model(artifacts.localize(exported(artifacts, tmp_path, "a")))
    texts = ["good " * (n % 7) + "bad " * (n % 3) + "film" for n in range(80)]
    together = model.probabilities(texts)
    for number in (0, 5, 41, 79):
        np.testing.assert_allclose(model.probabilities([texts[number]])[0], together[number], atol=1e-6)
    assert model.probabilities([]).shape == (0, 2)


def test_long_texts_are_truncated(artifacts: ArtifactStore, tmp_path: Path) -> None:
    model = load_model(artifacts.localize(exported(artifacts, tmp_path, "a")))
    cut, whole = model.probabilities(["good " * 6 + "bad " * 50, "good " * 6])
    np.testing.assert_allclose(cut, whole, atol=1e-6)


def test_pair_model_requires_pairs(artifacts: ArtifactStore, tmp_path: Path) -> None:
    predictor = Predictor(artifacts, capacity=1 << 30)
    pairs = exported(artifacts, tmp_path, "pairs", pair=True)
    with pytest.raises(InvalidRequest, match="pairs of texts"):
        predictor.predict(pairs, ["good"], None)
    with pytest.raises(InvalidRequest, match="1 values in 'texts' but 2 in 'pairs'"):
        predictor.predict(pairs, ["good"], ["a", "b"])
    _, predictions = predictor.predict(pairs, ["film", "film"], ["good", "bad"])
    assert [prediction.label for prediction in predictions] == ["good", "bad"]


def test_folder_without_a_model_is_an_error_that_names_the_files(tmp_path: Path) -> None:
    with pytest.raises(CorruptArtifact, match=r"holds no model .* it has no labels\.json and no model\.onnx"):
        load_model(tmp_path)


def test_unreadable_model_raises_corrupt_artifact(tmp_path: Path) -> None:
    for name in ("labels.json", "model.onnx"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(CorruptArtifact, match="cannot be read"):
        load_model(tmp_path)


@pytest.mark.parametrize("name", ["model.onnx", "model/tokenizer.json"])
def test_damaged_file_of_a_model_raises_corrupt_artifact(tmp_path: Path, name: str) -> None:
    make_export(tmp_path / "model")
    file = tmp_path / "model" / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(CorruptArtifact, match=r"cannot be read: .* Download it again\."):
        load_model(tmp_path / "model")


class Loader:
    """Counts loads. Each model has `size` bytes."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.loaded: list[str] = []
        self.lock = threading.Lock()

    def __call__(self, folder: Path) -> Model:
        time.sleep(0.01)
        with self.lock:
            self.loaded.append(folder.name)
        return Model(cast(Any, None), None, None, ("a",), False, self.size)


def test_concurrent_requests_load_a_model_once(artifacts: ArtifactStore, tmp_path: Path) -> None:
    loader = Loader(10)
    predictor = Predictor(artifacts, capacity=100, load=loader)
    ref = exported(artifacts, tmp_path, "a")
    with ThreadPoolExecutor(16) as pool:
        models = list(pool.map(lambda _: predictor.model(ref), range(32)))
    assert len(set(map(id, models))) == len(loader.loaded) == 1


def test_least_recently_used_model_is_dropped_at_capacity(artifacts: ArtifactStore, tmp_path: Path) -> None:
    loader = Loader(40)
    predictor = Predictor(artifacts, capacity=100, load=loader)
    refs = {name: exported(artifacts, tmp_path, name) for name in "abc"}
    for name in "abaca":
        predictor.model(refs[name])
    assert loader.loaded == ["a", "b", "c"], "a stayed, for it was used between"
    predictor.model(refs["b"])
    assert loader.loaded == ["a", "b", "c", "b"]


def test_model_larger_than_the_cache_still_predicts(artifacts: ArtifactStore, tmp_path: Path) -> None:
    loader = Loader(1000)
    predictor = Predictor(artifacts, capacity=100, load=loader)
    ref = exported(artifacts, tmp_path, "a")
    assert predictor.model(ref) is predictor.model(ref)
