"""Predictions over a split, validation during training, and the report of the evaluate stage."""

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

# Label logits [n, labels] of a split, by the model that finetuning left in a folder.
Answer = Callable[[Path, Split], npt.NDArray[np.float32]]


def predict(
    model: TaskModel,
    split: Split,
    prepared: Prepared,
    *,
    device: torch.device,
    precision: str = "fp32",
    workers: Workers | None = None,
) -> npt.NDArray[np.float32]:
    """Label logits [n, labels] of a split, in its order; the workers share the texts and all get the whole.

    Raises OutOfMemory where not even one row of texts fits the device.
    """
    workers = workers or Workers()
    rows = DOCUMENTS
    if isinstance(model.shape, Shape):  # not counted for a recurrence, which is small beside an encoder
        count = partial(predicting_bytes, model.shape, classifier_size(model))
        rows = rows_at_once(device.type, workers.size, DOCUMENTS, count)
    order = np.argsort(split.store.lengths, kind="stable")
    logits = torch.zeros(len(split), model.shape.labels)
    training = model.training
    model.eval()
    with torch.inference_mode(), autocast(precision, device):
        for number, begin in enumerate(range(0, len(split), DOCUMENTS)):
            if number % workers.size == workers.rank:
                batch = task_batch(split, order[begin : begin + DOCUMENTS], prepared)
                _answer(model, batch, rows, device, logits)
    model.train(training)
    if workers.size > 1:
        logits = workers.sum(logits.to(device)).cpu()
    result: npt.NDArray[np.float32] = logits.numpy()
    return result


def _answer(model: TaskModel, batch: Batch, rows: int, device: torch.device, logits: Tensor) -> None:
    """Write the texts' label logits into `logits` [n, labels], from `rows` rows at once or as few as the device holds.

    The texts stay in the rows into which they were packed, so that cutting changes no more than the sums' rounding.
    """
    for part in micro_batches(batch, Workers(), rows):
        try:
            hidden, segments = encode(model, part, device)
            found = pooled_logits(model, part, hidden, segments).cpu()
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            if len(part.rows) == 1:
                raise OutOfMemory(
                    "not even one row of texts fits the device; use a smaller model or a shorter max_length"
                ) from error
        else:
            logits[torch.from_numpy(part.rows.documents)] = found
            continue
        # Out of the handler, whose error would hold on to what had been computed.
        _answer(model, part, -(-len(part.rows) // 2), device, logits)


def validation_scores(logits: npt.NDArray[np.float32], split: Split, prepared: Prepared) -> dict[str, float | None]:
    """The score that decides (the task's metric), accuracy and mean loss; null what cannot be computed.

    logits: of a model in training, so that the loss of regression is in squares of train's standard deviation.
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
    """Scores of the predicted targets, as `metrics.score` returns them."""
    predicted = prepared.type.predict(logits)
    return score(split.labels, predicted, len(prepared.labels), prepared.metric, in_train=in_train)


def evaluate(ctx: StageContext[SeedsParams]) -> dict[str, Any]:
    """Read test once for each seed's chosen model, in fp32 as the exported model computes, and write report.json.

    Inputs: `prepared`, `task`, and `finetune.s{seed}` for each seed.
    """
    prepared, task = Prepared(ctx.inputs["prepared"]), Task.read(ctx.inputs["task"])
    device, workers = pick_device(), Workers(ctx.rank, ctx.world_size)

    def answer(folder: Path, split: Split) -> npt.NDArray[np.float32]:
        return predict(load_model(folder).to(device), split, prepared, device=device, workers=workers)

    folders = {seed: ctx.inputs[f"finetune.s{seed}"] for seed in ctx.params.seeds}
    report = report_of(folders, prepared, task, answer)
    if not ctx.rank:
        text = json.dumps(report, ensure_ascii=False, indent=1, allow_nan=False)
        (ctx.out / "report.json").write_text(text, encoding="utf-8")
    return told(report)


def told(report: Mapping[str, Any]) -> dict[str, Any]:
    """What a job's record keeps of its report."""
    return {name: report[name] for name in ("metric", "best_seed", "mean", "spread")}


def report_of(folders: Mapping[int, Path], prepared: Prepared, task: Task, answer: Answer) -> dict[str, Any]:
    """Scores of each seed's finetuned model on validation and test, their mean and spread, and what they cost.

    folders: what finetuning wrote, by seed. Reads test: call it once, when all training is done.
    """
    seeds = [_seed_report(seed, folders[seed], prepared, task, answer) for seed in sorted(folders)]
    best = seeds[best_of([entry["validation"]["value"] for entry in seeds])]
    return {
        "task": task.name,
        "metric": prepared.metric,
        "labels": prepared.labels,
        "seeds": seeds,
        **over_seeds(seeds),
        "majority": {split: _majority(prepared, task, split) for split in ("validation", *tests_of(prepared))},
        "best_seed": best["seed"],
        "cost": total_cost([{"prepare": prepared.facts["cost"]}, *(entry["cost"] for entry in seeds)]),
    }


def _seed_report(seed: int, folder: Path, prepared: Prepared, task: Task, answer: Answer) -> dict[str, Any]:
    history = read_history(folder)
    entry: dict[str, Any] = {"seed": seed, "chosen": history["best"]}
    for name in ("validation", *tests_of(prepared)):
        split = prepared.split(name)
        entry[name] = scores_of(answer(folder, split), split, prepared, task.in_train(name))
    if "tries" in history:
        entry["tries"] = history["tries"]
    entry["cost"] = {name: history[name] for name in ("joint",) if history[name]} | {"finetune": history["cost"]}
    return entry


def over_seeds(seeds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """`mean` and `spread` (sample standard deviation) of each score; null where there is none.

    `spread` has a `reason` where the metric that decides has none; regression has no scores of classes.
    """
    found: dict[str, Any] = {"mean": {}, "spread": {}}
    metric = seeds[0]["test"]["metric"]
    for split in [name for name, entry in seeds[0].items() if isinstance(entry, Mapping) and "value" in entry]:
        for name in scores_for(metric):
            over = summary([entry[split][name] for entry in seeds])
            found["mean"].setdefault(split, {})[name] = over["mean"]
            found["spread"].setdefault(split, {})[name] = over["std"]
            if name == metric and "reason" in over:
                found["spread"]["reason"] = over["reason"]
        clean = summary([entry[split]["deduplicated"][metric] for entry in seeds])
        found["mean"][split]["deduplicated"] = clean["mean"]
        found["spread"][split]["deduplicated"] = clean["std"]
    return found


def tests_of(prepared: Prepared) -> list[str]:
    """The test set and any further ones."""
    return ["test", *sorted(set(prepared.facts["counts"]) - set(SPLITS))]


def _majority(prepared: Prepared, task: Task, split: str) -> dict[str, Any]:
    train, true = task.targets("train"), task.targets(split)
    return task.type.baseline(train, true, len(prepared.labels), prepared.metric, in_train=task.in_train(split))


def total_cost(costs: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """FLOPs, tokens, seconds and GPU-seconds of each stage, summed over the seeds, and `total`, which comes last."""
    found: dict[str, dict[str, float]] = {}
    total: dict[str, float] = {}
    for cost in costs:
        for stage, numbers in cost.items():
            for target in (found.setdefault(stage, {}), total):
                for name, value in numbers.items():
                    target[name] = target.get(name, 0.0) + value
    return {**found, "total": total}
