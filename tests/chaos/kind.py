"""A kind of job with two short stages, of which the first writes checkpoints. Stages need no torch."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.trainer_fakes import counting_stage
from tlm_core.jobs.nodes import validate_nodes
from tlm_core.jobs.plan import Node, Plan
from tlm_core.jobs.spec import KindOptions, PlanInputs
from tlm_core.kinds.kind import Kind
from tlm_core.pulse import PULSE
from tlm_core.training.stage import Stage, StageContext, StageParams


class ChaosOptions(KindOptions):
    number: int = 0
    steps: int = 10
    step_seconds: float = 0.1
    groups: int = 2  # submissions of the job


class NumberParams(StageParams):
    number: int
    steps: int
    step_seconds: float


def count(ctx: StageContext[NumberParams]) -> Mapping[str, Any]:
    """Count with checkpoints, like a training loop. The process hangs while its file `hang_file` exists."""

    def step(_: int) -> None:
        time.sleep(ctx.params.step_seconds)
        while hang_file(Path(os.environ["CHAOS_FOLDER"]), os.getppid()).exists():
            time.sleep(0.05)
        PULSE.warm_up()

    with PULSE.pace(steady=True):
        return counting_stage(ctx.params.steps, step)(ctx)


def hang_file(folder: Path, process: int) -> Path:
    return folder / f"hang-{process}"


def content(number: int) -> bytes:
    """Return the bytes that `report` writes to the file `content` for this number."""
    return f"{number} ".encode() * 20_000


def report(ctx: StageContext[NumberParams]) -> dict[str, Any]:
    """Write `report.json` and the file `content`, which the harness compares. Input: `counted`."""
    assert (ctx.inputs["counted"] / "counted").read_text() == str(ctx.params.steps)
    (ctx.out / "content").write_bytes(content(ctx.params.number))
    values = {"metric": "number", "mean": {"test": {"number": ctx.params.number}}, "spread": {"test": {"number": None}}}
    cost = {"flops": 0.0, "tokens": 0.0, "seconds": 0.0, "gpu_seconds": 0.0}
    (ctx.out / "report.json").write_text(json.dumps({"kind": "chaos", "cost": {"total": cost}, **values}))
    return values


COUNT = Stage("count", "tests.chaos.kind:count", 1, NumberParams, needs_torch=False)
REPORT = Stage("number", "tests.chaos.kind:report", 1, NumberParams, needs_torch=False)


def plan(inputs: PlanInputs[ChaosOptions]) -> Plan:
    params = NumberParams(**inputs.options.model_dump(exclude={"groups"}))
    counted = Node("count", COUNT, params, {"task": "validate"}, group="1")
    number = Node("number", REPORT, params, {"counted": "count"}, group=f"{inputs.options.groups}")
    return Plan((*validate_nodes(inputs), counted, number), report="number", model="number")


KIND = Kind("chaos", "count", ChaosOptions, plan, has_model=False)
