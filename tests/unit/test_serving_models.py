"""Downloaded models: copies with 8-bit weights, and the Python of docs/serving.md."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from tests.checks.docs.blocks import blocks_of
from tests.contract.job_results import make_export, make_linear
from tests.support import ROOT
from tlm_client.cli import app
from tlm_core.errors import Conflict, InvalidRequest
from tlm_core.evaluation.combine import Scales
from tlm_core.linear.graph import write_combined
from tlm_core.linear.model import Features, LinearModel
from tlm_core.linear.ngrams import FAMILIES
from tlm_core.quantization import quantize
from tlm_core.serving import METADATA, MODEL, Model, load_model
from tlm_core.training.architectures import Shape, scratch_shape
from tlm_core.training.graph import Graph, encoder_outputs, save
from tlm_core.training.model import TaskModel
from tlm_core.training.recipe import resolve
from tlm_core.training.state import compact_weights, weights

TEXTS = ["good film", "bad film bad", "film"]


def model_folder(folder: Path, members: int) -> Path:
    """Write an encoder, or an ensemble of several, with random weights."""
    make_export(folder)
    shape = Shape(architecture="modernbert", vocab=512, labels=2, layers=2, hidden=64, heads=2, intermediate=64,
                  max_length=8)  # fmt: skip
    arrays = []
    for seed in range(members):
        torch.manual_seed(seed)
        model = TaskModel(shape)
        tensors = weights(model) if members == 1 else compact_weights(weights(model))
        arrays.append({name: tensor.float().numpy() for name, tensor in tensors.items()})
    graph = Graph()
    logits, inputs = encoder_outputs(graph, shape, arrays)
    graph.outputs(logits, 2)
    save(graph, inputs, 2, folder / MODEL)
    facts = json.loads((folder / METADATA).read_text())
    facts["model"] = "encoder" if members == 1 else "ensemble"
    (folder / METADATA).write_text(json.dumps(facts))
    return folder


@pytest.mark.parametrize("members", [1, 2], ids=["encoder", "ensemble"])
def test_8_bit_copy_is_smaller_and_predicts_nearly_the_same(tmp_path: Path, members: int) -> None:
    folder = model_folder(tmp_path / "model", members)
    result = CliRunner().invoke(app, ["quantize", str(folder), str(tmp_path / "small")])
    assert result.exit_code == 0 and "MB instead of" in result.output, result.output
    before, after = ((path / MODEL).stat().st_size for path in (folder, tmp_path / "small"))
    assert after < before * (0.4 if members == 1 else 0.75)
    both = [load_model(path).probabilities(TEXTS) for path in (folder, tmp_path / "small")]
    np.testing.assert_allclose(both[0], both[1], atol=0.02)


def test_model_refuses_texts_without_their_pairs_and_pairs_without_need(tmp_path: Path) -> None:
    make_export(tmp_path / "model")
    single = load_model(tmp_path / "model")
    with pytest.raises(InvalidRequest, match="expects single texts"):
        single.probabilities(TEXTS, TEXTS)
    with pytest.raises(InvalidRequest, match="expects pairs of texts"):
        replace(single, pair=True).predict(TEXTS)


def test_linear_models_and_existing_folders_are_refused(tmp_path: Path) -> None:
    make_export(tmp_path / "model")
    with pytest.raises(Conflict, match="exists"):
        quantize(tmp_path / "model", tmp_path / "model")
    (tmp_path / "linear").mkdir()
    make_linear(tmp_path / "linear", {"bad": ["bad"], "good": ["good"]})
    with pytest.raises(InvalidRequest, match="has no encoder"):
        quantize(tmp_path / "linear", tmp_path / "small")


def test_failed_quantization_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("tlm_core.quantization.quantize_graph", fail)
    with pytest.raises(OSError, match="No space left"):
        quantize(model_folder(tmp_path / "model", 1), tmp_path / "small")
    assert not (tmp_path / "small").exists()


def test_quantization_keeps_a_folder_that_another_process_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_slowly(folder: Path) -> Model:
        (tmp_path / "small").mkdir()
        (tmp_path / "small" / MODEL).write_bytes(b"other")
        return load_model(folder)

    monkeypatch.setattr("tlm_core.quantization.load_model", load_slowly)
    with pytest.raises(Conflict, match="exists"):
        quantize(model_folder(tmp_path / "model", 1), tmp_path / "small")
    assert (tmp_path / "small" / MODEL).read_bytes() == b"other"


def test_python_of_the_serving_page_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model_folder(tmp_path / "out", 1)
    (tmp_path / "model").symlink_to("out")
    monkeypatch.chdir(tmp_path)
    own, bare, server = (block.text for block in blocks_of(ROOT / "docs" / "serving.md") if block.language == "python")
    names: dict[str, Any] = {}
    for text in (own, bare):
        exec(text, names)
    printed = capsys.readouterr().out.splitlines()
    assert printed[1] in [str([a, b]) for a in ("bad", "good") for b in ("bad", "good")]
    served: dict[str, Any] = {}
    exec(server, served)
    with TestClient(served["app"]) as client:
        (answer,) = client.post("/predict", json={"texts": ["a text to classify"]}).json()
    assert list(answer.values()) == pytest.approx(names["model"].probabilities(["a text to classify"])[0])


def test_bare_code_of_the_serving_page_reads_labels_in_any_locale(tmp_path: Path) -> None:
    model_folder(tmp_path / "out", 1)
    facts = json.loads((tmp_path / "out" / METADATA).read_text())
    (tmp_path / "out" / METADATA).write_text(
        json.dumps({**facts, "labels": ["schön", "schlecht"]}, ensure_ascii=False), encoding="utf-8"
    )
    _, bare, _ = (block.text for block in blocks_of(ROOT / "docs" / "serving.md") if block.language == "python")
    ascii_locale = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-X", "utf8=0", "-c", bare]
    subprocess.run(command, cwd=tmp_path, env={**os.environ, **ascii_locale}, check=True, capture_output=True)


def test_largest_usual_file_of_tiny_has_at_most_20_mb(tmp_path: Path) -> None:
    """Three seeds with as many features as a linear model can have, and 15 labels."""
    draw = np.random.default_rng(0)
    letters = draw.integers(97, 123, (1_500, 60, 6), np.uint8)
    rows = [(b" ".join(word.tobytes() for word in row).decode(),) for row in letters]
    features, _ = Features.learn(rows, FAMILIES)
    assert len(features) == 100_000
    model = LinearModel(features, np.zeros((len(features), 15), np.float32), np.zeros(15, np.float32))
    recipe = resolve("fast", "tiny", {"model.max_length": 128})
    shape = scratch_shape(recipe.model, recipe.tokenizer.vocab_size, 15)
    members = [{name: t.float().numpy() for name, t in compact_weights(weights(TaskModel(shape))).items()}] * 3
    write_combined(shape, members, model, Scales(linear=0.5, encoder=0.5), tmp_path / MODEL)
    assert (tmp_path / MODEL).stat().st_size <= 20e6
