"""A kind of job in one file: it labels texts by their first character and reports the accuracy on test."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from pydantic import Field

from tlm_core.jobs.nodes import validate_nodes
from tlm_core.jobs.plan import Node, Plan
from tlm_core.jobs.spec import KindOptions, PlanInputs
from tlm_core.kinds.kind import FormField, Kind
from tlm_core.tasks.task import Task
from tlm_core.training.stage import Stage, StageContext, StageParams


class ToyOptions(KindOptions):
    characters: int = Field(1, ge=1, le=9, description="first characters of a text that decide its label")


class PrefixParams(StageParams):
    characters: int


def prefix_accuracy(ctx: StageContext[PrefixParams]) -> dict[str, Any]:
    """Write `report.json`. Input: `task`."""
    task, size = Task.read(ctx.inputs["task"]), ctx.params.characters
    labels: dict[str, Counter[int]] = {}
    for text, label in zip(task.texts("train"), task.label_ids("train").tolist(), strict=True):
        labels.setdefault(text[:size], Counter())[label] += 1
    correct = [
        labels[text[:size]].most_common(1)[0][0] == label if text[:size] in labels else False
        for text, label in zip(task.texts("test"), task.label_ids("test").tolist(), strict=True)
    ]
    accuracy = sum(correct) / len(correct)
    cost = {"flops": 0.0, "tokens": 0.0, "seconds": 0.0, "gpu_seconds": 0.0}
    report = {
        "kind": "toy", "task": task.name, "metric": "prefix_accuracy", "cost": {"total": cost},
        "mean": {"test": {"prefix_accuracy": accuracy}}, "spread": {"test": {"prefix_accuracy": None}},
        "words": f"The first {size} characters label {accuracy:.1%} of the test texts correctly.",
    }  # fmt: skip
    (ctx.out / "report.json").write_text(json.dumps(report), encoding="utf-8")
    return {name: report[name] for name in ("metric", "mean", "spread", "words")}


PREFIX = Stage("prefix", "tests.contract.toy_kind:prefix_accuracy", 1, PrefixParams, needs_torch=False)


def plan(inputs: PlanInputs[ToyOptions]) -> Plan:
    params = PrefixParams(characters=inputs.options.characters)
    report = Node("prefix", PREFIX, params, {"task": "validate"})
    return Plan((*validate_nodes(inputs), report), report="prefix", model="prefix")


KIND = Kind(
    "toy",
    "label texts by their first characters",
    ToyOptions,
    plan,
    has_model=False,
    fields=(FormField("characters", "Characters", "that decide the label", "number"),),
)
