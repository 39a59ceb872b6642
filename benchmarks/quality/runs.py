"""Jobs that run in this process, with their reports below build/quality and their figures as JSON lines.

A job that was interrupted resumes with its next node. A job with a report does not run again. Jobs share equal nodes,
for example the selection and the joint stages of two jobs that differ only in finetuning.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from benchmarks.quality.data import FOLDER, select_once, task_folder
from benchmarks.report import figure, remark
from benchmarks.shared import write_once
from tlm_core.artifacts import ManifestRef, digest_of
from tlm_core.compression.params import TicketParams
from tlm_core.jobs.plan import Node, Plan
from tlm_core.jobs.spec import DatasetInput, JobSpec, PlanInputs
from tlm_core.json_files import read_json
from tlm_core.training.local import compute
from tlm_core.training.params import SelectParams
from tlm_core.training.recipe import Recipe
from tlm_core.training.stage import DROPPED
from tlm_core.training.state import WEIGHTS

META = "node.json"  # in the folder of a node: the metadata of its artifact, and its seconds
TASK_ONLY = {"joint.enabled": False, "selection.selector": "none"}
# The nodes that do not count for the time to a model.
_UNTIMED = ("validate", "select", "evaluate", "export")


@dataclass(frozen=True)
class Score:
    """The score of a model on validation, and the seconds of all stages except `_UNTIMED`.

    Runs that compare recipes read no test score, so that test rows decide no change.
    """

    validation: float
    seconds: float


def argument_parser(description: str | None, studies: Collection[str] = ()) -> argparse.ArgumentParser:
    """Return a parser for tasks, seeds and changes of the recipe. studies: choices of a first argument."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if studies:
        parser.add_argument("study", choices=studies)
    parser.add_argument("tasks", nargs="+", help="folders below tasks/ of the shared data")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        type=_override,
        metavar="KEY=VALUE",
        help="recipe change for all runs",
    )
    return parser


def _override(text: str) -> tuple[str, Any]:
    key, _, value = text.partition("=")
    return key, yaml.safe_load(value)


def train(task: str, label: str, recipe: Recipe, seeds: Sequence[int]) -> list[Score]:
    """Train a recipe on a task with each seed, and return a score per seed. label: a name for remarks and files."""
    scores = []
    for seed in seeds:
        folder = report_of_run(task, label, recipe, [seed])
        (entry,) = read_json(folder / "report.json")["seeds"]
        nodes = read_json(folder / "seconds.json")
        seconds = sum(value for node, value in nodes.items() if node not in _UNTIMED)
        scores.append(Score(entry["chosen"]["score"], seconds))
    return scores


def report_of_run(task: str, label: str, recipe: Recipe, seeds: Sequence[int]) -> Path:
    """Run a `train` job as in `report_folder`, and return the folder with its report."""
    spec = JobSpec(dataset=task, seeds=tuple(seeds))
    return report_folder(spec, recipe, [task_folder(task)], " ".join([task, label, *map(str, seeds)]))


def print_scores(name: str, scores: Sequence[Score]) -> None:
    """Print the validation scores as a figure."""
    figure(f"{name}_validation", [score.validation for score in scores], unit="score")


def report_folder(spec: JobSpec, recipe: Recipe, tasks: Sequence[Path], label: str) -> Path:
    """Run a job unless its report exists. Return the folder with report.json, seconds.json and any plot.svg.

    tasks: the `validate` artifacts of the job's datasets. label: names the job in remarks and in the folder's name.
    """
    request = [spec.model_dump(mode="json"), recipe.model_dump(mode="json"), [str(task) for task in tasks]]
    name = f"{label.replace(' ', '-')}-{digest_of(request)[:12]}"

    def write(folder: Path) -> None:
        plan, nodes = run_plan(spec, recipe, tasks, label)
        folder.mkdir()
        for file in ("report.json", "plot.svg", "predictions.npz"):
            if (nodes[plan.report] / file).exists():
                shutil.copy(nodes[plan.report] / file, folder)
        seconds = {node: read_json(path / META)["seconds"] for node, path in nodes.items()}
        (folder / "seconds.json").write_text(json.dumps(seconds), encoding="utf-8")

    return write_once(FOLDER / "reports" / name, write)


def run_plan(spec: JobSpec, recipe: Recipe, tasks: Sequence[Path], label: str) -> tuple[Plan, dict[str, Path]]:
    """Run each node of a job's plan in a folder of its own. Return the plan and the folder of each node.

    A complete node does not run again, even if another job ran it. Raises InvalidRequest if the job's kind cannot use
    the recipe, and the errors of stages.
    """
    spec.check(recipe)
    refs = [ManifestRef(folder=str(task), digest=digest_of([str(task)])) for task in tasks]
    datasets = tuple(DatasetInput(id=f"ds_{number}", ref=ref) for number, ref in enumerate(refs))
    corpus = "shared@1" if recipe.selection.needs_corpus else None
    plan = spec.definition.plan(PlanInputs(spec.options, recipe, spec.seeds, datasets, spec.names, corpus))
    ids: dict[str, str] = {}
    folders: dict[str, Path] = {}
    for number, node in enumerate(plan.nodes, start=1):
        ids[node.name] = node.artifact_id(ids, label)
        folder = FOLDER / "nodes" / f"{node.stage.name}-{ids[node.name]}"
        if not folder.exists():
            remark(f"{label}: {node.name} ({number} of {len(plan.nodes)})")
            write_once(folder, partial(_run_node, node, dict(folders), tasks))
        folders[node.name] = folder
    return plan, folders


def _run_node(node: Node, folders: Mapping[str, Path], tasks: Sequence[Path], out: Path) -> None:
    """Write the artifact of a node and its metadata to `out`. folders: the artifacts of the nodes before it."""
    start = time.perf_counter()
    inputs = {name: folders[source] for name, source in node.inputs.items()}
    meta: dict[str, Any] = {}
    if not node.gathers and any(DROPPED in read_json(path / META) for path in inputs.values()):
        out.mkdir()
        meta = {DROPPED: "an input was dropped"}
    elif node.dataset is not None:
        shutil.copytree(tasks[node.dataset], out)
    elif isinstance(node.params, SelectParams):
        shutil.copytree(select_once(inputs["task"], node.params.selection), out)
    else:
        meta = dict(compute(node.stage, inputs, node.params, out))
    if isinstance(node.params, TicketParams) and node.params.which != "winning":
        (out / WEIGHTS).unlink(missing_ok=True)  # later nodes read only the history and mask; this saves disk space
    meta["seconds"] = time.perf_counter() - start
    (out / META).write_text(json.dumps(meta), encoding="utf-8")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects in a file of JSON lines. If the file does not exist, return an empty list."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def append_line(path: Path, values: Mapping[str, Any]) -> None:
    """Append an object to a file of JSON lines."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(values) + "\n")
