"""The stages of the linear model. They do not import torch."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from tlm_core.artifacts import MANIFEST
from tlm_core.evaluation.combine import LINEAR, SELF_TRAINED, Outputs, Scales, log_softmax, temperature
from tlm_core.evaluation.report import (
    FACTS,
    HELD_OUT,
    OUTPUTS,
    REFIT_LINEAR,
    LinearResult,
    linear_folder,
    linear_report,
    read_linears,
    report_meta,
    splits_of,
    write_report,
)
from tlm_core.evaluation.summary import REFIT, REPORT
from tlm_core.json_files import read_json
from tlm_core.linear.fit import Fits, Setting, fit, solver_of
from tlm_core.linear.graph import write_linear
from tlm_core.linear.model import Features, LinearModel, rows_of
from tlm_core.linear.ngrams import FAMILIES, words_and_blanks
from tlm_core.linear.params import MOST_PIECES, BaselineParams, SelfTrainParams
from tlm_core.linear.pieces import write_pieces
from tlm_core.linear.self_training import Pool, piece_count, pieces_of, self_train
from tlm_core.parquet import open_parquet
from tlm_core.serving import MODEL, copy_model, write_metadata
from tlm_core.tasks.task import LABELED, Task
from tlm_core.training.card import linear_card
from tlm_core.training.stage import StageContext, StageParams, StopRequested

TOP_NGRAMS = 10


def baseline(ctx: StageContext[BaselineParams]) -> dict[str, Any]:
    """Fit a linear model on the whole train texts. Input: `task`.

    The stage writes the ONNX graph, the weights, the outputs for all rows and `baseline.json`. The outputs for train
    rows are those of cross-validation. The stage reads no test target.
    """
    began = time.monotonic()
    task = Task.read(ctx.inputs["task"])
    ctx.report.event("baseline", rows=task.counts["train"])
    fitted = fit(task, _Counter(ctx))
    facts = {
        "setting": asdict(fitted.setting),
        "score": fitted.score,
        "tried": [{**asdict(setting), "score": score} for setting, score in fitted.tried],
        "temperature": temperature(task.type, fitted.held_out, task.targets("train")),
    }
    outputs = _outputs(fitted.model, task, splits_of(task)) | {HELD_OUT: fitted.held_out}
    _write_linear(ctx.out, task, fitted.model, outputs, facts, LINEAR, began)
    return {"score": fitted.score, "features": len(fitted.model.features)}


class _Counter:
    """Reports the number of fitted models, and estimates the remaining time from the pace since the first fit ended.

    Raises StopRequested if the reporter requests a stop.
    """

    def __init__(self, ctx: StageContext[BaselineParams]) -> None:
        self._ctx, self._first = ctx, 0.0

    def __call__(self, done: int, most: int) -> None:
        now = time.monotonic()
        self._first = self._first or now
        left = (now - self._first) * (most - done) / (done - 1) if done > 1 else None
        if not self._ctx.report.progress(step=done, total=most, rate=None, unit="models", eta_seconds=left):
            raise StopRequested("The search for the linear model stopped on request. Resume the job to repeat it.")


def _outputs(model: LinearModel, task: Task, splits: Iterable[str]) -> dict[str, Outputs]:
    return {split: model.outputs(rows_of(task, split)) for split in splits}


def _write_linear(
    out: Path,
    task: Task,
    model: LinearModel,
    outputs: Mapping[str, Outputs],
    facts: dict[str, Any],
    name: str,
    began: float,
) -> None:
    """Write a linear model, its outputs by split, and its facts. began: `time.monotonic` at the start of the fit."""
    model.write(out)
    write_linear(model, Scales.of_linear(facts["temperature"]), out / MODEL)
    write_metadata(out, task, name)
    np.savez_compressed(out / OUTPUTS, allow_pickle=False, **outputs)
    top = top_ngrams(model, task) if task.type.has_classes else {}
    _write_facts(out, {**facts, "features": len(model.features), "top_ngrams": top}, began)


def _write_facts(out: Path, facts: dict[str, Any], began: float) -> None:
    cost = {"flops": 0.0, "tokens": 0.0, "seconds": time.monotonic() - began, "gpu_seconds": 0.0}
    (out / FACTS).write_text(json.dumps({**facts, "cost": cost}, ensure_ascii=False, indent=1), encoding="utf-8")


def self_train_stage(ctx: StageContext[SelfTrainParams]) -> dict[str, Any]:
    """Fit the linear model again, on train and on pieces of passages that the baseline labels.

    Validation chooses the number of pieces. The stage writes the files of `baseline`, and the labeled pieces for the
    encoder. For text pairs and regression, and if validation chooses no pieces, the stage copies the baseline and
    writes no pieces. Inputs: `task`, `baseline`, `selection`.
    """
    began = time.monotonic()
    task, first = Task.read(ctx.inputs["task"]), LinearResult.read(ctx.inputs["baseline"])
    if task.pair or not task.type.has_classes:
        _copy_baseline(ctx, task, {**first.facts, "amount": None}, began)
        return {"amount": None, "reason": "self-training supports only the classification of single texts"}
    pieces = _pieces(ctx.inputs["selection"], task)
    ctx.report.event("self_training", pieces=len(pieces))
    teacher = _labeled(LinearModel.read(ctx.inputs["baseline"]), pieces, first.facts["temperature"])
    setting, baseline = Setting(**first.facts["setting"]), first.outputs["validation"]
    result = self_train(task, baseline, teacher, pieces, setting, ctx.params.amounts)
    chosen = {"amount": result.amount, "separability": result.separability}
    facts = {**first.facts, **chosen, "amounts": result.scores}
    if (student := result.student) is None:
        _copy_baseline(ctx, task, facts, began)
        return {**chosen, "pieces": 0}
    facts["pieces"] = len(student.chosen)
    probabilities = np.exp(log_softmax(student.outputs / np.float32(first.facts["temperature"])))
    write_pieces(ctx.out, [pieces[number] for number in student.chosen], probabilities)
    outputs = _outputs(student.model, task, splits_of(task)) | {HELD_OUT: first.outputs[HELD_OUT]}
    _write_linear(ctx.out, task, student.model, outputs, facts, SELF_TRAINED, began)
    return {**chosen, "pieces": facts["pieces"]}


def _copy_baseline(ctx: StageContext[SelfTrainParams], task: Task, facts: dict[str, Any], began: float) -> None:
    """Write the baseline as the result of self-training, without pieces."""
    for path in ctx.inputs["baseline"].iterdir():
        if path.name != MANIFEST:
            shutil.copyfile(path, ctx.out / path.name)
    write_pieces(ctx.out, [], np.zeros((0, len(task.labels)), np.float32))
    _write_facts(ctx.out, facts, began)


def refit_linear(ctx: StageContext[StageParams]) -> dict[str, Any]:
    """Fit each linear model again, with its setting, on train and validation (`refit: true` of the recipe).

    For each model, except a copy of the baseline, the stage writes the files of `baseline` into the folder `linear` or
    `self_trained`. The outputs are only those for test splits. The refitted linear model labels the pieces of passages
    again. Inputs: `task` and `baseline`; also `self_train` and `selection` if `self_train` ran.
    """
    task, models = Task.read(ctx.inputs["task"]), read_linears(ctx.inputs)
    tests = [split for split in splits_of(task) if split != "validation"]
    rows = [row for split in LABELED for row in rows_of(task, split)]
    targets = np.concatenate([task.targets(split) for split in LABELED])
    fitted: LinearModel | None = None
    for name, first in models.items():
        if first.is_copy:
            continue
        began, facts, setting = time.monotonic(), dict(first.facts), Setting(**first.facts["setting"])
        ctx.report.event("refit", model=name)
        if fitted is not None:  # `name` is SELF_TRAINED
            pieces = _pieces(ctx.inputs["selection"], task)
            teacher = _labeled(fitted, pieces, first.facts["temperature"])
            most = piece_count(max(map(float, first.facts["amounts"])), len(rows))
            pool = Pool(rows, targets.astype(np.int64), pieces, teacher, setting, most)
            student = pool.student(Fits(), piece_count(first.facts["amount"], len(rows)))
            model, facts["pieces"] = student.model, len(student.chosen)
        else:
            features, sequences = Features.learn(rows, list(FAMILIES)[: setting.families], setting.start_words)
            solution = Fits().call(solver_of(task), features.matrix(sequences), targets, setting)
            model = fitted = LinearModel(features, *solution)
        (ctx.out / name).mkdir()
        _write_linear(ctx.out / name, task, model, _outputs(model, task, tests), facts, name, began)
    return {}


def _labeled(model: LinearModel, pieces: Sequence[str], temperature: float) -> Outputs:
    """Return the calibrated log-probabilities of the labels of pieces of passages, [pieces, labels]."""
    return log_softmax(model.outputs([(piece,) for piece in pieces]) / np.float32(temperature))


def _pieces(selection: Path, task: Task) -> list[str]:
    """Return at most MOST_PIECES evenly spaced pieces of passages. A piece is as long as the median train text."""
    words = max(5, int(np.median([len(words_and_blanks(text)) for text in task.texts("train")])))
    # The pieces of a whole corpus exceed the memory. So this pass only counts them.
    total = sum(1 for _ in _all_pieces(selection, words))
    step = max(1, math.ceil(total / MOST_PIECES))
    return list(islice(_all_pieces(selection, words), 0, None, step))


def _all_pieces(selection: Path, words: int) -> Iterator[str]:
    with open_parquet(selection / "passages.parquet") as file:
        batches = file.iter_batches(columns=["text"])
        yield from pieces_of((text for batch in batches for text in batch["text"].to_pylist()), words)


def top_ngrams(model: LinearModel, task: Task) -> dict[str, list[str]]:
    """Return label → the TOP_NGRAMS words and pairs of words with the highest weights, highest first."""
    names = model.features.word_names()
    order = np.argsort(-model.weights[: len(names)], axis=0)[:TOP_NGRAMS]
    return {label: [names[place] for place in order[:, number]] for number, label in enumerate(task.labels)}


def evaluate_linear(ctx: StageContext[StageParams]) -> dict[str, Any]:
    """Write the report of the linear model. Inputs: `task`, `baseline`, and, with `refit: true`, `refit_linear`."""
    report, predictions = linear_report(Task.read(ctx.inputs["task"]), read_linears(ctx.inputs)[LINEAR])
    report[REFIT] = REFIT_LINEAR in ctx.inputs
    write_report(ctx.out, report, predictions)
    return report_meta(report)


def export_linear(ctx: StageContext[StageParams]) -> dict[str, Any]:
    """Write the linear model as the model of the job. Inputs: `evaluate`, and the inputs of `evaluate_linear`."""
    folder = linear_folder(ctx.inputs, LINEAR)
    copy_model(folder, ctx.out)
    shutil.copyfile(ctx.inputs["evaluate"] / REPORT, ctx.out / REPORT)
    report = read_json(ctx.out / REPORT)
    facts = read_json(ctx.inputs["task"] / "task.json")
    (ctx.out / "README.md").write_text(linear_card(report, facts), encoding="utf-8")
    model = LinearModel.read(folder)
    return {"parameters": model.weights.size + model.bias.size}
