"""Finish jobs with given artifacts and durations of their stages."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from services.common.situation import Situation
from tests.contract.gateway import Gateway
from tlm_core.jobs.plan import Node, plan_of
from tlm_core.jobs.spec import JobRecord
from tlm_core.training.recipe import Recipe
from tlm_core.training.speed import HAD_CORE

T = "default"
TOKENS = {"train": 320, "validation": 40, "test": 40, "passages": 9_000}
SEARCHED = 3
ROWS = {"train": 32, "validation": 4, "test": 4}


def record(
    gateway: Gateway,
    job: JobRecord,
    seconds: Callable[[Node], float],
    flops: Mapping[str, float] | None = None,
    counted: float = 0.0,
    gpu_seconds: float = 0.0,
    device: str = "",
    had_core: float = 1.0,
    one_by_one: bool = False,
    passages: int = 50,
) -> JobRecord:
    """Finish a running job. In its events, each node takes `seconds(node)`, and the start of the workers takes 10 s.

    flops: by stage. counted: seconds that each training stage reports. gpu_seconds: of the job, in its report.
    device: of the workers. had_core: of each training stage, see `tlm_core.training.speed`. one_by_one: whether the
    seeds ran one after another. passages: number of selected passages.
    """
    store, artifacts = gateway.parts.jobs, gateway.parts.artifacts
    plan = plan_of(job)
    store.report(T, job.id, job.attempt, events=[("workers.submitted", {"group": "main"})])
    refs = {}
    for node in plan.nodes:
        published = Situation.read(store, job).done
        if node.name in published:
            refs[node.name] = published[node.name]
            continue
        started = {"node": node.name, "stage": node.stage.name, "device": device}
        store.report(T, job.id, job.attempt, events=[("stage.started", started)])
        folder = gateway.root / "files" / uuid.uuid4().hex
        folder.mkdir(parents=True)
        (folder / "task.json").write_text(json.dumps({"counts": ROWS}))
        (folder / "history.json").write_text(json.dumps({"cost": {"seconds": counted, "gpu_seconds": gpu_seconds}}))
        (folder / "report.json").write_text(json.dumps(report(job.resolved.recipe, flops or {}, gpu_seconds)))
        meta: dict[str, Any] = {}
        if node.stage.name in ("select", "prepare"):
            tokens = TOKENS if passages else {split: count for split, count in TOKENS.items() if split != "passages"}
            meta = {"passages": passages, "tokens": tokens, "vocab_size": 900, "corpus": {"passages": SEARCHED}}
            meta |= {"max_length": 128, "windows": ROWS}
        meta |= (
            {"flops": (flops or {}).get(node.stage.name, 1e9), "steps": 10, HAD_CORE: had_core}
            if node.stage.name in ("joint", "finetune")
            else {}
        )
        artifact = node.artifact_id({name: ref.digest for name, ref in published.items()}, job.id)
        ref = artifacts.write(
            f"{T}/artifacts/{artifact}/{job.id}", folder, artifact=artifact, stage=node.stage.name, meta=meta
        )
        store.publish(T, job.id, job.attempt, artifact=artifact, ref=ref, node=node.name, stage=node.stage.name)
        refs[node.name] = ref
    entries = {name: {"artifact": f"art_{name}", "ref": ref.model_dump()} for name, ref in refs.items()}
    done = store.finish(job, "a", {"artifacts": entries})
    _retime(gateway, job, seconds, one_by_one)
    return done


def report(recipe: Recipe, flops: Mapping[str, float], gpu_seconds: float) -> dict[str, Any]:
    """Return an evaluation report with the fields that comparisons read."""
    scores = {"macro_f1": 0.5, "micro_f1": 0.6, "accuracy": 0.6}
    return {
        "metric": "macro_f1", "seeds": [{"seed": 0}], "mean": {"test": scores, "validation": scores},
        "spread": {"test": dict.fromkeys(scores), "reason": "one run has no spread"},
        "cost": {"total": {"flops": sum(flops.values()), "tokens": 9.0, "seconds": 5.0, "gpu_seconds": gpu_seconds}},
        "recipe": recipe.name,
    }  # fmt: skip


def _retime(gateway: Gateway, job: JobRecord, seconds: Callable[[Node], float], one_by_one: bool) -> None:
    """Rewrite the events with times that match the durations of the stages. Other stages wait for all seeds."""
    plan, events = plan_of(job), gateway.parts.jobs.events(T, job.id, limit=1000)
    clocks, times, before = {"": job.created_at}, list[float](), ""
    for event in events:
        node = plan.node(str(event.data["node"])) if "node" in event.data else None
        group = node.group if node and plan.side_by_side(node.group) > 1 and not one_by_one else ""
        at = clocks.setdefault(group, clocks[""]) if group else max(clocks.values())
        if event.type == "stage.started" and before == "workers.submitted":
            at += 10.0
        if event.type == "artifact.published" and node:
            at += seconds(node)
        clocks[group], before = at, event.type
        times.append(at)
    key = f"tlm:{{{T}}}:events:{job.id}"
    gateway.client.delete(key)
    in_order = sorted(zip(times, events, strict=True), key=lambda timed: timed[0])
    for seq, (when, event) in zip([event.seq for event in events], in_order, strict=True):
        fields = {"type": event.type, "at": str(when), "attempt": event.attempt, "data": json.dumps(event.data)}
        gateway.client.xadd(key, fields, id=f"{seq}-0")
