"""The export of a trained BiLSTM: the files from which the gateway predicts."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from onnx import TensorProto
from safetensors.torch import save_file

from tlm_core.evaluation.summary import ENCODER
from tlm_core.quantization import quantize_graph
from tlm_core.serving import write_metadata
from tlm_core.studies.bilstm import GATES, BiLSTM, LSTMShape
from tlm_core.studies.measure import token_batches
from tlm_core.tasks.task import Task
from tlm_core.training.evaluate import predict
from tlm_core.training.export import compare_logits, graph_logits
from tlm_core.training.graph import FAR, Graph, Weights, save
from tlm_core.training.prepared import Prepared
from tlm_core.training.state import arrays, weights

INT8 = "model.int8.onnx"
COMPARED = 512
# Gates in the order of ONNX: input, output, forget, candidate. Ours is input, forget, candidate, output.
ONNX_GATES = (0, 3, 1, 2)


def export_lstm(model: BiLSTM, prepared: Prepared, task: Task, out: Path) -> dict[str, float]:
    """Write `model/` (weights, tokenizer, config.json), `model.onnx`, `model.int8.onnx` and `labels.json`.

    Return a comparison of `model.int8.onnx` with the model. texts: the number of compared validation texts (at most
    512). agreement: the share of these texts for which both predict the same label. Raises TrainingFailed if the logits
    of `model.onnx` on the first batch differ from the model's logits by more than a tolerance.
    """
    folder = out / "model"
    shutil.copytree(prepared.folder / "tokenizer", folder)
    save_file(weights(model), folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "model_type": model.shape.architecture,
        **asdict(model.shape),
        "pad_token_id": prepared.vocabulary.pad,
        "id2label": {str(number): label for number, label in enumerate(prepared.labels)},
    }
    (folder / "config.json").write_text(json.dumps(config, ensure_ascii=False, indent=1), encoding="utf-8")
    write_metadata(out, task, ENCODER, prepared.max_length, prepared.max_windows)
    lstm_onnx(model, out / "model.onnx")
    split, batches = prepared.split("validation").first(COMPARED), token_batches(prepared, COMPARED)
    expected = predict(model, split, prepared, device=torch.device("cpu"))
    first = graph_logits(out / "model.onnx", batches[:1])
    compare_logits("ONNX graph", first, expected[: len(first)])
    quantize_graph(out / "model.onnx", out / INT8)
    logits = graph_logits(out / INT8, batches)
    return {"agreement": float((logits.argmax(1) == expected.argmax(1)).mean()), "texts": len(logits)}


def lstm_onnx(model: BiLSTM, path: Path) -> None:
    """Write the ONNX graph. It has the inputs `input_ids` and `attention_mask`, and the outputs of an encoder graph."""
    shape, tensors = model.shape, arrays(model)
    g, inputs = Graph(), ["input_ids", "attention_mask"]
    g.flatten_windows(inputs)
    lengths = g.op("Cast", g.op("ReduceSum", "attention_mask.rows", g.ints(1), keepdims=0), to=TensorProto.INT32)
    x = g.op("Gather", g.const(tensors["encoder.tokens.weight"]), g.op("Transpose", "input_ids.rows", perm=[1, 0]))
    for number in range(shape.layers):
        x = _layer(g, x, lengths, f"encoder.layers.{number}", shape, tensors)
    mask = g.op("Transpose", g.op("Cast", "attention_mask.rows", to=TensorProto.FLOAT), perm=[1, 0])
    padding = g.op("Mul", g.op("Sub", g.const(1.0), g.op("Unsqueeze", mask, g.ints(2))), g.const(FAR))
    pooled = g.op("ReduceMax", g.op("Add", x, padding), g.ints(0), keepdims=0)
    logits = g.op("MatMul", pooled, g.const(tensors["task.out.weight"].T))
    logits = g.average_windows(g.op("Add", logits, g.const(tensors["task.out.bias"])), shape.labels)
    g.outputs(logits, shape.labels)
    save(g, inputs, shape.labels, path)


def _layer(g: Graph, x: str, lengths: str, name: str, shape: LSTMShape, weights: Weights) -> str:
    inputs = g.const(_gates(weights[f"{name}.weight"]))
    states = g.const(_gates(weights[f"{name}.state_weight"]))
    bias = _gates(weights[f"{name}.bias"].reshape(2, -1))
    biases = g.const(np.concatenate([bias, np.zeros_like(bias)], axis=1))
    y = g.op("LSTM", x, inputs, states, biases, lengths, hidden_size=shape.hidden, direction="bidirectional")
    return g.op("Reshape", g.op("Transpose", y, perm=[0, 2, 1, 3]), g.ints(0, 0, 2 * shape.hidden))


def _gates(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return weights [2, 4 * hidden, ...] with the gates in the order of ONNX. values: weights in our order."""
    parts = np.split(values, GATES, axis=1)
    return np.concatenate([parts[index] for index in ONNX_GATES], axis=1)
