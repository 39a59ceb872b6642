"""The report of a job: the scores of each model on each split, the returned model, and the cost.

This module does not import torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from tlm_core.evaluation.bootstrap import Difference, paired_difference
from tlm_core.evaluation.calibration import trust
from tlm_core.evaluation.combine import (
    COMBINED,
    ENSEMBLE,
    LINEAR,
    LINEAR_MODELS,
    MODELS,
    WEIGHTED,
    Choice,
    Outputs,
    Scales,
    average,
    choose,
    scales_of,
)
from tlm_core.evaluation.summary import (
    BEHIND,
    ENCODER,
    LINEAR_NODES,
    PREDICTIONS,
    REFIT,
    REPORT,
    STOCK,
    averaged_seeds,
    model_in_words,
    returned_seconds,
    time_in_words,
    training_time,
)
from tlm_core.evaluation.suspects import rank_suspects
from tlm_core.json_files import read_json
from tlm_core.tasks.metrics import METRICS, ONE_RUN, best_of, score, scores_for, summary
from tlm_core.tasks.task import Task
from tlm_core.wording import interval_in_words

OUTPUTS, FACTS = "outputs.npz", "baseline.json"  # files of the baseline stage
_ROWS = tuple(name for model in MODELS for name in ((model, STOCK) if model == ENCODER else (model,)))
HELD_OUT = "held_out"  # key of the outputs for train rows, from models that did not learn from these rows
REFIT_LINEAR = "refit_linear"  # the input with the linear models fitted again

Report = dict[str, Any]
Cost = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class LinearResult:
    """The result of fitting a linear model."""

    outputs: Mapping[str, Outputs]  # by split, and HELD_OUT → the cross-validated outputs for train
    facts: Mapping[str, Any]  # the content of `baseline.json`

    @classmethod
    def read(cls, folder: Path) -> LinearResult:
        with np.load(folder / OUTPUTS) as arrays:
            outputs = {name: arrays[name] for name in arrays}
        return cls(outputs, read_json(folder / FACTS))

    @property
    def is_copy(self) -> bool:
        """Whether self-training copied the baseline, because passages do not help or do not fit the task."""
        return not self.facts.get("amount", True)

    def refitted(self, folder: Path) -> LinearResult:
        """Return a copy with facts and test outputs of the refitted model in `folder`, and the cost of both fits."""
        last = LinearResult.read(folder)
        cost = total_cost([{folder.name: result.facts["cost"]} for result in (self, last)])["total"]
        return LinearResult({**self.outputs, **last.outputs}, {**last.facts, "cost": cost})


def read_linears(inputs: Mapping[str, Path]) -> dict[str, LinearResult]:
    """Return name → result for the linear models in a stage's inputs. A refit replaces the test outputs of a result."""
    results = {name: LinearResult.read(inputs[node]) for name, node in LINEAR_NODES.items() if node in inputs}
    if REFIT_LINEAR not in inputs:
        return results
    return {
        name: result if result.is_copy else result.refitted(linear_folder(inputs, name))
        for name, result in results.items()
    }


def linear_folder(inputs: Mapping[str, Path], name: str) -> Path:
    """Return the folder of the linear model `name` among a stage's inputs: the refitted model, if there is one."""
    return inputs[REFIT_LINEAR] / name if REFIT_LINEAR in inputs else inputs[LINEAR_NODES[name]]


@dataclass(frozen=True)
class EncoderResult:
    """The outputs of one seed's encoder by split, and its cost by stage."""

    seed: int
    outputs: Mapping[str, Outputs]
    chosen: Mapping[str, Any]  # the best result of finetuning
    cost: Cost
    tries: Sequence[Mapping[str, Any]] = field(default=())  # the results of all tried settings
    behind: Mapping[str, float] | None = None  # see `summary.BEHIND`
    refit: bool | None = None  # whether the refit trained the encoder again; None without a refit

    def facts(self) -> Report:
        """Return the values that a report states about the seed, except its scores."""
        facts = {"seed": self.seed, "chosen": self.chosen, "cost": self.cost}
        facts |= {BEHIND: self.behind} if self.behind else {}
        facts |= {} if self.refit is None else {REFIT: self.refit}
        return facts | ({"tries": self.tries} if self.tries else {})


def splits_of(task: Task) -> list[str]:
    """Return the names of the splits that reports score."""
    return ["validation", "test", *task.further_tests]


@dataclass(frozen=True)
class _Run:
    """The models of one seed, or of all seeds together. models: name → `Scales` and outputs by split."""

    models: Mapping[str, tuple[Scales, Mapping[str, Outputs]]]
    returned: str

    @property
    def outputs(self) -> Mapping[str, Outputs]:
        """The outputs of the returned model by split."""
        return self.models[self.returned][1]

    def scored(self, task: Task) -> Report:
        """Return the returned model's scores by split, its `scales`, and the scores of each model in `models`."""
        models = {name: _scores(task, outputs) for name, (_, outputs) in self.models.items()}
        scales = asdict(self.models[self.returned][0])
        if ENCODER in self.models:  # `model/` holds the encoder even if the job returns a linear model
            scales["encoder_temperature"] = self.models[ENCODER][0].encoder_temperature
        return {**models[self.returned], "models": models, "scales": scales}


def job_report(
    task: Task,
    encoders: Sequence[EncoderResult],
    linears: Mapping[str, LinearResult],
    shared_cost: Cost,
    *,
    ensemble: bool = False,
) -> tuple[Report, dict[str, Outputs]]:
    """Return the report, and name → outputs. For example, `test.s0` has the outputs of the model of seed 0 on test.

    With `ensemble`, `{split}.all` has the outputs of the returned model.
    The function reads the test targets, so call it once, after all training. linears: results by name; if empty,
    the report scores only encoders. shared_cost: cost of the stages that all seeds share. ensemble: whether the
    returned model averages encoders. Only the seeds of `averaged_seeds` influence the choice, the means and the
    returned model.
    """
    averaged = averaged_seeds([encoder.facts() for encoder in encoders])
    encoded = [encoder.outputs for encoder in encoders if encoder.seed in averaged]
    if ensemble:
        encoded = [{split: average(task.type, [outputs[split] for outputs in encoded]) for split in encoded[0]}]
    choice = _choice(task, encoders, linears, ENSEMBLE if ensemble else ENCODER, [of["validation"] for of in encoded])
    returned = COMBINED if choice.model == WEIGHTED else choice.model
    names, own = ((ENCODER,), ENCODER) if ensemble else ((*linears, ENCODER), returned)
    runs = {e.seed: _Run(_models(task, names, e.outputs, choice, linears), own) for e in encoders}
    seeds = [encoder.facts() | runs[encoder.seed].scored(task) for encoder in encoders]
    used = [entry for entry in seeds if entry["seed"] in averaged]
    # A returned linear model has equal scores for all seeds, so the encoders rank the seeds.
    ranked = [entry["models"][ENCODER] if returned in LINEAR_MODELS else entry for entry in used]
    best = used[best_of([scores["validation"]["value"] for scores in ranked])]
    file, scored, members = runs[best["seed"]], used, [best]
    if ensemble:
        file = _Run(_models(task, (*linears, ENSEMBLE), encoded[0], choice, linears), returned)
        scored, members = [file.scored(task)], used
    rows = {name: over_seeds(_runs_of(name, scored)) for name in file.models}
    rows |= {ENCODER: over_seeds(_runs_of(ENCODER, used))}
    rows |= {STOCK: over_seeds(_runs_of(ENCODER, [best]))} if len(seeds) > 1 else {}
    report: Report = {
        **_facts(task),
        "returned": _returned(task, choice, returned, members, scored[0] if ensemble else best),
        "seeds": seeds,
        "mean": rows[returned]["mean"],
        "spread": _spread(rows[returned]["spread"], len(seeds), shared=ensemble or returned in LINEAR_MODELS),
        "models": {name: rows[name] for name in _ROWS if name in rows},
        "best_seed": best["seed"],
        **_trust(task, file.outputs),
        "cost": total_cost([shared_cost, *(encoder.cost for encoder in encoders)]),
    }
    if linears:
        report["linear"] = linears[LINEAR].facts
        report["gain"] = _gain_over_linear(task, report, choice, file)
        report |= _doubtful_labels(task, linears[LINEAR])
    for entry in seeds:  # Only the returned model of each seed has the details of each class.
        entry["models"] = {name: _compact(of_model) for name, of_model in entry["models"].items()}
    predictions = {f"{split}.all": outputs for split, outputs in file.outputs.items()} if ensemble else {}
    for seed, run in runs.items():
        predictions |= {f"{split}.s{seed}": outputs for split, outputs in run.outputs.items()}
    return report, predictions


def linear_report(task: Task, linear: LinearResult) -> tuple[Report, dict[str, Outputs]]:
    """Return report and outputs, like `job_report`, for a job that trains only the linear model."""
    scales = Scales.of_linear(linear.facts["temperature"])
    of = linear.outputs
    outputs = {split: scales.combine(task.type, of[split], of[split]) for split in splits_of(task)}
    run = _Run({LINEAR: (scales, outputs)}, LINEAR)
    scored, cost = run.scored(task), {"baseline": linear.facts["cost"]}
    choice = Choice(LINEAR, "The job trains no other model.")
    report: Report = {
        **_facts(task),
        "returned": _returned(task, choice, LINEAR, [], scored),
        "seeds": [{"seed": 0, "chosen": {"score": scored["validation"]["value"]}, "cost": cost, **scored}],
        **over_seeds([scored]),
        "models": {LINEAR: over_seeds([scored])},
        "best_seed": 0,
        **_trust(task, run.outputs),
        "linear": linear.facts,
        **_doubtful_labels(task, linear),
        "cost": total_cost([cost]),
    }
    return report, {f"{split}.s0": outputs for split, outputs in run.outputs.items()}


def _facts(task: Task) -> Report:
    """Return facts of the task. `majority` has the scores of the best constant prediction on each split."""
    train, labels = task.targets("train"), list(task.labels)
    majority = {
        split: task.type.baseline(train, task.targets(split), len(labels), task.metric, repeated=task.repeated(split))
        for split in splits_of(task)
    }
    return {"task": task.name, "metric": task.metric, "labels": labels, "majority": majority}


def _returned(task: Task, choice: Choice, model: str, members: Sequence[Report], scored: Report) -> dict[str, object]:
    """Return the entry `returned` of the report. members: entries of the model's seeds. scored: from `_Run.scored`."""
    seeds = [] if model in LINEAR_MODELS else [entry["seed"] for entry in members]
    validation = {"validation": choice.scores, "validation_loss": choice.losses}
    facts = {"model": model, "seeds": seeds, "reason": choice.reason, **validation}
    return {**facts, "scales": scored["scales"], "scores": {split: scored[split] for split in splits_of(task)}}


def _choice(
    task: Task,
    encoders: Sequence[EncoderResult],
    linears: Mapping[str, LinearResult],
    name: str,
    validation: Sequence[Outputs],
) -> Choice:
    """Return the result of `choose`. If all encoders ended early, behind a linear model, choose the last linear model.

    name, validation: the arguments `encoder` and `encoders` of `choose`.
    """
    if not linears:
        return Choice(name, "A study returns its encoder, even if the linear model is better.")
    on_validation = {model: linear.outputs["validation"] for model, linear in linears.items()}
    choice = choose(task, on_validation, name, validation, task.targets("validation"))
    if all(encoder.behind for encoder in encoders):
        return replace(choice, model=list(linears)[-1], reason="Training ended early, behind the linear model.")
    return choice


def _runs_of(model: str, scored: Sequence[Report]) -> list[Report]:
    """Return a model's scores in each run, or in the first run for a linear model. scored: results of `_Run.scored`."""
    return [entry["models"][model] for entry in (scored[:1] if model in LINEAR_MODELS else scored)]


def _spread(spread: Report, seeds: int, *, shared: bool) -> Report:
    """Return the spread of the returned model, with a reason if it has one run. shared: one model for all seeds."""
    if spread.get("reason") != ONE_RUN:
        return spread
    if shared and seeds > 1:
        return {**spread, "reason": "the returned model is one model of all seeds"}
    return spread if shared or seeds > 1 else {**spread, "reason": f"{ONE_RUN}; give more seeds"}


def _models(
    task: Task,
    names: Sequence[str],
    encoder: Mapping[str, Outputs],
    choice: Choice,
    linears: Mapping[str, LinearResult],
) -> dict[str, tuple[Scales, Mapping[str, Outputs]]]:
    """Return `_Run.models` for the models in `names`, and for the combination with the last linear model.

    encoder: outputs of the encoder or ensemble by split. Without linear models, return only the last of `names`.
    """
    if not linears:
        return {names[-1]: (Scales(), encoder)}
    last = list(linears.values())[-1]
    models = {name: _scaled(task, name, linears.get(name, last), encoder) for name in names}
    combination = WEIGHTED if choice.model == WEIGHTED else COMBINED
    return models | {COMBINED: _scaled(task, combination, last, encoder)}


def _scaled(
    task: Task, model: str, linear: LinearResult, encoder: Mapping[str, Outputs]
) -> tuple[Scales, Mapping[str, Outputs]]:
    """Return the weights and temperatures of a model, fitted on validation, and its outputs by split."""
    targets, of = task.targets("validation"), linear.outputs
    scales = scales_of(model, task.type, of["validation"], encoder["validation"], targets)
    return scales, {split: scales.combine(task.type, of[split], encoder[split]) for split in splits_of(task)}


def _scores(task: Task, outputs: Mapping[str, Outputs]) -> Report:
    return {
        split: score(
            task.targets(split),
            task.type.predict(outputs[split]),
            len(task.labels),
            task.metric,
            repeated=task.repeated(split),
        )
        for split in splits_of(task)
    }


def _compact(scores: Report) -> Report:
    """Return the scores of each split without `per_class`, `confusion` and `deduplicated`."""
    details = {"per_class", "confusion", "deduplicated"}
    return {split: {k: v for k, v in of_split.items() if k not in details} for split, of_split in scores.items()}


def _trust(task: Task, outputs: Mapping[str, Outputs]) -> dict[str, dict[str, object]]:
    """Return `calibration` and `risk_coverage`, each by test split; {} for regression."""
    if not task.type.has_classes:
        return {}
    tests = {split: trust(outputs[split], task.targets(split)) for split in ("test", *task.further_tests)}
    return {name: {split: tests[split][name] for split in tests} for name in ("calibration", "risk_coverage")}


def _doubtful_labels(task: Task, linear: LinearResult) -> dict[str, dict[str, object]]:
    """Return `{"suspects": …}` with the result of `rank_suspects`; {} for regression."""
    if not task.type.has_classes:
        return {}
    outputs = {"train": linear.outputs[HELD_OUT], "validation": linear.outputs["validation"]}
    return {"suspects": rank_suspects(task, outputs)}


def _gain_over_linear(task: Task, report: Report, choice: Choice, run: _Run) -> Report:
    """Return the result of `gain` for the returned model and the linear model. run: the run of the returned model.

    If the job returns the linear model, the second model is the other model with the lowest loss on validation.
    """
    returned, reason = report["returned"]["model"], report["returned"]["reason"]
    if returned != LINEAR:
        first, second, opening = returned, LINEAR, ""
        names = "the returned model", model_in_words(LINEAR)
    else:
        others = [model for model in run.models if model != LINEAR]
        first, second = LINEAR, min(others, key=lambda model: choice.losses.get(model, math.inf))
        names, opening = (model_in_words(first), model_in_words(second)), f"The job returns the linear model. {reason} "
    tested = ([run.models[model][1]["test"]] for model in (first, second))
    result = gain(task, report, names, *tested) | {"against": second}
    own = returned_seconds(report)
    alone = f" The returned model alone took {time_in_words(own)}." if own < result["seconds"] else ""
    return result | {"words": f"{opening}{result['words']}{alone if 'value' in result else ''}"}


def gain(
    task: Task, report: Report, names: tuple[str, str], first: Sequence[Outputs], second: Sequence[Outputs]
) -> Report:
    """Return the fields of the `Difference` of two models on test, with `words` and the job's `seconds`.

    names: names of both models in `words`. first, second: the outputs of each model on test, one array for each run.
    """
    sides = [[task.type.predict(outputs) for outputs in runs] for runs in (first, second)]
    equal = all(np.array_equal(predicted, sides[0][0]) for runs in sides for predicted in runs)
    difference = paired_difference(task.metric, task.targets("test"), sides[0], sides[1])
    seconds = report["cost"]["total"]["seconds"]
    if difference is None:
        return {"words": "Test has no score, so the models cannot be compared.", "seconds": seconds}
    words = gain_in_words(names, METRICS[task.metric].title, difference, training_time(report), equal)
    return {**asdict(difference), "words": words, "seconds": seconds}


def gain_in_words(
    names: tuple[str, str], title: str, difference: Difference | float, time: str, equal: bool = False
) -> str:
    """Return sentences on whether the first model is better than the second on test, and what the whole job cost.

    title: name of the score. difference: a plain number if the predictions of the models cannot be paired. time: result
    of `training_time`. equal: whether both models make the same predictions.
    """
    cost = f"The whole job took {time}."
    if equal:
        return f"On test {names[0]} makes the same predictions as {names[1]}. {cost}"
    if isinstance(difference, Difference):
        value, interval = difference.value, interval_in_words(difference.low, difference.high)
        verdict = difference.relation
    else:
        value, interval = difference, "without an interval"
        verdict = "better than" if value > 0 else "not better than"
    return f"On test {names[0]} is {verdict} {names[1]}: {value:+.3f} in {title} ({interval}). {cost}"


def over_seeds(seeds: Sequence[Report]) -> Report:
    """Return `mean` and `spread` (sample standard deviation): split → score → value, or None if not defined.

    `spread` has a `reason` if the task's metric has no spread. seeds: results of `_Run.scored`.
    """
    result: Report = {"mean": {}, "spread": {}}
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
    """Return the cost of each stage, such as `{"joint": {"seconds": 60.0}}`, summed over `costs`.

    The entry `total` of the result sums all stages. An entry `total` in `costs` is ignored.
    """
    stages: dict[str, dict[str, float]] = {}
    total: dict[str, float] = {}
    for cost in costs:
        for stage, numbers in cost.items():
            if stage == "total":
                continue
            for target in (stages.setdefault(stage, {}), total):
                for name, value in numbers.items():
                    target[name] = target.get(name, 0.0) + value
    return {**stages, "total": total}


def report_meta(report: Report) -> Report:
    """Return the metric, the best seed, `mean` and `spread` of a report, for the metadata of the artifact."""
    return {name: report[name] for name in ("metric", "best_seed", "mean", "spread")}


def write_report(folder: Path, report: Report, predictions: Mapping[str, Outputs]) -> None:
    """Write `report.json`, and the outputs in `predictions` to `predictions.npz`."""
    text = json.dumps(report, ensure_ascii=False, indent=1, allow_nan=False)
    (folder / REPORT).write_text(text, encoding="utf-8")
    np.savez_compressed(folder / PREDICTIONS, allow_pickle=False, **predictions)
