"""Masked, sliced, widened, stock and ONNX: five forms of one ticket, one answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForSequenceClassification

from tests.unit.compression.made import CPU, Made, made_model
from tlm_core.compression.gates import masked
from tlm_core.compression.masks import Mask
from tlm_core.compression.sliced import parameters, sliced, spared_flops, widened
from tlm_core.errors import InvalidRequest
from tlm_core.training.evaluate import predict
from tlm_core.training.export import stock_config
from tlm_core.training.graph import write_onnx
from tlm_core.training.model import TaskModel
from tlm_core.training.names import to_stock
from tlm_core.training.objective import loss_sums
from tlm_core.training.prepared import task_batch
from tlm_core.training.state import load_weights, weights

# The first layer of a pre-norm model has no norm before attention; both kinds of cut in it, and a layer untouched.
MASK = Mask(((True, False, False, True), (True,) * 4, (False, False, True, False)), (False, True, False))


@pytest.fixture(params=["modernbert", "bert"])
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Made:
    return made_model(tmp_path, request.param)


def logits_of(model: TaskModel, made: Made) -> np.ndarray:
    return predict(model, made.prepared.split("validation"), made.prepared, device=CPU)


def masked_logits(made: Made) -> np.ndarray:
    with masked(made.model, MASK):
        return logits_of(made.model, made)


def padded(made: Made) -> dict[str, np.ndarray]:
    split = made.prepared.split("validation")
    longest = int(split.store.lengths.max())
    inputs = {name: np.zeros((len(split), longest), np.int64) for name in ("input_ids", "attention_mask")}
    for row in range(len(split)):
        inputs["input_ids"][row, : len(split.store[row])] = split.store[row]
        inputs["attention_mask"][row, : len(split.store[row])] = 1
    if made.model.shape.architecture == "bert":
        inputs["token_type_ids"] = np.zeros_like(inputs["input_ids"])
    return inputs


def test_a_mask_changes_the_answer_and_is_gone_afterwards(made: Made) -> None:
    before, changed = logits_of(made.model, made), masked_logits(made)
    assert np.abs(before - changed).max() > 1e-2
    np.testing.assert_array_equal(logits_of(made.model, made), before)


def test_the_sliced_model_is_smaller_and_answers_as_the_masked_one(made: Made) -> None:
    smaller = sliced(made.model, MASK)
    np.testing.assert_allclose(logits_of(smaller, made), masked_logits(made), atol=1e-4)
    counts = parameters(made.model.shape, MASK)
    size = sum(p.numel() for name, p in smaller.named_parameters() if not name.startswith("vocabulary."))
    assert counts["left"] == size
    assert counts["layers_left"] == sum(p.numel() for p in smaller.encoder.layers.parameters())
    assert counts["full"] == sum(
        p.numel() for name, p in made.model.named_parameters() if not name.startswith("vocabulary.")
    )
    assert sum(layer.mlp_out is None for layer in smaller.encoder.layers) == 2


def test_slicing_leaves_the_model_as_it_was(made: Made) -> None:
    before = weights(made.model)
    smaller = sliced(made.model, MASK)
    with torch.no_grad():
        for parameter in smaller.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(p, before[name]) for name, p in made.model.named_parameters())


def test_widened_weights_answer_the_same_in_the_full_model(made: Made) -> None:
    smaller = sliced(made.model, MASK)
    full = TaskModel(made.model.shape).eval()
    load_weights(full, widened(weights(smaller), made.model.shape, MASK))
    np.testing.assert_allclose(logits_of(full, made), masked_logits(made), atol=1e-4)


def test_the_stock_class_answers_the_same_with_zeros_in_place(made: Made, tmp_path: Path) -> None:
    folder, shape = tmp_path / "stock", made.model.shape
    stock_config(shape, made.prepared).save_pretrained(folder)
    tensors = to_stock(widened(weights(sliced(made.model, MASK)), shape, MASK), shape)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    stock: Any = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        found = stock(**{name: torch.from_numpy(values) for name, values in padded(made).items()}).logits
    np.testing.assert_allclose(found.numpy(), masked_logits(made), atol=1e-4)


def test_the_onnx_graph_of_the_sliced_model_is_smaller_and_answers_the_same(made: Made, tmp_path: Path) -> None:
    paths = {"sliced": tmp_path / "sliced.onnx", "whole": tmp_path / "whole.onnx"}
    for name, model in (("sliced", sliced(made.model, MASK)), ("whole", made.model)):
        write_onnx(model.shape, {key: tensor.numpy() for key, tensor in weights(model).items()}, paths[name])
    session = onnxruntime.InferenceSession(paths["sliced"], providers=["CPUExecutionProvider"])
    found = session.run(["logits"], padded(made))[0]
    np.testing.assert_allclose(found, masked_logits(made), atol=1e-4)
    counts = parameters(made.model.shape, MASK)
    spared = paths["whole"].stat().st_size - paths["sliced"].stat().st_size
    assert spared > 4 * 0.98 * (counts["full"] - counts["left"])


def test_a_sliced_model_trains_as_the_masked_one_would(made: Made) -> None:
    split = made.prepared.split("train")
    batch = task_batch(split, np.arange(16), made.prepared)
    smaller = sliced(made.model, MASK)
    with masked(made.model, MASK):
        loss_sums(made.model, batch, CPU)[1].backward()
    loss_sums(smaller, batch, CPU)[1].backward()
    gradients = {n: p.grad for n, p in smaller.named_parameters() if p.grad is not None}
    wide = widened(gradients, made.model.shape, MASK)
    for name, parameter in made.model.named_parameters():
        if parameter.grad is not None and "mlp_norm" not in name:
            torch.testing.assert_close(wide[name], parameter.grad, atol=1e-4, rtol=1e-3)


def test_the_spared_flops_are_those_that_a_counter_misses(made: Made) -> None:
    batch = task_batch(made.prepared.split("train"), np.arange(16), made.prepared)
    counted = []
    for model in (made.model, sliced(made.model, MASK)):
        with FlopCounterMode(display=False) as counter:
            loss_sums(model, batch, CPU)[1].backward()
        counted.append(counter.get_total_flops())
    rows, length = batch.rows.tokens.shape
    assert counted[0] - counted[1] == pytest.approx(spared_flops(made.model.shape, MASK, rows, length), rel=0.02)


def test_a_mask_of_another_model_is_refused(made: Made) -> None:
    with pytest.raises(InvalidRequest, match="2 layers x 4 heads"):
        sliced(made.model, Mask.full(2, 4))
