"""Predictions for a split, validation during training, and the report of the evaluate stage."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tlm_core.errors import OutOfMemory
from tlm_core.tasks.metrics import best_of, score, scores_for, summary
from tlm_core.tasks.task import SPLITS, Task
from tlm_core.training.architectures import Shape
from tlm_core.training.device import autocast, out_of_memory, pick_device
from tlm_core.training.memory import predicting_bytes, rows_at_once
from tlm_core.training.model import TaskModel, classifier_size
from tlm_core.training.objective import LOSSES, Workers, encode, micro_batches, pooled_logits
from tlm_core.training.params import SeedsParams
from tlm_core.training.prepared import Batch, Prepared, Split, task_batch
from tlm_core.training.stage import StageContext
from tlm_core.training.state import load_model, read_history

DOCUMENTS = 128

# (folder of a finetuned model, split) → label logits [n, labels].
Predictor = Callable[[Path, Split], npt.NDArray[np.float32]]


def predict(
    model: TaskModel,
    split: Split,
    prepared: Prepared,
    *,
    device: torch.device,
    precision: str = "fp32",
    workers: Workers | None = None,
) -> npt.NDArray[np.float32]:
    """Return the label logits [n, labels] of a split's texts, in its order: the means over each text's windows.

    Workers divide the windows; all get all logits.
    Raises OutOfMemory if one row of texts exceeds the device's memory.
    """
    workers = workers or Workers()
    rows = DOCUMENTS
    if isinstance(model.shape, Shape):  # an LSTM is small beside an encoder
        count = partial(predicting_bytes, model.shape, classifier_size(model))
        rows = rows_at_once(device.type, workers.size, DOCUMENTS, count)
    order = np.argsort(split.store.lengths, kind="stable")
    logits = torch.zeros(len(order), model.shape.labels)
    training = model.training
    model.eval()
    with torch.inference_mode(), autocast(precision, device):
        for number, begin in enumerate(range(0, len(order), DOCUMENTS)):
            if number % workers.size == workers.rank:
                batch = task_batch(split, order[begin : begin + DOCUMENTS], prepared)
                _predict_batch(model, batch, rows, device, logits)
    model.train(training)
    if workers.size > 1:
        logits = workers.sum(logits.to(device)).cpu()
    return split.means(logits.numpy())


def _predict_batch(model: TaskModel, batch: Batch, rows: int, device: torch.device, logits: Tensor) -> None:
    """Write the windows' logits into `logits` [windows, labels], `rows` rows at once, or fewer if memory runs out.

    Windows stay in their packed rows, so that smaller parts change only the rounding of sums.
    """
    for part in micro_batches(batch, Workers(), rows):
        try:
            hidden, segments = encode(model, part, device)
            values = pooled_logits(model, part, hidden, segments).cpu()
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            if len(part.rows) == 1:
                raise OutOfMemory(
                    "One row of texts exceeds the device's memory. Use a smaller model or a shorter max_length."
                ) from error
        else:
            logits[torch.from_numpy(part.rows.documents)] = values
            continue
        # Outside the handler, because the error refers to the failed computation's tensors.
        _predict_batch(model, part, -(-len(part.rows) // 2), device, logits)


def validation_scores(logits: npt.NDArray[np.float32], split: Split, prepared: Prepared) -> dict[str, float | None]:
    """Return the score by the task's metric, accuracy, and mean loss; None for what cannot be computed.

    logits: of a model in training, so the loss of regression is in squares of the train targets' standard deviation.
    """
    scores = scores_of(logits, split, prepared)
    labels = torch.from_numpy(prepared.standard(split.labels))
    loss = float(LOSSES[prepared.type.loss](torch.from_numpy(logits), labels)) / len(split)
    return {"score": scores["value"], "accuracy": scores["accuracy"], "loss": loss}


def scores_of(
    logits: npt.NDArray[np.float32],
    split: Split,
    prepared: Prepared,
    in_train: npt.NDArray[np.bool_] | None = None,
) -> dict[str, Any]:
    """Return the scores of the predicted targets, as `metrics.score` does."""
    predicted = prepared.type.predict(logits)
    return score(split.labels, predicted, len(prepared.labels), prepared.metric, in_train=in_train)


def evaluate(ctx: StageContext[SeedsParams]) -> dict[str, Any]:
    """Test each seed's model once, in fp32 like the exported model, and write report.json.

    Inputs: `prepared`, `task`, and `finetune.s{seed}` for each seed.
    """
    return evaluate_models(ctx, load_model)


def evaluate_models(ctx: StageContext[SeedsParams], load: Callable[[Path], TaskModel]) -> dict[str, Any]:
    """Write the report of each seed's model. load: reads a model from the folder that finetuning wrote."""
    prepared, task = Prepared(ctx.inputs["prepared"]), Task.read(ctx.inputs["task"])
    device, workers = pick_device(), Workers(ctx.rank, ctx.world_size)

    def predictor(folder: Path, split: Split) -> npt.NDArray[np.float32]:
        return predict(load(folder).to(device), split, prepared, device=device, workers=workers)

    folders = {seed: ctx.inputs[f"finetune.s{seed}"] for seed in ctx.params.seeds}
    report = report_of(folders, prepared, task, predictor)
    if not ctx.rank:
        text = json.dumps(report, ensure_ascii=False, indent=1, allow_nan=False)
        (ctx.out / "report.json").write_text(text, encoding="utf-8")
    return report_meta(report)


def report_meta(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a report that the artifact's metadata repeats."""
    return {name: report[name] for name in ("metric", "best_seed", "mean", "spread")}


def report_of(folders: Mapping[int, Path], prepared: Prepared, task: Task, predictor: Predictor) -> dict[str, Any]:
    """Return the scores of each seed's model on validation and test, their mean and spread, and the cost.

    folders: of the finetuned models, by seed. It reads test, so call it once, after all training.
    """
    seeds = [_seed_report(seed, folders[seed], prepared, task, predictor) for seed in sorted(folders)]
    best = seeds[best_of([entry["validation"]["value"] for entry in seeds])]
    return {
        "task": task.name,
        "metric": prepared.metric,
        "labels": prepared.labels,
        "seeds": seeds,
        **over_seeds(seeds),
        "majority": {split: _majority(prepared, task, split) for split in ("validation", *tests_of(prepared))},
        "best_seed": best["seed"],
        "cut_texts": prepared.facts.get("cut_texts", {}),
        "warnings": prepared.facts.get("warnings", []),
        "cost": total_cost([{"prepare": prepared.facts["cost"]}, *(entry["cost"] for entry in seeds)]),
    }


def _seed_report(seed: int, folder: Path, prepared: Prepared, task: Task, predictor: Predictor) -> dict[str, Any]:
    history = read_history(folder)
    entry: dict[str, Any] = {"seed": seed, "chosen": history["best"]}
    for name in ("validation", *tests_of(prepared)):
        split = prepared.split(name)
        entry[name] = scores_of(predictor(folder, split), split, prepared, task.in_train(name))
    if "tries" in history:
        entry["tries"] = history["tries"]
    entry["cost"] = {name: history[name] for name in ("joint",) if history[name]} | {"finetune": history["cost"]}
    return entry


def over_seeds(seeds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return `mean` and `spread` (sample standard deviation) of each score; None where it is not defined.

    `spread` has a `reason` if the metric that decides has no spread. Regression has no scores of classes.
    """
    result: dict[str, Any] = {"mean": {}, "spread": {}}
    metric = seeds[0]["test"]["metric"]
    for split in [name for name, entry in seeds[0].items() if isinstance(entry, Mapping) and "value" in entry]:
        for name in scores_for(metric):
            over = summary([entry[split][name] for entry in seeds])
            result["mean"].setdefault(split, {})[name] = over["mean"]
            result["spread"].setdefault(split, {})[name] = over["std"]
            if name == metric and "reason" in over:
                result["spread"]["reason"] = over["reason"]
        clean = summary([entry[split]["deduplicated"][metric] for entry in seeds])
        result["mean"][split]["deduplicated"] = clean["mean"]
        result["spread"][split]["deduplicated"] = clean["std"]
    return result


def tests_of(prepared: Prepared) -> list[str]:
    """Return the names of the test split and of any further test splits."""
    return ["test", *sorted(set(prepared.facts["counts"]) - set(SPLITS))]


def _majority(prepared: Prepared, task: Task, split: str) -> dict[str, Any]:
    train, true = task.targets("train"), task.targets(split)
    return task.type.baseline(train, true, len(prepared.labels), prepared.metric, in_train=task.in_train(split))


def total_cost(costs: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """Return FLOPs, tokens, seconds, and GPU-seconds of each stage, summed over the seeds, and last their `total`."""
    stages: dict[str, dict[str, float]] = {}
    total: dict[str, float] = {}
    for cost in costs:
        for stage, numbers in cost.items():
            for target in (stages.setdefault(stage, {}), total):
                for name, value in numbers.items():
                    target[name] = target.get(name, 0.0) + value
    return {**stages, "total": total}
