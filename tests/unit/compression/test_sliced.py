"""The masked, sliced, widened, stock and ONNX forms of a ticket compute the same."""

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

from tests.unit.compression.small_model import CPU, Small, masked, small_model
from tlm_core.compression.masks import Mask
from tlm_core.compression.sliced import parameters, sliced, spared_flops, widened
from tlm_core.errors import InvalidRequest
from tlm_core.training.evaluate import predict
from tlm_core.training.export import stock_config
from tlm_core.training.graph import write_onnx
from tlm_core.training.model import TaskModel
from tlm_core.training.names import to_stock
from tlm_core.training.objective import loss_sums
from tlm_core.training.prepared import Prepared, task_batch
from tlm_core.training.state import load_weights, weights

# The first layer of a pre-norm model has no norm before attention, so both kinds of removal apply to it.
MASK = Mask(((True, False, False, True), (True,) * 4, (False, False, True, False)), (False, True, False))


@pytest.fixture(scope="module", params=["modernbert", "bert"])
def small(request: pytest.FixtureRequest, prepared: Prepared) -> Small:
    return small_model(prepared, request.param)


def logits_of(model: TaskModel, small: Small) -> np.ndarray:
    return predict(model, small.prepared.split("validation"), small.prepared, device=CPU)


def masked_logits(small: Small) -> np.ndarray:
    with masked(small.model, MASK):
        return logits_of(small.model, small)


def padded(small: Small) -> dict[str, np.ndarray]:
    split = small.prepared.split("validation")
    longest = int(split.store.lengths.max())
    inputs = {name: np.zeros((len(split), longest), np.int64) for name in ("input_ids", "attention_mask")}
    for row in range(len(split)):
        inputs["input_ids"][row, : len(split.store[row])] = split.store[row]
        inputs["attention_mask"][row, : len(split.store[row])] = 1
    if small.model.shape.architecture == "bert":
        inputs["token_type_ids"] = np.zeros_like(inputs["input_ids"])
    return inputs


def test_mask_changes_logits_only_inside_the_context(small: Small) -> None:
    before, changed = logits_of(small.model, small), masked_logits(small)
    assert np.abs(before - changed).max() > 1e-2
    np.testing.assert_array_equal(logits_of(small.model, small), before)


def test_sliced_model_is_smaller_and_equals_masked_model(small: Small) -> None:
    smaller = sliced(small.model, MASK)
    np.testing.assert_allclose(logits_of(smaller, small), masked_logits(small), atol=1e-4)
    counts = parameters(small.model.shape, MASK)
    size = sum(p.numel() for name, p in smaller.named_parameters() if not name.startswith("vocabulary."))
    assert counts["left"] == size
    assert counts["layers_left"] == sum(p.numel() for p in smaller.encoder.layers.parameters())
    assert counts["full"] == sum(
        p.numel() for name, p in small.model.named_parameters() if not name.startswith("vocabulary.")
    )
    assert sum(layer.mlp_out is None for layer in smaller.encoder.layers) == 2


def test_slicing_does_not_change_the_model(small: Small) -> None:
    before = weights(small.model)
    smaller = sliced(small.model, MASK)
    with torch.no_grad():
        for parameter in smaller.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(p, before[name]) for name, p in small.model.named_parameters())


def test_widened_weights_compute_the_same_in_full_model(small: Small) -> None:
    smaller = sliced(small.model, MASK)
    full = TaskModel(small.model.shape).eval()
    load_weights(full, widened(weights(smaller), small.model.shape, MASK))
    np.testing.assert_allclose(logits_of(full, small), masked_logits(small), atol=1e-4)


def test_stock_class_computes_the_same_with_zeros(small: Small, tmp_path: Path) -> None:
    folder, shape = tmp_path / "stock", small.model.shape
    stock_config(shape, small.prepared).save_pretrained(folder)
    tensors = to_stock(widened(weights(sliced(small.model, MASK)), shape, MASK), shape)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    stock: Any = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        logits = stock(**{name: torch.from_numpy(values) for name, values in padded(small).items()}).logits
    np.testing.assert_allclose(logits.numpy(), masked_logits(small), atol=1e-4)


def test_sliced_onnx_graph_is_smaller_and_computes_the_same(small: Small, tmp_path: Path) -> None:
    paths = {"sliced": tmp_path / "sliced.onnx", "full": tmp_path / "full.onnx"}
    for name, model in (("sliced", sliced(small.model, MASK)), ("full", small.model)):
        write_onnx(model.shape, {key: tensor.numpy() for key, tensor in weights(model).items()}, paths[name])
    session = onnxruntime.InferenceSession(paths["sliced"], providers=["CPUExecutionProvider"])
    logits = session.run(["logits"], {name: values[:, None] for name, values in padded(small).items()})[0]
    np.testing.assert_allclose(logits, masked_logits(small), atol=1e-4)
    counts = parameters(small.model.shape, MASK)
    spared = paths["full"].stat().st_size - paths["sliced"].stat().st_size
    assert spared > 4 * 0.98 * (counts["full"] - counts["left"])


def test_sliced_model_has_gradients_of_masked_model(small: Small) -> None:
    split = small.prepared.split("train")
    batch = task_batch(split, np.arange(16), small.prepared)
    smaller = sliced(small.model, MASK)
    small.model.zero_grad()
    with masked(small.model, MASK):
        loss_sums(small.model, batch, CPU)[1].backward()
    loss_sums(smaller, batch, CPU)[1].backward()
    gradients = {n: p.grad for n, p in smaller.named_parameters() if p.grad is not None}
    wide = widened(gradients, small.model.shape, MASK)
    for name, parameter in small.model.named_parameters():
        if parameter.grad is not None and "mlp_norm" not in name:
            torch.testing.assert_close(wide[name], parameter.grad, atol=1e-4, rtol=1e-3)


def test_spared_flops_match_a_flop_counter(small: Small) -> None:
    batch = task_batch(small.prepared.split("train"), np.arange(16), small.prepared)
    counted = []
    for model in (small.model, sliced(small.model, MASK)):
        with FlopCounterMode(display=False) as counter:
            loss_sums(model, batch, CPU)[1].backward()
        counted.append(counter.get_total_flops())
    rows, length = batch.rows.tokens.shape
    assert counted[0] - counted[1] == pytest.approx(spared_flops(small.model.shape, MASK, rows, length), rel=0.02)


def test_mask_of_other_shape_is_rejected(small: Small) -> None:
    with pytest.raises(InvalidRequest, match="2 layers x 4 heads"):
        sliced(small.model, Mask.full(2, 4))
