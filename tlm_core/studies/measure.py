"""Size and speed of ONNX graphs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median

from tlm_core.training.graph import write_onnx
from tlm_core.training.prepared import Prepared
from tlm_core.training.state import load_model, weights

REPEATS = 5
BATCH = 16
TIMED = 64


def encoder_onnx(folder: Path, path: Path) -> None:
    """Write the ONNX graph of the model that finetuning wrote into a folder."""
    model = load_model(folder)
    write_onnx(model.shape, {name: tensor.numpy() for name, tensor in weights(model).items()}, path)


def compare_graphs(
    graphs: Mapping[str, Path], prepared: Mapping[str, Prepared], count: int = TIMED
) -> dict[str, dict[str, float]]:
    """Return the bytes of each graph and its median seconds per text on one core.

    prepared: the same task in each graph's tokens; the first `count` validation texts are measured. The graphs run
    alternately, so that other load on the machine slows all of them equally.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    sessions, batches, counts = {}, {}, {}
    for name, path in graphs.items():
        sessions[name] = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        names = {entry.name for entry in sessions[name].get_inputs()}
        split, pad = prepared[name].split("validation").first(count), prepared[name].vocabulary.pad
        counts[name], texts = len(split), range(len(split))
        parts = [split.padded(texts[begin : begin + BATCH], pad) for begin in range(0, len(split), BATCH)]
        batches[name] = [{key: values for key, values in part.items() if key in names} for part in parts]
    seconds: dict[str, list[float]] = {name: [] for name in graphs}
    for turn in range(REPEATS + 1):
        for name, session in sessions.items():
            start = time.perf_counter()
            for inputs in batches[name]:
                session.run(["logits"], inputs)
            if turn:  # the first turn warms up
                seconds[name].append((time.perf_counter() - start) / counts[name])
    return {
        name: {"bytes": float(path.stat().st_size), "seconds_per_text": median(seconds[name])}
        for name, path in graphs.items()
    }
