"""The trained BiLSTM as an ONNX graph."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from tlm_core.studies.bilstm import GATES, LSTMShape
from tlm_core.training.graph import FAR, Graph, save

Weights = Mapping[str, npt.NDArray[np.float32]]

# ONNX wants input, output, forget, candidate; ours are input, forget, candidate, output.
_ORDER = (0, 3, 1, 2)


def write_lstm(shape: LSTMShape, weights: Weights, path: Path) -> None:
    """Inputs `input_ids`, `attention_mask`, int64 [batch, length]; outputs as those of the encoder's graph."""
    g = Graph()
    lengths = g.op("Cast", g.op("ReduceSum", "attention_mask", g.ints(1), keepdims=0), to=TensorProto.INT32)
    x = g.op("Gather", g.const(weights["encoder.tokens.weight"]), g.op("Transpose", "input_ids", perm=[1, 0]))
    for number in range(shape.layers):
        x = _layer(g, x, lengths, f"encoder.layers.{number}", shape, weights)
    kept = g.op("Transpose", g.op("Cast", "attention_mask", to=TensorProto.FLOAT), perm=[1, 0])
    away = g.op("Mul", g.op("Sub", g.const(1.0), g.op("Unsqueeze", kept, g.ints(2))), g.const(FAR))
    pooled = g.op("ReduceMax", g.op("Add", x, away), g.ints(0), keepdims=0)
    logits = g.op("MatMul", pooled, g.const(weights["task.out.weight"].T))
    g.op("Add", logits, g.const(weights["task.out.bias"]), out="logits")
    g.op("Softmax", "logits", axis=-1, out="probabilities")
    save(g, ["input_ids", "attention_mask"], shape.labels, path)


def _layer(g: Graph, x: str, lengths: str, name: str, shape: LSTMShape, weights: Weights) -> str:
    inputs = g.const(_gates(weights[f"{name}.weight"]))
    states = g.const(_gates(weights[f"{name}.state_weight"]))
    bias = _gates(weights[f"{name}.bias"].reshape(2, -1))
    biases = g.const(np.concatenate([bias, np.zeros_like(bias)], axis=1))
    y = g.op("LSTM", x, inputs, states, biases, lengths, hidden_size=shape.hidden, direction="bidirectional")
    return g.op("Reshape", g.op("Transpose", y, perm=[0, 2, 1, 3]), g.ints(0, 0, 2 * shape.hidden))


def _gates(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """[2, 4H, ...] in our order of gates to ONNX's."""
    parts = np.split(values, GATES, axis=1)
    return np.concatenate([parts[index] for index in _ORDER], axis=1)
