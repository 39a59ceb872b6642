"""Learning curves, pruning and ticket sharing on real tasks.

    python -m benchmarks.quality.studies curve sci_cite csabstruct sources
    python -m benchmarks.quality.studies prune sciie sci_cite csabstruct
    python -m benchmarks.quality.studies share sciie acl_arc sci_cite csabstruct

With --minilm, `prune` and `share` use MiniLM, and `curve` adds a curve of MiniLM. `share` runs one study of all tasks.
The texts of the task `sources` are passages of the corpus. Their labels are their sources.
"""

from __future__ import annotations

import argparse
import shutil
from typing import Any

from benchmarks.quality.data import task_folder
from benchmarks.quality.pretrained import minilm, minilm_overrides
from benchmarks.quality.runs import TASK_ONLY, argument_parser, report_folder
from benchmarks.report import figure, remark
from benchmarks.shared import ROOT
from tlm_core.jobs.spec import JobSpec, KindOptions
from tlm_core.json_files import read_json
from tlm_core.kinds.learning_curve import LearningCurveOptions
from tlm_core.kinds.prune import PruneOptions
from tlm_core.kinds.share_tickets import ShareTicketsOptions
from tlm_core.training.recipe import resolve

# From 300 to 200,000 short texts. The limit on steps is one epoch of all texts.
LARGE = {"model.max_length": 24, "finetune.batch": 128, "finetune.max_steps": 1600, "finetune.evaluations": 3}
LARGE_SIZES = (300, 3000, 30_000, 1)


def main() -> None:
    studies = {"curve": curve, "prune": prune, "share": share}
    parser = argument_parser(__doc__, studies)
    parser.add_argument("--minilm", action="store_true", help="use MiniLM; a curve adds it as a model")
    parser.add_argument("--sizes", type=float, nargs="+", help="sizes of a curve: shares, or numbers of labels above 1")
    parser.add_argument("--lstm", default="4x256", help="BiLSTM of a curve, as layers x width")
    parser.add_argument("--levels", type=float, nargs="+", default=PruneOptions().levels, help="levels of pruning")
    parser.add_argument("--level", type=float, default=0.15, help="level of sharing")
    options = parser.parse_args()
    for tasks in [options.tasks] if options.study == "share" else [[task] for task in options.tasks]:
        studies[options.study](tasks, options)


def curve(tasks: list[str], options: argparse.Namespace) -> None:
    (task,) = tasks
    large = task == "sources"
    models = ["bilstm", "encoder", *([] if large else ["tlm"]), *(["pretrained"] * options.minilm)]
    layers, width = map(int, options.lstm.split("x"))
    study = LearningCurveOptions(
        sizes=options.sizes or (LARGE_SIZES if large else LearningCurveOptions().sizes),
        models=models,
        lstm={"layers": layers, "hidden": width, "embedding": width},
        pretrained=str(minilm()) if options.minilm else None,
    )
    report = _run("learning_curve", tasks, study, TASK_ONLY | LARGE if large else {}, options, f"curve-{task}")
    crossings = {"bilstm": report["against"]}
    for model, entry in report["models"].items():
        for point in entry["points"]:
            accuracies = [run["accuracy"] for run in point["runs"]]
            figure(f"{task}_{model}_{point['labels']}_labels", accuracies, unit="accuracy on test")
        remark(f"{task}, {model}: error = a n^-b + c with {entry['law']}")
        figure(f"{task}_{model}_ms_per_text", [1000 * entry["inference"]["seconds_per_text"]], unit="ms, one core")
        if "against" in entry:
            crossings[model] = entry["against"]
    for lstm, rivals in crossings.items():
        for model, crossing in rivals.items():
            labels = [] if crossing["labels"] is None else [crossing["labels"]]
            name, unit = f"{task}_{lstm}_within_1_percent_of_{model}", f"labels, {crossing['interval']}"
            figure(name, labels, unit=unit, reason=None if labels else crossing["reason"])
    for model, crossing in report["passes_linear"].items():
        labels = [] if crossing["measured"] is None else [crossing["measured"]]
        reason = None if labels else "not above the linear model at the largest size"
        figure(f"{task}_{model}_passes_linear", labels, unit="labels, measured", reason=reason)


def prune(tasks: list[str], options: argparse.Namespace) -> None:
    name, overrides = _encoder(options)
    study = PruneOptions(levels=options.levels)
    report = _run("prune", tasks, study, overrides, options, f"prune-{tasks[0]}-{name}")
    prefix, metric = f"{tasks[0]}_{name}", report["metric"]
    for point in report["curves"]:
        label = f"{prefix}_{point['ticket']}_{point['weights_left']:.2f}_left"
        figure(label, point["validation"], unit=f"{metric} on validation")
    figure(f"{prefix}_dense_test", [report["dense"]["mean"]["test"][metric]], unit=metric)
    figure(f"{prefix}_linear_test", [report["models"]["linear"]["mean"]["test"][metric]], unit=metric)
    figure(f"{prefix}_super_ticket_test", [seed["test"][metric] for seed in report["seeds"]], unit=metric)
    figure(f"{prefix}_super_ticket_speed_up", [report["inference"]["speed_up"]], unit="x, one core")


def share(tasks: list[str], options: argparse.Namespace) -> None:
    name, overrides = _encoder(options)
    study = ShareTicketsOptions(others=tuple(tasks[1:]), level=options.level)
    report = _run("share_tickets", tasks, study, overrides, options, f"share-{'-'.join(tasks)}-{name}")
    for system, average in report["average"].items():
        for task in report["tasks"]:
            values = [seed["test"]["value"] for seed in task[system]["seeds"]]
            figure(f"share_{name}_{task['name']}_{system}", values, unit=f"{task['metric']} on test")
        figure(f"share_{name}_average_{system}", [average["mean"]], unit=f"mean of tasks, ± {average['std']}")


def _encoder(options: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Return the name of the encoder in figures, and the recipe changes that select the encoder."""
    return ("minilm", minilm_overrides(2e-4, 10)) if options.minilm else ("ours", {})


def _run(
    kind: str, tasks: list[str], study: KindOptions, overrides: dict[str, Any], options: argparse.Namespace, label: str
) -> dict[str, Any]:
    """Run the study, copy its plot to docs/plots, and return its report."""
    spec = JobSpec(kind=kind, dataset=tasks[0], seeds=range(options.seeds), options=study)
    recipe = resolve("fast", "tiny", overrides | dict(options.overrides))
    folder = report_folder(spec, recipe, [task_folder(task) for task in tasks], label)
    if (folder / "plot.svg").exists():
        shutil.copy(folder / "plot.svg", ROOT / "docs/plots" / f"{label}.svg")
    report = read_json(folder / "report.json")
    remark(f"{label}: {report['words']}")
    return report


if __name__ == "__main__":
    main()
