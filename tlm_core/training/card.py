"""The model card: what was trained on what, how well it does, and what that cost."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tlm_core.selection.selectors import SELECTORS
from tlm_core.tasks.metrics import METRICS, scores_shown
from tlm_core.tasks.types import task_type_of
from tlm_core.training.evaluate import total_cost
from tlm_core.training.recipe import OWN_STARTS


def _number(value: float | None, spread: float | None) -> str:
    if value is None:
        return "not computed"
    return f"{value:.4f}" + (f" ± {spread:.4f}" if spread is not None else "")


def _plain(text: object) -> str:
    """User text inside Markdown: one line, no markup, no table breaks."""
    line = " ".join(str(text).split())
    return "".join(f"\\{c}" if c in "\\`*_[]<>|#!" else c for c in line)


def _scores(report: Mapping[str, Any]) -> list[str]:
    mean, spread = report["mean"], report["spread"]
    baseline = task_type_of(report["metric"]).baseline_title
    names = scores_shown(report["metric"])
    header = f"| split | {' | '.join(METRICS[n].title for n in names)} | without texts that also stand in train |"
    lines = [header, "|---" * (len(names) + 2) + "|"]
    for split in mean:
        cells = [_number(mean[split][n], spread[split][n]) for n in (*names, "deduplicated")]
        lines.append(f"| {_plain(split)} | {' | '.join(cells)} |")
    if baseline is not None:
        majority = report["majority"]["test"]
        cells = [_number(majority[n], None) for n in names]
        lines.append(f"| test, {baseline} | {' | '.join(cells)} | |")
    return lines


def _costs(report: Mapping[str, Any]) -> list[str]:
    """What the weights cost; of a super ticket with the dense model and all tickets among which it was chosen."""
    costs, lines = report["cost"], ["Summed over all seeds.", ""]
    if "super_ticket" in report:
        parts = (report["dense"]["cost"], report["sweep_cost"])
        costs = total_cost([{name: cost for name, cost in part.items() if name != "total"} for part in parts])
        told = "Summed over all seeds; `tickets` is the finetuning of every ticket tried, `finetune` that of the whole"
        lines = [told, "model. Weighing heads and blocks is not counted.", ""]
    lines += ["| stage | FLOPs | tokens | seconds | GPU-seconds |", "|---|---|---|---|---|"]
    for stage, cost in costs.items():
        flops, tokens = f"{cost['flops']:.3g}", f"{cost['tokens']:,.0f}"
        lines.append(f"| {stage} | {flops} | {tokens} | {cost['seconds']:.1f} | {cost['gpu_seconds']:.1f} |")
    return lines


def _rates(report: Mapping[str, Any]) -> list[str]:
    """Which finetuning rate was chosen for each seed, where several were tried."""
    found = [f"{entry['chosen']['lr']:g} (seed {entry['seed']})" for entry in report["seeds"] if "tries" in entry]
    return ["", f"Finetuned at the rate that was best on validation: {', '.join(found)}."] if found else []


def _data(facts: Mapping[str, Any], recipe: Mapping[str, Any]) -> list[str]:
    counts = facts["counts"]
    lines = [f"- task texts: {counts['train']} train, {counts['validation']} validation, {counts['test']} test"]
    if facts["passages"]:
        tokens = facts["tokens"]["passages"]
        selected = SELECTORS[recipe["selection"]["selector"]].origin
        lines.append(f"- passages: {facts['passages']} ({tokens:,} tokens), {selected}")
        selection = facts.get("selection", {})
        if "corpus" in selection:
            lines.append(f"- corpus: {_plain(json.dumps(selection['corpus'], ensure_ascii=False))}")
    else:
        lines.append("- no passages: trained on the task alone")
    return lines


def _course(facts: Mapping[str, Any], recipe: Mapping[str, Any]) -> str:
    """How the weights came about: where they began, what the joint stage trained if there was one, the finetuning."""
    init, joint = recipe["model"]["init"], recipe["joint"]
    start = "trained from scratch" if init in OWN_STARTS else f"trained from the published encoder {_plain(init)}"
    if not joint["enabled"]:
        return f"{start} by the task's loss alone."
    texts = ["passages"] if facts["passages"] and joint["rho1"] else []
    if joint["mlm_on_task"] and (joint["rho2"] or not joint["task_loss"]):
        texts.append("the task's texts")
    losses = [f"masked language modelling on {' and '.join(texts)}"] if texts else []
    if joint["task_loss"] or not losses:
        losses.append("the task's loss")
    return f"{start} by {' together with '.join(losses)}, then by the task's loss alone (TLM, arXiv 2111.04130)."


def _pruning(report: Mapping[str, Any]) -> list[str]:
    """That a super ticket is one, and where its parts are missing."""
    if "super_ticket" not in report:
        return []
    ticket = report["super_ticket"]
    return [
        "",
        f"It is a super ticket (arXiv 2105.12002): the least important {ticket['level']:.0%} of its attention heads",
        "and feed-forward blocks were cut away, and what is left was finetuned again from the weights before that.",
        f"`model.onnx` holds the {ticket['left']:,} parameters that are left; these weights, for stock classes, have",
        f"the full size ({ticket['full']:,}) with zeros where parts are missing.",
    ]


def model_card(report: Mapping[str, Any], facts: Mapping[str, Any], recipe: Mapping[str, Any]) -> str:
    """Markdown text. report: the evaluate stage's; facts: the prepare stage's data.json; recipe: as resolved."""
    seeds = [entry["seed"] for entry in report["seeds"]]
    name = _plain(facts["task"]) or "task"
    spread_note = report["spread"].get("reason")
    chosen = "the best on validation"
    if all(entry["validation"]["value"] is None for entry in report["seeds"]):
        chosen = "the first, since validation has no score"
    scratch = ", trained-from-scratch" if recipe["model"]["init"] in OWN_STARTS else ""
    task_type = task_type_of(report["metric"])
    body = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-classification",
        f"tags: [text-classification{scratch}]",
        f"language: {json.dumps(facts['language'])}",
        "---",
        f"# {name}",
        "",
        f"A text {task_type.model} {_course(facts, recipe)}",
        *_pruning(report),
        "",
        *task_type.output_section([_plain(label) for label in facts["labels"]]),
        "",
        "## Scores",
        f"Mean over {len(seeds)} seed(s) {seeds}, ± sample standard deviation"
        + (f" ({spread_note})" if spread_note else "")
        + f". Metric that decides: {report['metric']}. These weights are of seed {report['best_seed']},",
        f"{chosen}. Test was read once for each seed, after all training.",
        "",
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
        "- The model may have memorised parts of the texts that it was trained on; treat the weights with the care",
        "  that those texts ask for.",
        f"- Texts longer than {facts['max_length']} tokens are cut.",
        "- Scores hold for texts like the test split's; nothing was measured beyond it.",
        "",
        "## Recipe",
        "```json",
        json.dumps(recipe, indent=1, sort_keys=True),
        "```",
        "",
    ]
    return "\n".join(body)
