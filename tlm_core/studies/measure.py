"""Size and speed of two ONNX graphs, side by side."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

REPEATS = 5
BATCH = 16

Inputs = Mapping[str, npt.NDArray[np.int64]]


def padded(texts: Sequence[npt.NDArray[Any]], pad: int) -> dict[str, npt.NDArray[np.int64]]:
    """`input_ids`, `attention_mask` and `token_type_ids` of single texts, as long as the longest."""
    shape = (len(texts), max(map(len, texts)))
    found = {name: np.zeros(shape, dtype=np.int64) for name in ("input_ids", "attention_mask", "token_type_ids")}
    found["input_ids"][:] = pad
    for row, text in enumerate(texts):
        found["input_ids"][row, : len(text)] = text
        found["attention_mask"][row, : len(text)] = 1
    return found


def in_words(speed_up: float) -> str:
    """How a model that does `speed_up` times the work in the same time compares, as the end of a sentence."""
    if speed_up >= 1:
        return f"runs {speed_up:.1f} times as fast"
    return f"takes {1 / speed_up:.1f} times as long"


def compare_graphs(
    graphs: Mapping[str, Path], texts: Mapping[str, Sequence[npt.NDArray[Any]]], pads: Mapping[str, int]
) -> dict[str, dict[str, float]]:
    """Bytes, and median seconds for each text on one core, of each graph.

    texts: the same texts as each graph's own token ids. The graphs take turns, batch by batch, so that whatever else
    the machine does slows all of them alike.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    sessions, batches = {}, {}
    for name, path in graphs.items():
        sessions[name] = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        wanted = {entry.name for entry in sessions[name].get_inputs()}
        parts = [texts[name][begin : begin + BATCH] for begin in range(0, len(texts[name]), BATCH)]
        batches[name] = [{k: v for k, v in padded(part, pads[name]).items() if k in wanted} for part in parts]
    seconds: dict[str, list[float]] = {name: [] for name in graphs}
    for turn in range(REPEATS + 1):
        for name, session in sessions.items():
            began = time.perf_counter()
            for inputs in batches[name]:
                session.run(["logits"], inputs)
            if turn:  # the first turn warms up
                seconds[name].append((time.perf_counter() - began) / len(texts[name]))
    return {
        name: {"bytes": float(path.stat().st_size), "seconds_per_text": median(seconds[name])}
        for name, path in graphs.items()
    }
