"""The model card: what was trained on what, how well it does, and what that cost."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tlm_core.tasks.metrics import REGRESSION, scores_shown

TITLES = {
    "macro_f1": "macro-F1",
    "micro_f1": "micro-F1",
    "accuracy": "accuracy",
    "f1": "F1 of the last label",
    "matthews": "Matthews correlation",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
}


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
    regression = report["metric"] in REGRESSION
    names = scores_shown(report["metric"])
    header = f"| split | {' | '.join(TITLES[n] for n in names)} | without texts that also stand in train |"
    lines = [header, "|---" * (len(names) + 2) + "|"]
    for split in mean:
        cells = [_number(mean[split][n], spread[split][n]) for n in (*names, "deduplicated")]
        lines.append(f"| {_plain(split)} | {' | '.join(cells)} |")
    if not regression:
        majority = report["majority"]["test"]
        cells = [_number(majority[n], None) for n in names]
        lines.append(f"| test, always the most frequent label | {' | '.join(cells)} | |")
    return lines


def _labels(metric: str, labels: Sequence[str]) -> list[str]:
    if metric in REGRESSION:
        amount = f"One number for each text, '{_plain(labels[0])}': the model's only output, as it is (regression)."
        return ["## Output", amount]
    return ["## Labels", *(f"{number}. {_plain(label)}" for number, label in enumerate(labels))]


def _costs(report: Mapping[str, Any]) -> list[str]:
    lines = ["| stage | FLOPs | tokens | seconds | GPU-seconds |", "|---|---|---|---|---|"]
    for stage, cost in report["cost"].items():
        flops, tokens = f"{cost['flops']:.3g}", f"{cost['tokens']:,.0f}"
        lines.append(f"| {stage} | {flops} | {tokens} | {cost['seconds']:.1f} | {cost['gpu_seconds']:.1f} |")
    return lines


def _rates(report: Mapping[str, Any]) -> list[str]:
    """Which finetuning rate was chosen for each seed, where several were tried."""
    found = [f"{entry['chosen']['lr']:g} (seed {entry['seed']})" for entry in report["seeds"] if "tries" in entry]
    return ["", f"Finetuned at the rate that was best on validation: {', '.join(found)}."] if found else []


def _data(facts: Mapping[str, Any]) -> list[str]:
    counts = facts["counts"]
    lines = [f"- task texts: {counts['train']} train, {counts['validation']} validation, {counts['test']} test"]
    if facts["passages"]:
        tokens = facts["tokens"]["passages"]
        lines.append(f"- retrieved passages: {facts['passages']} ({tokens:,} tokens), with train texts as queries")
        selection = facts.get("selection", {})
        if "corpus" in selection:
            lines.append(f"- corpus: {_plain(json.dumps(selection['corpus'], ensure_ascii=False))}")
    else:
        lines.append("- no retrieved text: trained on the task alone")
    return lines


def model_card(report: Mapping[str, Any], facts: Mapping[str, Any], recipe: Mapping[str, Any]) -> str:
    """Markdown text. report: the evaluate stage's; facts: the prepare stage's data.json; recipe: as resolved."""
    seeds = [entry["seed"] for entry in report["seeds"]]
    name = _plain(facts["task"]) or "task"
    spread_note = report["spread"].get("reason")
    kind = "regression model" if report["metric"] in REGRESSION else "classifier"
    body = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-classification",
        "tags: [text-classification, trained-from-scratch]",
        f"language: {json.dumps(facts['language'])}",
        "---",
        f"# {name}",
        "",
        f"A text {kind} trained from scratch on a labelled task and the passages retrieved for it",
        "(TLM, arXiv 2111.04130): masked language modelling and the task's loss together, then the task alone.",
        "",
        *_labels(report["metric"], facts["labels"]),
        "",
        "## Scores",
        f"Mean over {len(seeds)} seed(s) {seeds}, ± sample standard deviation"
        + (f" ({spread_note})" if spread_note else "")
        + f". Metric that decides: {report['metric']}. These weights are of seed {report['best_seed']},",
        "the best on validation. Test was read once for each seed, after all training.",
        "",
        *_scores(report),
        *_rates(report),
        "",
        "## Data",
        *_data(facts),
        "",
        "## Cost of training",
        "Summed over all seeds.",
        "",
        *_costs(report),
        "",
        "## Limits",
        "- The model may have memorised parts of the task's and the retrieved texts; treat the weights with the care",
        "  those texts ask for.",
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
