"""ONNX graphs of encoders with random weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from tlm_core.training.architectures import Shape
from tlm_core.training.graph import write_onnx
from tlm_core.training.model import TaskModel, initialize


def written_model(shape: Shape, path: Path) -> TaskModel:
    """Write the ONNX graph of a model with random weights, and return the model."""
    model = TaskModel(shape)
    initialize(model, 0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    write_onnx(shape, {name: p.detach().numpy() for name, p in model.named_parameters()}, path)
    return model


def test_onnx_graph_supports_windows_and_rotary_bases(tmp_path: Path) -> None:
    shape = Shape(
        "modernbert", 50, 3, 3, 32, 2, 48, 64, pooling="cls", windows=(None, 4, 4), thetas=(160_000.0, 1e4, 1e4)
    )
    model = written_model(shape, tmp_path / "model.onnx")
    tokens = torch.arange(40).reshape(2, 20)
    zeros, inside = torch.zeros_like(tokens), torch.ones_like(tokens)
    with torch.inference_mode():
        hidden = model.encoder(tokens, inside, torch.arange(20).expand(2, 20), zeros)
        expected = model.task(model.pool(hidden, inside, torch.arange(2), torch.ones(2, dtype=torch.int64)))
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    inputs = {"input_ids": tokens[:, None].numpy(), "attention_mask": inside[:, None].numpy()}
    logits = session.run(["logits"], inputs)[0]
    torch.testing.assert_close(torch.from_numpy(logits), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_onnx_graph_averages_windows_and_skips_those_without_tokens(pooling: str, tmp_path: Path) -> None:
    shape = Shape("modernbert", 50, 3, 2, 32, 2, 48, 64, pooling=pooling)
    written_model(shape, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    tokens = np.random.default_rng(0).integers(5, 50, (2, 3, 20))
    mask = np.ones_like(tokens)
    mask[0, 1, 12:] = 0
    mask[1, 1:] = 0

    def run(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return session.run(["logits"], {"input_ids": ids, "attention_mask": mask})[0]

    alone = run(tokens.reshape(6, 1, 20)[:4], mask.reshape(6, 1, 20)[:4])
    together = run(tokens, mask)
    np.testing.assert_allclose(together[0], alone[:3].mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(together[1], alone[3], atol=1e-5)
    assert np.abs(alone[:3] - alone[0]).max() > 1e-3, "the windows must differ"
