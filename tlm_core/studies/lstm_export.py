"""A trained BiLSTM as the files from which the gateway predicts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx
import torch
from safetensors.torch import save_file

from tlm_core.errors import TrainingFailed
from tlm_core.studies.bilstm import BiLSTM
from tlm_core.studies.lstm_graph import write_lstm
from tlm_core.studies.measure import padded
from tlm_core.training.evaluate import predict
from tlm_core.training.prepared import Prepared, Split
from tlm_core.training.state import weights

TOLERANCE = 1e-4
PROBES = 16


INT8 = "model.int8.onnx"
COMPARED = 512


def lstm_onnx(model: BiLSTM, path: Path) -> None:
    """Write the model's ONNX graph."""
    write_lstm(model.shape, {name: tensor.numpy() for name, tensor in _weights(model).items()}, path)


def lstm_int8(graph: Path, out: Path) -> None:
    """Write the graph with weights of 8 bits and products in whole numbers."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(graph)
    # The graph has nothing left to prepare; unless it says so, the library logs advice to do so.
    onnx.helper.set_model_props(model, {"onnx.quant.pre_process": "onnxruntime.quant"})
    kinds = ["LSTM", "MatMul", "Gather"]
    quantize_dynamic(model, out, weight_type=QuantType.QInt8, per_channel=True, op_types_to_quantize=kinds)


def export_lstm(model: BiLSTM, prepared: Prepared, out: Path) -> dict[str, float]:
    """Write `model/` (weights, tokenizer, config of our own), `model.onnx`, `model.int8.onnx` and `labels.json`.

    Returns of the 8-bit graph the share of validation texts (`agreement`, of `texts`) that it labels as the other does.
    Raises TrainingFailed if the graph answers otherwise than the model.
    """
    folder = out / "model"
    shutil.copytree(prepared.folder / "tokenizer", folder)
    save_file(_weights(model), folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "model_type": model.shape.architecture,
        **model.shape.as_dict(),
        "pad_token_id": prepared.vocabulary.pad,
        "id2label": {str(number): label for number, label in enumerate(prepared.labels)},
    }
    (folder / "config.json").write_text(json.dumps(config, ensure_ascii=False, indent=1), encoding="utf-8")
    facts = {"labels": prepared.labels, "max_length": prepared.max_length, "pair": prepared.facts["pair"]}
    (out / "labels.json").write_text(json.dumps(facts, ensure_ascii=False), encoding="utf-8")
    lstm_onnx(model, out / "model.onnx")
    split, pad = prepared.split("validation").first(COMPARED), prepared.vocabulary.pad
    expected = predict(cast(Any, model), split, prepared, device=torch.device("cpu"))
    _check(_logits(out / "model.onnx", split.first(PROBES), pad), expected[:PROBES])
    lstm_int8(out / "model.onnx", out / INT8)
    found = _logits(out / INT8, split, pad)
    return {"agreement": float((found.argmax(1) == expected.argmax(1)).mean()), "texts": len(found)}


def _logits(graph: Path, split: Split, pad: int) -> npt.NDArray[np.float32]:
    """The graph's answers to the split's texts."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    found = []
    for begin in range(0, len(split), PROBES):
        members = range(begin, min(begin + PROBES, len(split)))
        inputs = padded([split.store[number] for number in members], pad)
        found.append(session.run(["logits"], {name: inputs[name] for name in ("input_ids", "attention_mask")})[0])
    return np.concatenate(found)


def _check(found: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> None:
    apart = float(np.abs(found - expected).max())
    if not apart <= TOLERANCE * max(1.0, float(np.abs(expected).max())):
        raise TrainingFailed(f"the ONNX graph answers differently from the BiLSTM (logits up to {apart:.2g} apart)")


def _weights(model: BiLSTM) -> dict[str, torch.Tensor]:
    return weights(cast(Any, model))
