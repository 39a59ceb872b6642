"""The export stage: a folder that stock `transformers` loads, an ONNX graph, and a model card."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file
from torch import Tensor

from tlm_core.errors import TrainingFailed
from tlm_core.evaluation.combine import ENSEMBLE, LINEAR, LINEAR_MODELS, Scales, log_softmax
from tlm_core.evaluation.report import linear_folder
from tlm_core.evaluation.summary import ENCODER, PREDICTIONS, REPORT
from tlm_core.json_files import read_json
from tlm_core.linear.graph import write_combined, write_linear
from tlm_core.linear.model import ALPHABET, LinearModel
from tlm_core.serving import MODEL, copy_model, write_metadata
from tlm_core.serving import load_model as load_served
from tlm_core.tasks.task import Task
from tlm_core.training.architectures import ARCHITECTURES, Shape, architecture_of
from tlm_core.training.card import model_card
from tlm_core.training.evaluate import encoder_folder, predict
from tlm_core.training.graph import Batches, write_onnx
from tlm_core.training.model import TaskModel
from tlm_core.training.names import to_stock
from tlm_core.training.params import CardRecipe, ExportParams
from tlm_core.training.prepared import Prepared
from tlm_core.training.profiling import copy_traces
from tlm_core.training.stage import StageContext
from tlm_core.training.state import arrays, load_model, weights

TOLERANCE = 1e-4
PROBES = 16


def export(ctx: StageContext[ExportParams]) -> dict[str, Any]:
    """Write the returned model, and the encoder of the best seed as the stock folder `model/` (see docs/report.md).

    Inputs: `evaluate` and the inputs of `evaluate`. Raises TrainingFailed if the stock classes or onnxruntime cannot
    load the files, or if the files give other outputs than `evaluate` computed.
    """
    prepared, task = Prepared(ctx.inputs["prepared"]), Task.read(ctx.inputs["task"])
    report = read_json(ctx.inputs["evaluate"] / REPORT)
    best, compact = encoder_folder(ctx.inputs, report["best_seed"]), ENSEMBLE in report["models"]
    model = load_model(best, compact=compact)
    seed = next(entry for entry in report["seeds"] if entry["seed"] == report["best_seed"])
    with torch.no_grad():  # The weights of the last layer include the temperature, so the stock model is calibrated.
        for parameter in model.task.out.parameters():
            parameter /= seed["scales"]["encoder_temperature"]
    count = write_export(ctx.out, model, weights(model), prepared, task, report, ctx.params.recipe)
    returned = report["returned"]["model"]
    copy_model(linear_folder(ctx.inputs, LINEAR), ctx.out / "linear")
    if returned != ENCODER:
        _write_returned(ctx, report, compact=compact)
    write_metadata(ctx.out, task, returned, prepared.max_length, prepared.max_windows)
    _check_served(ctx.out, task, ctx.inputs["evaluate"], "all" if compact else f"s{report['best_seed']}")
    shutil.copyfile(ctx.inputs["evaluate"] / REPORT, ctx.out / REPORT)
    copy_traces(best, ctx.out)
    return {"best_seed": report["best_seed"], "parameters": count}


def _write_returned(ctx: StageContext[ExportParams], report: Mapping[str, Any], *, compact: bool) -> None:
    """Write `model.onnx` of a returned model that is not a single encoder."""
    returned = report["returned"]
    model, scales, path = returned["model"], Scales(**returned["scales"]), ctx.out / MODEL
    linear = None
    if model != ENSEMBLE:
        last = [name for name in LINEAR_MODELS if name in report["models"]][-1]
        folder = linear_folder(ctx.inputs, model if model in LINEAR_MODELS else last)
        shutil.copyfile(folder / ALPHABET, ctx.out / ALPHABET)
        linear = LinearModel.read(folder)
        if model in LINEAR_MODELS:
            write_linear(linear, scales, path)
            return
    encoders = [load_model(encoder_folder(ctx.inputs, seed), compact=compact) for seed in returned["seeds"]]
    members = [arrays(encoder) for encoder in encoders]
    write_combined(encoders[0].shape, members, linear, scales, path)


def _check_served(out: Path, task: Task, evaluated: Path, run: str) -> None:
    """Raise TrainingFailed if the files in `out` give other outputs than `evaluate` computed.

    evaluated: the folder of `evaluate`. run: the predictions to compare, `all` (the returned model) or `s{seed}`.
    """
    texts, pairs = task.texts("test")[:PROBES], task.text_pairs("test")
    served = load_served(out).probabilities(texts, pairs[:PROBES] if pairs else None)
    with np.load(evaluated / PREDICTIONS) as arrays:
        expected = arrays[f"test.{run}"][:PROBES]
    if task.type.has_classes:
        expected = np.exp(log_softmax(expected))
    compare_logits("served model", served, expected)


def write_export(
    out: Path,
    model: TaskModel,
    full: Mapping[str, Tensor],
    prepared: Prepared,
    task: Task,
    report: Mapping[str, Any],
    recipe: CardRecipe,
) -> int:
    """Write `model/`, `model.onnx`, and `labels.json`. Return the number of parameters of the stock model.

    model: on the CPU. full: the weights of the model under our names, with neutral values for the parts that pruning
    removed. Raises TrainingFailed if `model/` or `model.onnx` gives other logits than the model.
    """
    folder = out / "model"
    shutil.copytree(prepared.folder / "tokenizer", folder)
    stock_config(model.shape, prepared).save_pretrained(folder)
    save_file(to_stock(full, model.shape), folder / "model.safetensors", metadata={"format": "pt"})
    stock = load_stock(folder)
    split = prepared.split("validation").first(PROBES)
    probe = split.padded(range(len(split)), prepared.vocabulary.pad)
    expected = predict(model, split, prepared, device=torch.device("cpu"))
    compare_logits("exported model", split.means(_stock_logits(stock, probe)), expected)
    write_onnx(model.shape, arrays(model), out / MODEL)
    compare_logits("ONNX graph", graph_logits(out / MODEL, [probe]), expected)
    (folder / "README.md").write_text(model_card(report, prepared.facts, recipe), encoding="utf-8")
    write_metadata(out, task, ENCODER, prepared.max_length, prepared.max_windows)
    return sum(p.numel() for p in stock.parameters())


def stock_config(shape: Shape, prepared: Prepared) -> Any:
    """Return the `transformers` configuration, with the task's labels or the name of its regression target."""
    ids = prepared.facts["special_ids"]
    return architecture_of(shape).stock_config(shape, prepared.labels, ids, prepared.type.problem_type)


def load_stock(folder: Path) -> Any:
    """Return the model in `folder`, as a stock class. Raises TrainingFailed if a weight is missing or unexpected."""
    from transformers import AutoModelForSequenceClassification

    model, info = AutoModelForSequenceClassification.from_pretrained(
        str(folder), output_loading_info=True, trust_remote_code=False, attn_implementation="sdpa"
    )
    wrong = sorted({*info["missing_keys"], *info["unexpected_keys"], *map(str, info["mismatched_keys"])})
    if wrong:
        raise TrainingFailed(f"The exported weights do not match the stock class: {wrong[:3]}. Report this error.")
    return model.eval()


def _stock_logits(stock: Any, probe: Mapping[str, npt.NDArray[np.int64]]) -> npt.NDArray[np.float32]:
    """Return the logits of all windows in order, [windows, labels]. probe: from `Split.padded`."""
    types = ARCHITECTURES[stock.config.model_type].token_types > 1
    names = ("input_ids", "attention_mask", *(("token_type_ids",) if types else ()))
    windows = probe["attention_mask"].any(axis=2)
    with torch.inference_mode():
        logits = stock(**{name: torch.from_numpy(probe[name][windows]) for name in names}).logits
    return logits.numpy()


def graph_logits(graph: Path, batches: Batches) -> npt.NDArray[np.float32]:
    """Return the logits of an ONNX graph for all texts in the batches, [texts, labels]."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    logits = [session.run(["logits"], {name: batch[name] for name in names})[0] for batch in batches]
    return np.concatenate(logits)


def compare_logits(name: str, logits: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> None:
    """Raise TrainingFailed if logits differ from `expected` by more than TOLERANCE * max(1, max |`expected`|)."""
    difference = float(np.abs(logits - expected).max())
    if not difference <= TOLERANCE * max(1.0, float(np.abs(expected).max())):
        raise TrainingFailed(
            f"The logits of the {name} differ from the trained model's by up to {difference:.2g}. Report this error."
        )
