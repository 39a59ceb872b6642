"""The last stage of a `share_tickets` job: each task alone, plain multi-task training, shared tickets."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tlm_core.compression.masks import Mask
from tlm_core.compression.sharing import MASKS, load_shared
from tlm_core.compression.sliced import parameters
from tlm_core.studies.plot import Curve, write_plot
from tlm_core.tasks.merge import MERGE
from tlm_core.tasks.metrics import chance_in_words, summary
from tlm_core.tasks.task import Task
from tlm_core.training.architectures import Shape
from tlm_core.training.device import pick_device
from tlm_core.training.evaluate import predict, report_of, tests_of, total_cost
from tlm_core.training.params import SeedsParams
from tlm_core.training.prepared import Prepared, Split
from tlm_core.training.stage import StageContext
from tlm_core.training.state import SHAPE, load_model, read_history

SYSTEMS = ("alone", "multi_task", "tickets")
APART = 0.2  # between the systems of one task in the plot, where tasks are 1 apart


def shared_report(ctx: StageContext[SeedsParams]) -> dict[str, Any]:
    """Write `report.json`, `scores.csv` and `plot.svg`. Each model is tested once for each seed, on all its test sets.

    Inputs: `merged`, `task.{number}`, `prepared.{number}`, `alone.{number}.s{seed}`, `multi_task.s{seed}`,
    `tickets.s{seed}`. Parameter `seeds`.
    """
    if ctx.rank:
        return {}
    facts = json.loads((ctx.inputs["merged"] / MERGE).read_text(encoding="utf-8"))
    seeds = ctx.params.seeds
    tasks = [_task(ctx.inputs, number, one["name"], seeds) for number, one in enumerate(facts)]
    report: dict[str, Any] = {
        "kind": "share_tickets",
        "task": " + ".join(task["name"] for task in tasks),
        "metric": "value",
        "tasks": tasks,
        "average": {system: _average(tasks, system, len(seeds)) for system in SYSTEMS},
        "weights_left": _weights_left(ctx.inputs[f"tickets.s{seeds[0]}"], len(tasks)),
        "cost": _cost(ctx.inputs, len(tasks), seeds),
    }
    average = report["average"]
    report["mean"] = {"test": {"value": average["tickets"]["mean"]}}
    report["spread"] = {"test": {"value": average["tickets"]["std"]}}
    report["words"] = words(report)
    (ctx.out / "report.json").write_text(
        json.dumps(report, ensure_ascii=False, indent=1, allow_nan=False), encoding="utf-8"
    )
    _write_scores(ctx.out, tasks)
    _draw(ctx.out, report)
    return {name: report[name] for name in ("metric", "mean", "spread", "words")}


def _write_scores(out: Path, tasks: Sequence[Mapping[str, Any]]) -> None:
    """A row for each task, system and seed; a column for each test set, blank where the task has none of that name."""
    tests = ["test", *sorted({test for task in tasks for test in task["tests"]} - {"test"})]
    with open(out / "scores.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["task", "system", "seed", "metric", *tests])
        for task in tasks:
            for system in SYSTEMS:
                for entry in task[system]["seeds"]:
                    scores = [entry[test]["value"] if test in entry else "" for test in tests]
                    table.writerow([task["name"], system, entry["seed"], task["metric"], *scores])


def _draw(out: Path, report: Mapping[str, Any]) -> None:
    """Mean and spread of each system's test scores, task by task and over all; no plot where no score is known."""
    tasks, average = report["tasks"], report["average"]
    curves = []
    for number, system in enumerate(SYSTEMS):
        found = [(t[system]["mean"]["test"][t["metric"]], t[system]["spread"]["test"][t["metric"]]) for t in tasks]
        found.append((average[system]["mean"], average[system]["std"]))
        aside = APART * (number - (len(SYSTEMS) - 1) / 2)
        points = [(place + aside, mean, std) for place, (mean, std) in enumerate(found) if mean is not None]
        curves.append(Curve(system.replace("_", " "), points, drawn=False))
    names = [*(task["name"] for task in tasks), "mean of all"]
    title, y = "One encoder for several tasks", "score on test, each by its metric"
    write_plot(out / "plot.svg", curves, title=title, x="", y=y, names=names)


def _task(inputs: Mapping[str, Path], number: int, name: str, seeds: Sequence[int]) -> dict[str, Any]:
    prepared, task = Prepared(inputs[f"prepared.{number}"]), Task.read(inputs[f"task.{number}"])
    device, labels = pick_device(), len(prepared.labels)

    def alone(folder: Path, split: Split) -> npt.NDArray[np.float32]:
        return predict(load_model(folder).to(device), split, prepared, device=device)

    def together(folder: Path, split: Split) -> npt.NDArray[np.float32]:
        return predict(load_shared(folder, number, labels).to(device), split, prepared, device=device)

    found: dict[str, Any] = {"name": name, "metric": prepared.metric, "tests": tests_of(prepared)}
    for system in SYSTEMS:
        own = f"alone.{number}" if system == "alone" else system
        folders = {seed: inputs[f"{own}.s{seed}"] for seed in seeds}
        report = report_of(folders, prepared, task, alone if system == "alone" else together)
        found[system] = {key: report[key] for key in ("seeds", "mean", "spread")}
    return found


def _average(tasks: Sequence[Mapping[str, Any]], system: str, seeds: int) -> dict[str, Any]:
    """Mean over tasks of the test score by each task's own metric, for each seed, and over seeds."""
    by_seed = [summary([task[system]["seeds"][i]["test"]["value"] for task in tasks])["mean"] for i in range(seeds)]
    return summary(by_seed)


def _weights_left(folder: Path, tasks: int) -> list[float]:
    """Share of the layers' weights that each task's ticket holds (of the first seed)."""
    shape = Shape.from_dict(json.loads((folder / SHAPE).read_text(encoding="utf-8")))
    masks = [Mask.from_dict(mask) for mask in json.loads((folder / MASKS).read_text(encoding="utf-8"))]
    counts = [parameters(shape, mask) for mask in masks[:tasks]]
    return [count["layers_left"] / count["layers_full"] for count in counts]


def _cost(inputs: Mapping[str, Path], tasks: int, seeds: Sequence[int]) -> dict[str, dict[str, float]]:
    """Of finetuning, by system; what all of them begin with (the joint stage) is not in it."""
    nodes = [("alone", f"alone.{number}.s{seed}") for number in range(tasks) for seed in seeds]
    nodes += [(system, f"{system}.s{seed}") for system in SYSTEMS[1:] for seed in seeds]
    return total_cost([{system: read_history(inputs[name])["cost"]} for system, name in nodes])


def words(report: Mapping[str, Any]) -> str:
    """What came out, in a sentence or two."""
    average = report["average"]
    alone, plain, tickets = (average[system]["mean"] for system in SYSTEMS)
    left = float(np.mean(report["weights_left"]))
    if None in (alone, plain, tickets):
        return "Some test score could not be computed, so there is no mean over the tasks; see the single scores."
    text = (
        f"Over {len(report['tasks'])} tasks the mean test score is {tickets:.4f} with shared tickets ({left:.0%} of "
        f"the layers' weights), {plain:.4f} with plain multi-task training and {alone:.4f} with a model for each task."
    )
    chance = chance_in_words(tickets - plain, [average[system]["std"] for system in ("tickets", "multi_task")])
    return f"{text} Tickets against plain training: {chance}" if chance else text
