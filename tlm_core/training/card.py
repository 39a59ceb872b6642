"""The model card: the training of a model, its scores, and its cost."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from tlm_core.evaluation.summary import (
    MAJORITY,
    REFIT,
    ModelRow,
    averaged_seeds,
    model_rows,
    refit_in_words,
    returned_model,
    sentences,
)
from tlm_core.selection.selectors import SELECTORS
from tlm_core.tasks.metrics import METRICS, scores_shown
from tlm_core.tasks.types import task_type_of
from tlm_core.training.params import CardRecipe
from tlm_core.training.recipe import OWN_STARTS

Facts = Mapping[str, Any]


def model_card(report: Facts, facts: Facts, recipe: CardRecipe) -> str:
    """Return the card as Markdown. report: the report of the evaluate stage. facts: the prepare stage's data.json."""
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
        *_weights(report),
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
        "- The model may have memorized parts of its training texts. Protect the weights as carefully as these texts.",
        *_lengths(facts),
        *(f"- {warning}" for warning in report["warnings"]),
        "- The scores hold for texts like those of the test split. Nothing else was measured.",
        "",
        "## Recipe",
        "```json",
        json.dumps(recipe.model_dump(mode="json"), indent=1, sort_keys=True),
        "```",
        "",
    ]
    return "\n".join(body)


def linear_card(report: Facts, task: Facts) -> str:
    """Return the card of a job that trains the linear model alone. task: name, language, labels and counts."""
    task_type, setting = task_type_of(report["metric"]), report["linear"]["setting"]
    features = "n-grams of words (1 to 2)" + (" and of characters (2 to 5)" if setting["families"] > 1 else "")
    start = setting["start_words"]
    parts = f"whole texts, and separately the first {start} words of each" if start else "whole texts"
    body = [
        "---",
        "pipeline_tag: text-classification",
        "tags: [text-classification, tf-idf]",
        f"language: {json.dumps(task['language'])}",
        "---",
        f"# {_plain(task['name']) or 'task'}",
        "",
        f"A text {task_type.model}: linear, on TF-IDF of {features}. Cross-validation and validation chose its",
        f"settings. It reads {parts}. `model.onnx` needs the ids that `ngrams.json` defines.",
        *filter(None, [refit_in_words(report)]),
        "`tlm_core.serving.load_model` loads both files.",
        "",
        *task_type.output_section([_plain(label) for label in task["labels"]]),
        "",
        "## Scores",
        *_scores(report),
        "",
        "## Data",
        _counts(task["counts"]),
        "",
        "## Cost of training",
        *_costs(report),
        "",
        "## Limits",
        "- `ngrams.json` contains words and characters of the training texts.",
        "- The scores hold for texts like those of the test split. Nothing else was measured.",
        "",
    ]
    return "\n".join(body)


def _number(value: float | None, spread: float | None = None) -> str:
    if value is None:
        return "not computed"
    return f"{value:.4f}" + (f" ± {spread:.4f}" if spread is not None else "")


def _plain(text: object) -> str:
    """Return the text of a user as one line of Markdown without markup."""
    line = " ".join(str(text).split())
    escaped = "".join(f"\\{c}" if c in "\\`*_[]<>|#!&~" else c for c in line)
    return re.sub(r"^(\d*)([-+.)])", r"\1\\\2", escaped)  # A bullet or number at the start would begin a list.


def _training(facts: Facts, recipe: CardRecipe) -> str:
    """Return a phrase on how the weights were trained, such as `trained from scratch by the task's loss alone.`"""
    joint = recipe.joint
    start = "trained from scratch"
    if recipe.model.init not in OWN_STARTS:
        start = f"trained from the published encoder {_plain(recipe.model.init)}"
    if not joint.enabled:
        return f"{start} by the task's loss alone."
    texts = ["passages"] if facts["passages"] and joint.rho1 else []
    if joint.mlm_on_task and (joint.rho2 or not joint.task_loss):
        texts.append("the task's texts")
    words = " and bag-of-words prediction" if joint.predicts_words(facts) else ""
    losses = [f"masked language modeling{words} on {' and '.join(texts)}"] if texts else []
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
        "and feed-forward blocks were removed. The rest was finetuned again, from the weights before finetuning.",
        f"`model.onnx` holds the remaining {ticket['left']:,} parameters. The weights in this folder have the full",
        f"size ({ticket['full']:,}), with zeros for the removed parts, because stock classes expect it.",
    ]


def _scores(report: Facts) -> list[str]:
    """Return sentences on the returned model, and a table of scores.

    The table has the scores of each model on test, and those of the returned model on the other splits.
    """
    metric = report["metric"]
    names, majority = (*scores_shown(metric), "deduplicated"), task_type_of(metric).baseline_title
    rows = [(f"test, {majority if row.name == MAJORITY else row.name}", row) for row in model_rows(report)]
    rows = rows if majority else rows[1:]
    for split in [name for name in report["mean"] if name != "test"]:
        row = ModelRow("", report["mean"][split], report["spread"][split])
        before = " before it was trained on validation" if report.get(REFIT) and split == "validation" else ""
        rows.append((f"{_plain(split)}, returned model{before}", row))
    cells = [[_number(row.mean.get(name), row.spread.get(name)) for name in names] for _, row in rows]
    return [
        *sentences(report),
        "",
        f"Validation decides by {METRICS[metric].title}. {_runs(report)}",
        "Test was read once for each seed, after all training.",
        "",
        f"| | {' | '.join(METRICS[name].title for name in names[:-1])} | without earlier splits' texts | file |",
        "|---" * (len(names) + 2) + "|",
        *(f"| {title} | {' | '.join(of_row)} | {row.file} |" for (title, row), of_row in zip(rows, cells, strict=True)),
    ]


def _runs(report: Facts) -> str:
    """Return a sentence on the runs whose scores the table has."""
    numbers = [str(seed) for seed in averaged_seeds(report["seeds"])]
    if len(numbers) == 1:
        return "The scores are those of one run, so they have no spread."
    seeds = f"{', '.join(numbers[:-1])} and {numbers[-1]}"
    return f"A score with ± is the mean over the seeds {seeds}, with its sample standard deviation."


def _weights(report: Facts) -> list[str]:
    """Return sentences on the weights in the stock folder. `model.onnx` beside the folder may hold another model."""
    scored = any(entry["validation"]["value"] is not None for entry in report["seeds"])
    chosen = "the best on validation" if scored else "the first, because validation has no score"
    lines = [
        "",
        f"These weights are the encoder of seed {report['best_seed']}, {chosen}.",
        *filter(None, [refit_in_words(report)]),
    ]
    if report["returned"]["model"] != "encoder":
        lines.append(f"`model.onnx`, beside this folder, is {returned_model(report)}: the model that the job returns.")
    return lines


def _rates(report: Facts) -> list[str]:
    choices = []
    for chosen, seed in ((entry["chosen"], entry["seed"]) for entry in report["seeds"] if "tries" in entry):
        weights = f" with class weights {chosen['class_weights']}" if "class_weights" in chosen else ""
        choices.append(f"rate {chosen['lr']:g}{weights} (seed {seed})")
    return ["", f"Validation chose these values for finetuning: {', '.join(choices)}."] if choices else []


def _counts(counts: Mapping[str, int]) -> str:
    splits = (f"{counts[split]:,} {split}" for split in ("train", "validation", "test"))
    return f"- task texts: {', '.join(splits)}"


def _data(facts: Facts, recipe: CardRecipe) -> list[str]:
    lines = [_counts(facts["counts"])]
    if not facts["passages"]:
        return [*lines, "- no passages: trained on the task alone"]
    origin = SELECTORS[recipe.selection.selector].origin
    lines.append(f"- passages: {facts['passages']:,} ({facts['tokens']['passages']:,} tokens), {origin}")
    if corpus := facts.get("selection", {}).get("corpus"):
        lines.append(
            f"- corpus: {_plain(corpus['name'])}, version {corpus['version']}, {corpus['passages']:,} passages"
        )
    return lines


def _lengths(facts: Facts) -> list[str]:
    """Return Markdown lines on how the model reads long texts."""
    length, windows = facts["max_length"], facts.get("max_windows", 1)
    if windows == 1:
        return [f"- Texts longer than {length} tokens are truncated. Stock classes need `truncation=True` for this."]
    return [
        f"- The scores are those of `model.onnx` and of the service: they read up to {windows} windows of {length}",
        f"  tokens of a text and average their logits. Stock classes read the first {length} tokens alone, with the",
        "  argument `truncation=True`.",
    ]


def _costs(report: Facts) -> list[str]:
    """Return a table of the cost of each stage."""
    lines = ["Summed over all seeds."]
    if "super_ticket" in report:
        lines = [
            "Summed over all seeds. `tickets` is the finetuning of all tickets, `finetune` that of the dense model.",
            "The cost of measuring importance is not included.",
        ]
    lines += ["", "| stage | FLOPs | tokens | seconds | GPU-seconds |", "|---|---|---|---|---|"]
    for stage, cost in report["cost"].items():
        flops, tokens = f"{cost['flops']:.3g}", f"{cost['tokens']:,.0f}"
        lines.append(f"| {stage} | {flops} | {tokens} | {cost['seconds']:.1f} | {cost['gpu_seconds']:.1f} |")
    return lines
