"""The report of a job: the scores of each model on each split, the returned model, and the cost.

This module does not import torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tlm_core.evaluation.bootstrap import Difference, paired_difference
from tlm_core.evaluation.calibration import trust
from tlm_core.evaluation.combine import (
    COMBINED,
    ENCODER,
    LINEAR,
    WEIGHTED,
    Choice,
    Outputs,
    Scales,
    choose,
    scales_of,
)
from tlm_core.evaluation.suspects import rank_suspects
from tlm_core.tasks.metrics import METRICS, best_of, score, scores_for, summary
from tlm_core.tasks.task import Task

REPORT, PREDICTIONS = "report.json", "predictions.npz"
OUTPUTS, FACTS = "outputs.npz", "baseline.json"  # of the baseline stage
HELD_OUT = "held_out"  # outputs for train rows of models that did not see them

Report = dict[str, Any]
Cost = Mapping[str, Mapping[str, float]]
BySeed = dict[int, dict[str, tuple[Scales, Mapping[str, Outputs]]]]  # seed → model → scales, outputs by split


@dataclass(frozen=True)
class LinearResult:
    """What the baseline stage wrote. outputs: by split, and `held_out` for train."""

    outputs: Mapping[str, Outputs]
    facts: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> LinearResult:
        with np.load(folder / OUTPUTS) as arrays:
            outputs = {name: arrays[name] for name in arrays}
        return cls(outputs, json.loads((folder / FACTS).read_text(encoding="utf-8")))


@dataclass(frozen=True)
class EncoderResult:
    """The outputs of one seed's encoder by split, the history of its finetuning, and its cost by stage."""

    seed: int
    outputs: Mapping[str, Outputs]
    chosen: Mapping[str, Any]
    cost: Cost
    tries: Sequence[Mapping[str, Any]] = field(default=())


def splits_of(task: Task) -> list[str]:
    """Return the names of the splits that reports score."""
    return ["validation", "test", *task.further_tests]


def job_report(
    task: Task, encoders: Sequence[EncoderResult], linears: Mapping[str, LinearResult], shared_cost: Cost
) -> tuple[Report, dict[str, Outputs]]:
    """Return the report, and the outputs of the returned model of each seed as `{split}.s{seed}`.

    It reads the test targets, so call it once, after all training. linears: by name; empty scores the encoders alone.
    shared_cost: of the stages that all seeds share.
    """
    if not linears:
        by_seed: BySeed = {encoder.seed: {ENCODER: (Scales(), encoder.outputs)} for encoder in encoders}
        choice = Choice(ENCODER, {}, "The job has no other model.")
    else:
        choice, by_seed = _models(task, encoders, linears)
    returned = COMBINED if choice.model == WEIGHTED else choice.model
    seeds, predictions = [], dict[str, Outputs]()
    for encoder in encoders:
        models = by_seed[encoder.seed]
        scales, outputs = models[returned]
        entry: dict[str, Any] = {"seed": encoder.seed, "chosen": encoder.chosen, **_scores(task, outputs)}
        entry |= {"models": {name: _scores(task, of_model) for name, (_, of_model) in models.items()}}
        entry |= {"scales": asdict(scales), "cost": encoder.cost}
        entry |= {"tries": encoder.tries} if encoder.tries else {}
        predictions |= {f"{split}.s{encoder.seed}": values for split, values in outputs.items()}
        seeds.append(entry)
    best = seeds[best_of([entry["validation"]["value"] for entry in seeds])]
    report: Report = {
        "task": task.name,
        "metric": task.metric,
        "labels": list(task.labels),
        "returned": {"model": returned, "seed": best["seed"], "reason": choice.reason, "validation": choice.scores},
        "seeds": seeds,
        **over_seeds(seeds),
        "models": {name: over_seeds([entry["models"][name] for entry in seeds]) for name in seeds[0]["models"]},
        "majority": {split: _majority(task, split) for split in splits_of(task)},
        "best_seed": best["seed"],
        **_trust(task, by_seed[best["seed"]][returned][1]),
        "cost": total_cost([shared_cost, *(entry["cost"] for entry in seeds)]),
    }
    if linears:
        report["linear"] = linears[LINEAR].facts
        report["worth"] = _worth(task, report, predictions, linears[LINEAR])
        report |= _doubtful_labels(task, linears[LINEAR])
    for entry in seeds:  # the details of each class only for the returned model
        entry["models"] = {name: _compact(of_model) for name, of_model in entry["models"].items()}
    return report, predictions


def linear_report(task: Task, linear: LinearResult) -> tuple[Report, dict[str, Outputs]]:
    """Return the report of a job that trains the linear model alone, in the form of `job_report`."""
    outputs = {split: linear.outputs[split] for split in splits_of(task)}
    scores = _scores(task, outputs)
    cost = {"baseline": linear.facts["cost"]}
    entry = {"seed": 0, "chosen": {"score": scores["validation"]["value"]}, **scores, "cost": cost}
    report: Report = {
        "task": task.name,
        "metric": task.metric,
        "labels": list(task.labels),
        "returned": {"model": LINEAR, "seed": 0, "reason": "The job trains no other model.", "validation": {}},
        "seeds": [entry],
        **over_seeds([entry]),
        "models": {LINEAR: over_seeds([scores])},
        "majority": {split: _majority(task, split) for split in splits_of(task)},
        "best_seed": 0,
        **_trust(task, outputs),
        "linear": linear.facts,
        **_doubtful_labels(task, linear),
        "cost": total_cost([cost]),
    }
    return report, {f"{split}.s0": values for split, values in outputs.items()}


def _models(
    task: Task, encoders: Sequence[EncoderResult], linears: Mapping[str, LinearResult]
) -> tuple[Choice, BySeed]:
    """Choose the returned model. Return also the scales and outputs of each model by seed."""
    targets, last = task.targets("validation"), list(linears.values())[-1]
    on_validation = {name: linear.outputs["validation"] for name, linear in linears.items()}
    choice = choose(task, on_validation, [encoder.outputs["validation"] for encoder in encoders], targets)
    combination = WEIGHTED if choice.model == WEIGHTED else COMBINED
    by_seed: BySeed = {}
    for encoder in encoders:
        models: dict[str, tuple[Scales, Mapping[str, Outputs]]] = {}
        for name in (*linears, ENCODER, COMBINED):
            linear = linears.get(name, last)
            fitted = combination if name == COMBINED else name
            scales = scales_of(fitted, task.type, linear.outputs["validation"], encoder.outputs["validation"], targets)
            outputs = {
                split: scales.combine(task.type, linear.outputs[split], encoder.outputs[split])
                for split in splits_of(task)
            }
            models[name] = (scales, outputs)
        by_seed[encoder.seed] = models
    return choice, by_seed


def _scores(task: Task, outputs: Mapping[str, Outputs]) -> dict[str, Any]:
    return {
        split: score(
            task.targets(split),
            task.type.predict(outputs[split]),
            len(task.labels),
            task.metric,
            in_train=task.in_train(split),
        )
        for split in splits_of(task)
    }


def _compact(scores: Mapping[str, Any]) -> dict[str, Any]:
    """Return the scores of each split without those of classes."""
    details = {"per_class", "confusion", "deduplicated"}
    return {split: {k: v for k, v in of_split.items() if k not in details} for split, of_split in scores.items()}


def _majority(task: Task, split: str) -> dict[str, Any]:
    train, true = task.targets("train"), task.targets(split)
    return task.type.baseline(train, true, len(task.labels), task.metric, in_train=task.in_train(split))


def _trust(task: Task, outputs: Mapping[str, Outputs]) -> dict[str, dict[str, object]]:
    """Return `calibration` and `risk_coverage` of each test split; nothing for regression."""
    if not task.type.has_classes:
        return {}
    tests = {split: trust(outputs[split], task.targets(split)) for split in ("test", *task.further_tests)}
    return {name: {split: tests[split][name] for split in tests} for name in ("calibration", "risk_coverage")}


def _doubtful_labels(task: Task, linear: LinearResult) -> dict[str, dict[str, object]]:
    """Return `suspects`; nothing for regression."""
    if not task.type.has_classes:
        return {}
    outputs = {"train": linear.outputs[HELD_OUT], "validation": linear.outputs["validation"]}
    return {"suspects": asdict(rank_suspects(task, outputs))}


def _worth(task: Task, report: Report, predictions: Mapping[str, Outputs], linear: LinearResult) -> dict[str, Any]:
    """Compare the returned model with the linear model on test, and summarize the cost in one sentence."""
    runs = [task.type.predict(predictions[f"test.s{entry['seed']}"]) for entry in report["seeds"]]
    baseline = [task.type.predict(linear.outputs["test"])]
    seconds = report["cost"]["total"]["seconds"]
    if report["returned"]["model"] == LINEAR:
        return {"words": f"The job returns the linear model. {report['returned']['reason']}", "seconds": seconds}
    difference = paired_difference(task.metric, task.targets("test"), runs, baseline)
    if difference is None:
        return {"words": "Test has no score, so the models cannot be compared.", "seconds": seconds}
    return {**asdict(difference), "words": worth_in_words(task.metric, difference, seconds), "seconds": seconds}


def worth_in_words(metric: str, difference: Difference, seconds: float) -> str:
    """Say in one sentence whether the returned model is better than the linear model, and at what cost."""
    change = f"{difference.value:+.3f} in {METRICS[metric].title}"
    interval = f"95 % interval {difference.low:+.3f} to {difference.high:+.3f}"
    verdict = {"not distinguishable": "not distinguishable from"}.get(difference.verdict, f"{difference.verdict} than")
    return (
        f"On test the returned model is {verdict} the linear model: {change} ({interval}), "
        f"for {seconds / 60:.1f} minutes of training."
    )


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


def total_cost(costs: Sequence[Cost]) -> dict[str, dict[str, float]]:
    """Return FLOPs, tokens, seconds, and GPU-seconds of each stage, summed over the seeds, and last their `total`."""
    stages: dict[str, dict[str, float]] = {}
    total: dict[str, float] = {}
    for cost in costs:
        for stage, numbers in cost.items():
            for target in (stages.setdefault(stage, {}), total):
                for name, value in numbers.items():
                    target[name] = target.get(name, 0.0) + value
    return {**stages, "total": total}


def report_meta(report: Report) -> dict[str, Any]:
    """Return the part of a report that the artifact's metadata repeats."""
    return {name: report[name] for name in ("metric", "best_seed", "mean", "spread")}


def write_report(folder: Path, report: Report, predictions: Mapping[str, Outputs]) -> None:
    """Write `report.json` and the outputs of the returned models."""
    text = json.dumps(report, ensure_ascii=False, indent=1, allow_nan=False)
    (folder / REPORT).write_text(text, encoding="utf-8")
    np.savez_compressed(folder / PREDICTIONS, allow_pickle=False, **predictions)
