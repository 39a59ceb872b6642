"""Learning curves, pruning and ticket sharing on real tasks: `python -m benchmarks.quality.studies curve sci_cite`.

    curve sci_cite csabstruct sources   learning curves; `sources` is made from the corpus (which source has this text?)
    prune sciie sci_cite csabstruct     Super Tickets of our model; with --minilm of the pretrained one, too
    share sciie acl_arc sci_cite csabstruct   ticket sharing over all that are named

In this process, all cores. Each part of a run is kept under build/quality/studies, and a run that was stopped goes on.
Figures go to standard output as JSON lines, plots to --plots. Hours, on two cores.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from benchmarks.quality.plans import free, run
from benchmarks.quality.pretrained import changes as pretrained_changes
from benchmarks.quality.pretrained import minilm
from benchmarks.quality.runs import FOLDER, key_of, made_task
from benchmarks.quality.sources import SOURCES, source_task
from benchmarks.report import figure, remark
from tlm_core.jobs.spec import JobSpec
from tlm_core.kinds.learning_curve import LearningCurveOptions
from tlm_core.kinds.prune import PruneOptions
from tlm_core.kinds.share_tickets import ShareTicketsOptions
from tlm_core.training.recipe import Recipe, resolve

ALONE = {"joint.enabled": False, "selection.selector": "none"}
# From 300 to 200,000 texts of one short task; the cap on steps is one epoch of all of them.
LARGE = {"model.max_length": 24, "finetune.batch": 128, "finetune.max_steps": 1600, "finetune.evaluations": 3}
LARGE_SIZES = (300, 3000, 30_000, 1)
LEVELS = (0.15, 0.3, 0.45, 0.6)
RATE = 2e-4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=("curve", "prune", "share"))
    parser.add_argument("tasks", nargs="+", help="folders under tasks/ of the shared data, or 'sources'")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sizes", type=float, nargs="+", help="of a curve: shares, or counts above 1")
    parser.add_argument("--models", nargs="+", help="of a curve")
    parser.add_argument("--lstm", default="4x256", help="layers x width of a curve's BiLSTM")
    parser.add_argument("--levels", type=float, nargs="+", default=list(LEVELS), help="of pruning")
    parser.add_argument("--level", type=float, default=0.15, help="of sharing")
    parser.add_argument("--minilm", action="store_true", help="pretrained: of a curve another row, else in our place")
    parser.add_argument("--rate", type=float, help=f"of MiniLM's finetuning, but in a curve (default {RATE:g})")
    parser.add_argument("--rows", type=int, default=SOURCES, help="train texts of 'sources'")
    parser.add_argument("--plots", type=Path, default=Path("docs/plots"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the recipe")
    given = parser.parse_args()
    if given.rate is not None and (given.study == "curve" or not given.minilm):
        parser.error("--rate belongs to --minilm of prune and share; the models of a curve have the recipe's")
    given.changes = {key: yaml.safe_load(value) for key, value in (pair.split("=", 1) for pair in given.set)}
    if given.minilm and given.study != "curve":
        given.changes = pretrained_changes(given.rate or RATE, 10) | given.changes
    if given.study == "share":
        _share(given)
        return
    for name in given.tasks:
        (_curve if given.study == "curve" else _prune)(name, given)


def _curve(name: str, given: argparse.Namespace) -> None:
    large = name == "sources"
    models = given.models or ["bilstm", "encoder", *([] if large else ["tlm"]), *(["pretrained"] * given.minilm)]
    sizes = given.sizes or (LARGE_SIZES if large else LearningCurveOptions().sizes)
    layers, width = map(int, given.lstm.split("x"))
    options = LearningCurveOptions(
        sizes=[int(size) if size > 1 else size for size in sizes if size <= 1 or size < given.rows],
        models=models,
        lstm={"layers": layers, "hidden": width, "embedding": width},
        pretrained=str(minilm()) if "pretrained" in models else None,
    )
    # The corpus holds the texts of 'sources' themselves: retrieval from it would say nothing.
    retrieving = bool({"tlm", "bilstm_tlm"} & set(models))
    recipe = resolve("fast", "tiny", ({} if retrieving else ALONE) | (LARGE if large else {}) | given.changes)
    spec = JobSpec(kind="learning_curve", dataset=name, seeds=range(given.seeds), options=options)
    report = _report(spec, recipe, [_task(name, given.rows)], given.plots, f"curve-{name}")
    for model, found in report["models"].items():
        for point in found["points"]:
            accuracies = [one["accuracy"] for one in point["runs"]]
            figure(f"{name}_{model}_{point['labels']}_labels", accuracies, unit="accuracy on test")
        law = found["law"]
        remark(f"{name}, {model}: error = a n^-b + c with {law}")
        figure(f"{name}_{model}_ms_per_text", [1000 * found["inference"]["seconds_per_text"]], unit="ms, one core")
    crossings = {"bilstm": report["against"]} | {
        m: one["against"] for m, one in report["models"].items() if "against" in one
    }
    for lstm, found in crossings.items():
        for model, against in found.items():
            labels = [] if against["labels"] is None else [against["labels"]]
            reason = None if labels else against["reason"]
            what = f"{name}_{lstm}_within_1_percent_of_{model}"
            figure(what, labels, unit=f"labels, {against['interval']}", reason=reason)


def _prune(name: str, given: argparse.Namespace) -> None:
    spec = JobSpec(
        kind="prune", dataset=name, seeds=range(given.seeds), options=PruneOptions(levels=tuple(given.levels))
    )
    kind = "minilm" if given.minilm else "ours"
    recipe = resolve("fast", "tiny", given.changes)
    report = _report(spec, recipe, [_task(name, given.rows)], given.plots, f"prune-{name}-{kind}")
    for point in report["curves"]:
        what = f"{name}_{kind}_{point['ticket']}_{point['weights_left']:.2f}_left"
        figure(what, point["validation"], unit=f"{report['metric']} on validation")
    metric = report["metric"]
    figure(f"{name}_{kind}_dense_test", [report["dense"]["mean"]["test"][metric]], unit=metric)
    figure(f"{name}_{kind}_super_ticket_test", [one["test"][metric] for one in report["seeds"]], unit=metric)
    figure(f"{name}_{kind}_super_ticket_speed_up", [report["inference"]["speed_up"]], unit="x, one core")


def _share(given: argparse.Namespace) -> None:
    first, *others = given.tasks
    options = ShareTicketsOptions(others=tuple(others), level=given.level)
    spec = JobSpec(kind="share_tickets", dataset=first, seeds=range(given.seeds), options=options)
    recipe = resolve("fast", "tiny", given.changes)
    kind = "minilm" if given.minilm else "ours"
    tasks = [_task(name, given.rows) for name in given.tasks]
    report = _report(spec, recipe, tasks, given.plots, f"share-{'-'.join(given.tasks)}-{kind}")
    for task in report["tasks"]:
        for system in report["average"]:
            values = [one["test"]["value"] for one in task[system]["seeds"]]
            figure(f"share_{kind}_{task['name']}_{system}", values, unit=f"{task['metric']} on test")
    for system, average in report["average"].items():
        figure(f"share_{kind}_average_{system}", [average["mean"]], unit=f"mean of tasks, ± {average['std']}")


def _task(name: str, rows: int) -> Path:
    return source_task(FOLDER / "task", rows) if name == "sources" else made_task(name)


def _report(spec: JobSpec, recipe: Recipe, tasks: list[Path], plots: Path, what: str) -> Mapping[str, Any]:
    """The study's report; it is computed once for each request, and its plot goes to `plots`."""
    asked = {
        "spec": spec.model_dump(mode="json"),
        "recipe": recipe.model_dump(mode="json"),
        "tasks": list(map(str, tasks)),
    }
    folder = FOLDER / "studies" / f"{what}-{key_of(asked)[:10]}"
    kept = folder / "report.json"
    if not kept.exists():
        last = run(spec, recipe, tasks, folder)
        if (last / "plot.svg").exists():
            shutil.copyfile(last / "plot.svg", folder / "plot.svg")
        shutil.copyfile(last / "report.json", kept)
        free(folder)
    if (folder / "plot.svg").exists():
        plots.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / "plot.svg", plots / f"{what}.svg")
    report: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
    remark(f"{what}: {report['words']}")
    return report


if __name__ == "__main__":
    main()
