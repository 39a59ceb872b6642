"""A new encoder architecture is one class and one entry in the table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.unit.training.made import made_prepared, made_selection, made_task, run_chain, tiny
from tlm_core.compression.masks import Mask
from tlm_core.compression.sliced import sliced, widened
from tlm_core.errors import InvalidRecipe
from tlm_core.stages import JOINT
from tlm_core.training.architectures import ARCHITECTURES, scratch_shape
from tlm_core.training.architectures.modernbert import ModernBert
from tlm_core.training.local import run_stage
from tlm_core.training.model import TaskModel, classifier_size, initialize
from tlm_core.training.params import JointParams
from tlm_core.training.published import shape_of
from tlm_core.training.recipe import from_scratch
from tlm_core.training.state import weights


@pytest.mark.parametrize("pair", [False, True])
def test_electra_trains_exports_and_prunes(tmp_path: Path, pair: bool) -> None:
    recipe = tiny(model__architecture="electra", joint__budget__steps=4, finetune__max_steps=4)
    task, selection = made_task(tmp_path / "task", pair=pair), made_selection(tmp_path / "selection")
    # The export stage compares the stock class and the ONNX graph with our own model.
    done = run_chain(task, selection, recipe, [0], tmp_path / "run")
    config = json.loads((done["export"] / "model" / "config.json").read_text())
    stock = load_file(done["export"] / "model" / "model.safetensors")
    assert config["architectures"] == ["ElectraForSequenceClassification"]

    shape = shape_of(config, "made")
    assert (shape.layers, shape.hidden, shape.positions) == (2, 32, 48)
    with pytest.raises(InvalidRecipe, match="embedding_size 16"):
        shape_of({**config, "embedding_size": 16}, "made")
    mask = Mask(((True, False), (True, True)), (True, False))
    model = TaskModel(scratch_shape(recipe.model, len(stock["electra.embeddings.word_embeddings.weight"]), 3))
    initialize(model, 0)
    full = widened(weights(sliced(model, mask)), model.shape, mask)
    assert {name: tensor.shape for name, tensor in full.items()} == {
        name: tensor.shape for name, tensor in weights(model).items()
    }


@pytest.mark.parametrize("name", from_scratch())
def test_estimates_count_the_parameters_of_the_model(name: str) -> None:
    recipe = tiny(model__architecture=name).model
    architecture, shape = ARCHITECTURES[name], scratch_shape(recipe, 300, 3)
    model = TaskModel(shape)
    vectors = sum(p.numel() for n, p in model.named_parameters() if p.ndim == 1 and not n.startswith("vocabulary.out"))
    total = sum(p.numel() for p in model.parameters())
    assert architecture.parameters(shape) == pytest.approx(total - vectors, abs=4)
    exported = architecture.exported_parameters(shape)
    assert exported <= classifier_size(model) <= exported + vectors
    matrices = architecture.matrices(shape)
    stacked = [p for n, p in model.encoder.layers.named_parameters() if p.ndim == 2]
    assert sum(rows * columns * count for (rows, columns), count in matrices.items()) == sum(p.numel() for p in stacked)


@pytest.mark.parametrize("name", ["gpt2", "roberta"])
def test_recipe_rejects_an_architecture_without_a_scratch_form(name: str) -> None:
    with pytest.raises(
        InvalidRecipe, match=f"Cannot train '{name}' from scratch. Valid architectures: modernbert, bert, electra"
    ):
        tiny(model__architecture=name)


def test_architectures_start_from_distinct_weights() -> None:
    shapes = [scratch_shape(tiny(model__architecture=name).model, 300, 3) for name in ("modernbert", "bert")]
    models = [TaskModel(shape) for shape in shapes]
    for model in models:
        initialize(model, 0)
    assert not torch.any(models[0].task.out.weight) and torch.any(models[1].task.out.weight)


class ToyArchitecture(ModernBert):
    """ModernBERT under another name, with biases."""

    name = "toy"
    biases = True


def test_new_architecture_is_one_class_and_one_entry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(ARCHITECTURES, "toy", ToyArchitecture())
    recipe = tiny(model__architecture="toy", joint__budget__steps=2)
    prepared = made_prepared(tmp_path, recipe)
    done = run_stage(JOINT, {"prepared": prepared}, JointParams.of(recipe, 0), tmp_path / "joint")
    trained = load_file(done / "model.safetensors")
    assert trained["encoder.layers.0.attention.out.bias"].abs().sum() > 0
