"""A trained BiLSTM as the files from which the gateway predicts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import save_file

from tlm_core.errors import TrainingFailed
from tlm_core.studies.bilstm import BiLSTM
from tlm_core.studies.lstm_graph import write_lstm
from tlm_core.studies.measure import padded
from tlm_core.training.evaluate import predict
from tlm_core.training.prepared import Prepared
from tlm_core.training.state import weights

TOLERANCE = 1e-4
PROBES = 16


def lstm_onnx(model: BiLSTM, path: Path) -> None:
    """Write the model's ONNX graph."""
    write_lstm(model.shape, {name: tensor.numpy() for name, tensor in _weights(model).items()}, path)


def export_lstm(model: BiLSTM, prepared: Prepared, out: Path) -> None:
    """Write `model/` (weights, tokenizer, config of our own), `model.onnx` and `labels.json`.

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
    _check(model, prepared, out / "model.onnx")


def _check(model: BiLSTM, prepared: Prepared, graph: Path) -> None:
    import onnxruntime

    split = prepared.split("validation")
    inputs = padded([split.store[number] for number in range(min(PROBES, len(split)))], prepared.vocabulary.pad)
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    found = session.run(["logits"], {name: inputs[name] for name in ("input_ids", "attention_mask")})[0]
    expected = predict(cast(Any, model), split, prepared, device=torch.device("cpu"))[: len(found)]
    apart = float(np.abs(found - expected).max())
    if not apart <= TOLERANCE * max(1.0, float(np.abs(expected).max())):
        raise TrainingFailed(f"the ONNX graph answers differently from the BiLSTM (logits up to {apart:.2g} apart)")


def _weights(model: BiLSTM) -> dict[str, torch.Tensor]:
    return weights(cast(Any, model))
