"""Size and speed of ONNX graphs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median

from tlm_core.linear.model import read_alphabet, rows_of
from tlm_core.serving import ngram_ids
from tlm_core.tasks.task import Task
from tlm_core.training.graph import Batches, write_onnx
from tlm_core.training.prepared import Prepared
from tlm_core.training.state import arrays, load_model

REPEATS = 5
BATCH = 16
TIMED = 64


def encoder_onnx(folder: Path, path: Path) -> None:
    """Write the ONNX graph of the finetuned model in `folder` to `path`."""
    model = load_model(folder)
    write_onnx(model.shape, arrays(model), path)


def token_batches(prepared: Prepared, count: int = TIMED) -> Batches:
    """Return the first `count` validation texts as batches of token ids."""
    split, pad = prepared.split("validation").first(count), prepared.vocabulary.pad
    texts = range(len(split))
    return [split.padded(texts[begin : begin + BATCH], pad) for begin in range(0, len(split), BATCH)]


def ngram_batches(linear: Path, task: Task) -> Batches:
    """Return the first TIMED validation texts as batches of n-gram ids. linear: folder of the linear model."""
    rows, alphabet = rows_of(task, "validation")[:TIMED], read_alphabet(linear)
    return [ngram_ids(alphabet, rows[begin : begin + BATCH]) for begin in range(0, len(rows), BATCH)]


def compare_graphs(graphs: Mapping[str, Path], texts: Mapping[str, Batches]) -> dict[str, dict[str, float]]:
    """Return, by the name of a graph, `bytes` (file size) and `seconds_per_text` (median time on one core).

    The time excludes tokenization. texts: the same texts for each graph, in the input format of the graph. The graphs
    run alternately, so that other load on the machine slows all graphs equally.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    sessions, batches = {}, {}
    for name, path in graphs.items():
        sessions[name] = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        names = {entry.name for entry in sessions[name].get_inputs()}
        batches[name] = [{key: values for key, values in part.items() if key in names} for part in texts[name]]
    counts = {name: sum(len(next(iter(part.values()))) for part in parts) for name, parts in batches.items()}
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
