"""The model card: what the model was trained on, its scores, and the cost."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tlm_core.evaluation.report import total_cost
from tlm_core.selection.selectors import SELECTORS
from tlm_core.tasks.metrics import METRICS, scores_shown
from tlm_core.tasks.types import task_type_of
from tlm_core.training.params import CardRecipe
from tlm_core.training.recipe import OWN_STARTS

Facts = Mapping[str, Any]


def model_card(report: Facts, facts: Facts, recipe: CardRecipe) -> str:
    """Return the card as Markdown. report: of the evaluate stage. facts: the prepare stage's data.json."""
    own_start = recipe.model.init in OWN_STARTS
    task_type = task_type_of(report["metric"])
    body = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-classification",
        f"tags: [text-classification{', trained-from-scratch' if own_start else ''}]",
        f"language: {json.dumps(facts['language'])}",
        "---",
        f"# {_plain(facts['task']) or 'task'}",
        "",
        f"A text {task_type.model} {_training(facts, recipe)}",
        *_pruning(report),
        "",
        *task_type.output_section([_plain(label) for label in facts["labels"]]),
        "",
        "## Scores",
        *_scores(report),
        *_rates(report),
        "",
        "## Data",
        *_data(facts, recipe),
        "",
        "## Cost of training",
        *_costs(report),
        "",
        "## Limits",
        "- The model may have memorized parts of its training texts. Treat the weights with the care that these need.",
        *_lengths(facts),
        *(f"- {warning}" for warning in report.get("warnings", ())),
        "- The scores hold for texts like those of the test split. Nothing else was measured.",
        "",
        "## Recipe",
        "```json",
        json.dumps(recipe.model_dump(mode="json"), indent=1, sort_keys=True),
        "```",
        "",
    ]
    return "\n".join(body)


def _number(value: float | None, spread: float | None = None) -> str:
    if value is None:
        return "not computed"
    return f"{value:.4f}" + (f" ± {spread:.4f}" if spread is not None else "")


def _plain(text: object) -> str:
    """Return user text for Markdown: one line, without markup."""
    line = " ".join(str(text).split())
    return "".join(f"\\{c}" if c in "\\`*_[]<>|#!" else c for c in line)


def _training(facts: Facts, recipe: CardRecipe) -> str:
    """Describe how the weights were trained."""
    joint = recipe.joint
    start = "trained from scratch"
    if recipe.model.init not in OWN_STARTS:
        start = f"trained from the published encoder {_plain(recipe.model.init)}"
    if not joint.enabled:
        return f"{start} by the task's loss alone."
    texts = ["passages"] if facts["passages"] and joint.rho1 else []
    if joint.mlm_on_task and (joint.rho2 or not joint.task_loss):
        texts.append("the task's texts")
    losses = [f"masked language modeling on {' and '.join(texts)}"] if texts else []
    if joint.task_loss or not losses:
        losses.append("the task's loss")
    return f"{start} by {' together with '.join(losses)}, then by the task's loss alone (TLM, arXiv 2111.04130)."


def _pruning(report: Facts) -> list[str]:
    if "super_ticket" not in report:
        return []
    ticket = report["super_ticket"]
    return [
        "",
        f"It is a super ticket (arXiv 2105.12002): the least important {ticket['level']:.0%} of its attention heads",
        "and feed-forward blocks were removed, and the rest was finetuned again from the weights before finetuning.",
        f"`model.onnx` holds the remaining {ticket['left']:,} parameters. These weights, for stock classes, have the",
        f"full size ({ticket['full']:,}), with zeros for the removed parts.",
    ]


def _scores(report: Facts) -> list[str]:
    mean, spread, seeds = report["mean"], report["spread"], [entry["seed"] for entry in report["seeds"]]
    scored = any(entry["validation"]["value"] is not None for entry in report["seeds"])
    chosen = "the best on validation" if scored else "the first, because validation has no score"
    note = f" ({spread['reason']})" if spread.get("reason") else ""
    names = scores_shown(report["metric"])
    lines = [
        f"Mean over {len(seeds)} seed(s) {seeds}, ± sample standard deviation{note}. Metric that decides: "
        f"{report['metric']}. These weights",
        f"are of seed {report['best_seed']}, {chosen}. Test was read once for each seed, after all training.",
        "",
        f"| split | {' | '.join(METRICS[name].title for name in names)} | without texts that are also in train |",
        "|---" * (len(names) + 2) + "|",
    ]
    for split in mean:
        cells = [_number(mean[split][name], spread[split][name]) for name in (*names, "deduplicated")]
        lines.append(f"| {_plain(split)} | {' | '.join(cells)} |")
    baseline = task_type_of(report["metric"]).baseline_title
    if baseline is not None:
        cells = [_number(report["majority"]["test"][name]) for name in names]
        lines.append(f"| test, {baseline} | {' | '.join(cells)} | |")
    return lines


def _rates(report: Facts) -> list[str]:
    choices = []
    for chosen, seed in ((entry["chosen"], entry["seed"]) for entry in report["seeds"] if "tries" in entry):
        weights = f" with class weights {chosen['class_weights']}" if "class_weights" in chosen else ""
        choices.append(f"rate {chosen['lr']:g}{weights} (seed {seed})")
    return ["", f"Finetuned with what was best on validation: {', '.join(choices)}."] if choices else []


def _data(facts: Facts, recipe: CardRecipe) -> list[str]:
    counts = facts["counts"]
    lines = [f"- task texts: {counts['train']} train, {counts['validation']} validation, {counts['test']} test"]
    if not facts["passages"]:
        return [*lines, "- no passages: trained on the task alone"]
    origin = SELECTORS[recipe.selection.selector].origin
    lines.append(f"- passages: {facts['passages']} ({facts['tokens']['passages']:,} tokens), {origin}")
    if "corpus" in facts.get("selection", {}):
        lines.append(f"- corpus: {_plain(json.dumps(facts['selection']['corpus'], ensure_ascii=False))}")
    return lines


def _lengths(facts: Facts) -> list[str]:
    """Return how long texts are read."""
    length, windows = facts["max_length"], facts.get("max_windows", 1)
    if windows == 1:
        return [f"- Texts longer than {length} tokens are truncated."]
    return [
        f"- The scores are those of `model.onnx` and of the service: they read up to {windows} windows of {length}",
        f"  tokens of a text and average their logits. Stock classes read the first {length} tokens alone.",
    ]


def _costs(report: Facts) -> list[str]:
    """Return the cost of the weights; for a super ticket with the dense model and all tickets of the sweep."""
    costs, lines = report["cost"], ["Summed over all seeds."]
    if "super_ticket" in report:
        parts = (report["dense"]["cost"], report["sweep_cost"])
        costs = total_cost([{name: cost for name, cost in part.items() if name != "total"} for part in parts])
        lines = [
            "Summed over all seeds. `tickets` is the finetuning of all tickets, `finetune` that of the dense model.",
            "The cost of measuring importance is not included.",
        ]
    lines += ["", "| stage | FLOPs | tokens | seconds | GPU-seconds |", "|---|---|---|---|---|"]
    for stage, cost in costs.items():
        flops, tokens = f"{cost['flops']:.3g}", f"{cost['tokens']:,.0f}"
        lines.append(f"| {stage} | {flops} | {tokens} | {cost['seconds']:.1f} | {cost['gpu_seconds']:.1f} |")
    return lines
