"""The last stage of a `share_tickets` job: scores of separate models, multi-task training, tickets, and baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from tlm_core.compression.masks import Mask
from tlm_core.compression.sharing import MASKS, load_shared
from tlm_core.compression.sliced import parameters
from tlm_core.evaluation.combine import LINEAR
from tlm_core.evaluation.report import LinearResult, Report, gain_in_words, linear_report, over_seeds, total_cost
from tlm_core.evaluation.summary import MAJORITY, training_time
from tlm_core.json_files import read_json
from tlm_core.studies.outputs import write_outputs
from tlm_core.studies.plot import Curve, plot
from tlm_core.tasks.merge import MERGE
from tlm_core.tasks.metrics import Summary, chance_in_words, summary
from tlm_core.tasks.task import Task
from tlm_core.training.evaluate import report_of, tests_of
from tlm_core.training.params import SeedsParams
from tlm_core.training.prepared import Prepared
from tlm_core.training.stage import StageContext
from tlm_core.training.state import load_model, read_history, read_shape

SYSTEMS = ("alone", "multi_task", "tickets")
COMPARED = (MAJORITY, *SYSTEMS, LINEAR)
DISTANCE = 0.2  # between the systems of one task in the plot; the distance between tasks is 1


def shared_report(ctx: StageContext[SeedsParams]) -> dict[str, object]:
    """Write `report.json`, `scores.csv` and `plot.svg`. The stage tests each model once, on all test sets.

    Inputs: `merged` and `prepared` of all tasks, `task.{number}`, `baseline.{number}`, `prepared.{number}`,
    `alone.{number}.s{seed}`, `multi_task.s{seed}`, `tickets.s{seed}`.
    """
    merged = read_json(ctx.inputs["merged"] / MERGE)
    seeds = ctx.params.seeds
    tasks = [_task(ctx.inputs, number, facts["name"], seeds) for number, facts in enumerate(merged)]
    average = {system: _average(tasks, system) for system in COMPARED}
    report: Report = {
        "kind": "share_tickets",
        "task": " + ".join(task["name"] for task in tasks),
        "metric": "value",
        "tasks": tasks,
        "average": average,
        "weights_left": _weights_left(ctx.inputs[f"tickets.s{seeds[0]}"]),
        "cost": _cost(ctx.inputs, len(tasks), seeds),
        "mean": {"test": {"value": average["tickets"]["mean"]}},
        "spread": {"test": {"value": average["tickets"]["std"]}},
    }
    report["words"] = words(report)
    names = [*(task["name"] for task in tasks), "mean of all"]
    title, y = "One encoder for several tasks", "score on test, each by its metric"
    drawing = plot(_curves(tasks, average), title=title, x="", y=y, names=names)
    write_outputs(ctx.out, report, "scores.csv", _rows(tasks), drawing)
    return {name: report[name] for name in ("metric", "mean", "spread", "words")}


def _rows(tasks: Sequence[Report]) -> list[Sequence[object]]:
    """Return the column names, and a row of test scores for each task, system and seed.

    The majority class and the linear model have one row for each task, with an empty seed. A task has empty cells for
    test sets of other tasks.
    """
    tests = ["test", *sorted({test for task in tasks for test in task["tests"]} - {"test"})]
    rows = [
        [
            *(task["name"], system, entry.get("seed", ""), task["metric"]),
            *(entry.get(test, {}).get("value", "") for test in tests),
        ]
        for task in tasks
        for system in COMPARED
        for entry in task[system]["seeds"]
    ]
    return [("task", "system", "seed", "metric", *tests), *rows]


def _curves(tasks: Sequence[Report], average: Mapping[str, Summary]) -> list[Curve]:
    """Return a curve for each system: mean and spread of its test scores for each task, and over all tasks.

    A missing score has no point.
    """
    curves = []
    for number, system in enumerate(COMPARED):
        scores = [(t[system]["mean"]["test"][t["metric"]], t[system]["spread"]["test"][t["metric"]]) for t in tasks]
        scores.append((average[system]["mean"], average[system]["std"]))
        offset = DISTANCE * (number - (len(COMPARED) - 1) / 2)
        points = [(place + offset, mean, std) for place, (mean, std) in enumerate(scores) if mean is not None]
        curves.append(Curve(system.replace("_", " "), points, line=False))
    return curves


def _task(inputs: Mapping[str, Path], number: int, name: str, seeds: Sequence[int]) -> Report:
    prepared, task = Prepared(inputs[f"prepared.{number}"]), Task.read(inputs[f"task.{number}"])
    load_part = partial(load_shared, number=number, labels=len(prepared.labels))
    entry: Report = {"name": name, "metric": prepared.metric, "tests": tests_of(prepared)}
    for system in SYSTEMS:
        node = f"alone.{number}" if system == "alone" else system
        folders = {seed: inputs[f"{node}.s{seed}"] for seed in seeds}
        report, _ = report_of(folders, prepared, task, load_model if system == "alone" else load_part)
        entry[system] = {key: report[key] for key in ("seeds", "mean", "spread")}
    report = linear_report(task, LinearResult.read(inputs[f"baseline.{number}"]))[0]
    entry[MAJORITY] = {"seeds": [report["majority"]], **over_seeds([report["majority"]])}
    runs = [{key: value for key, value in run.items() if key != "seed"} for run in report["seeds"]]
    entry[LINEAR] = {"seeds": runs, "mean": report["mean"], "spread": report["spread"]}
    return entry


def _average(tasks: Sequence[Report], system: str) -> Summary:
    """Return a system's score, summarized over seeds. The score of a seed is the mean of its test scores over tasks."""
    by_seed = zip(*([run["test"]["value"] for run in task[system]["seeds"]] for task in tasks), strict=True)
    return summary([summary(scores)["mean"] for scores in by_seed])


def _weights_left(folder: Path) -> list[float]:
    """Return, for each task, the share of the layers' weights that the task's ticket retains."""
    shape = read_shape(folder)
    counts = [parameters(shape, Mask.from_dict(mask)) for mask in read_json(folder / MASKS)]
    return [count["layers_left"] / count["layers_full"] for count in counts]


def _cost(inputs: Mapping[str, Path], tasks: int, seeds: Sequence[int]) -> dict[str, dict[str, float]]:
    """Return `total_cost` over all seeds, with the stages `prepare`, `joint`, each system, and the linear models."""
    nodes = [("alone", f"alone.{number}.s{seed}") for number in range(tasks) for seed in seeds]
    nodes += [(system, f"{system}.s{seed}") for system in SYSTEMS[1:] for seed in seeds]
    joint = [read_history(inputs[f"alone.0.s{seed}"])["joint"] for seed in seeds]  # All systems start from it.
    shared = [{"prepare": Prepared(inputs["prepared"]).facts["cost"]}, *({"joint": cost} for cost in joint if cost)]
    linear = [{LINEAR: LinearResult.read(inputs[f"baseline.{number}"]).facts["cost"]} for number in range(tasks)]
    systems = [{system: read_history(inputs[name])["cost"]} for system, name in nodes]
    return total_cost([*shared, *systems, *linear])


def words(report: Report) -> str:
    """Return a summary of the report, as a paragraph."""
    average = report["average"]
    alone, plain, tickets, linear = (average[system]["mean"] for system in (*SYSTEMS, LINEAR))
    left = float(np.mean(report["weights_left"]))
    if None in (alone, plain, tickets, linear):
        return "A test score could not be computed, so there is no mean over the tasks. See the scores of each task."
    text = (
        f"Over {len(report['tasks'])} tasks the mean test score is {tickets:.4f} with shared tickets ({left:.0%} of "
        f"the layers' weights), {plain:.4f} with plain multi-task training, {alone:.4f} with an encoder for each task "
        f"and {linear:.4f} with a linear model for each task."
    )
    chance = chance_in_words(tickets - plain, [average[system]["std"] for system in ("tickets", "multi_task")])
    names = "the encoder with shared tickets", "the linear model of each task"
    return " ".join([
        text,
        *([] if (majority := average[MAJORITY]["mean"]) is None else [f"The majority class has {majority:.4f}."]),
        *([f"Tickets compared with plain training: {chance}"] if chance else []),
        gain_in_words(names, "the mean score", tickets - linear, training_time(report)),
    ])  # fmt: skip
