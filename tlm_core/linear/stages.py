"""The stages of the linear model. They do not import torch."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict
from typing import Any

import numpy as np

from tlm_core.evaluation.combine import Scales, temperature
from tlm_core.evaluation.report import (
    FACTS,
    HELD_OUT,
    OUTPUTS,
    LinearResult,
    linear_report,
    report_meta,
    splits_of,
    write_report,
)
from tlm_core.linear.fit import fit
from tlm_core.linear.graph import write_linear
from tlm_core.linear.model import ALPHABET, LinearModel, rows_of
from tlm_core.linear.params import BaselineParams
from tlm_core.serving import METADATA, MODEL, write_metadata
from tlm_core.tasks.task import Task
from tlm_core.training.stage import StageContext, StageParams

TOP_NGRAMS = 10


def baseline(ctx: StageContext[BaselineParams]) -> dict[str, Any]:
    """Fit a linear model on the whole train texts and write it as a model that can be served.

    It writes the ONNX graph, the weights, the outputs for all rows (for train those of cross-validation) and
    `baseline.json`. It reads no test target. Input: `task`.
    """
    if ctx.rank:
        return {}
    began = time.monotonic()
    task = Task.read(ctx.inputs["task"])
    ctx.report.event("baseline", rows=task.counts["train"])
    fitted = fit(task)
    model = fitted.model
    outputs = {split: model.outputs(rows_of(task, split)) for split in splits_of(task)}
    divisor = temperature(task.type, fitted.held_out, task.targets("train"))
    model.write(ctx.out)
    write_linear(model, Scales(linear=1.0, encoder=0.0, linear_temperature=divisor), ctx.out / MODEL)
    write_metadata(ctx.out, task, "linear")
    np.savez_compressed(ctx.out / OUTPUTS, allow_pickle=False, **outputs, **{HELD_OUT: fitted.held_out})
    seconds = time.monotonic() - began
    facts = {
        "setting": asdict(fitted.setting),
        "features": len(model.features),
        "cross_validation": fitted.score,
        "tried": [{**asdict(setting), "score": score} for setting, score in fitted.tried],
        "temperature": divisor,
        "top_ngrams": top_ngrams(model, task) if task.type.has_classes else {},
        "cost": {"flops": 0.0, "tokens": 0.0, "seconds": seconds, "gpu_seconds": 0.0},
    }
    (ctx.out / FACTS).write_text(json.dumps(facts, ensure_ascii=False, indent=1), encoding="utf-8")
    return {"cross_validation": fitted.score, "features": len(model.features), "seconds": seconds}


def top_ngrams(model: LinearModel, task: Task) -> dict[str, list[str]]:
    """Return the words and pairs of words with the highest weights for each label."""
    names = model.features.word_names()
    order = np.argsort(-model.weights[: len(names)], axis=0)[:TOP_NGRAMS]
    return {label: [names[place] for place in order[:, number]] for number, label in enumerate(task.labels)}


def evaluate_linear(ctx: StageContext[StageParams]) -> dict[str, Any]:
    """Test the linear model once. Inputs: `task`, `baseline`."""
    if ctx.rank:
        return {}
    report, predictions = linear_report(Task.read(ctx.inputs["task"]), LinearResult.read(ctx.inputs["baseline"]))
    write_report(ctx.out, report, predictions)
    return report_meta(report)


def export_linear(ctx: StageContext[StageParams]) -> dict[str, Any]:
    """Return the linear model as the job's model. Inputs: `task`, `baseline`, `evaluate`."""
    if ctx.rank:
        return {}
    for name in (MODEL, METADATA, ALPHABET):
        shutil.copyfile(ctx.inputs["baseline"] / name, ctx.out / name)
    shutil.copyfile(ctx.inputs["evaluate"] / "report.json", ctx.out / "report.json")
    model = LinearModel.read(ctx.inputs["baseline"])
    return {"parameters": model.weights.size + model.bias.size}
